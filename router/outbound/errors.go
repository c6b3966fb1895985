package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"tunroute/router/httpconnect"
	"tunroute/router/socks"
)

// Errors that callers branch on.
var (
	// ErrNoUDP says that an outbound cannot carry UDP.
	ErrNoUDP = errors.New("no UDP through this outbound")
	// ErrNoBind says that nobody can connect to the far end of an outbound.
	ErrNoBind = errors.New("no BIND through this outbound")
	// ErrRejected says that a rule refuses the flow.
	ErrRejected = errors.New("rejected by rule")
	// ErrDropped says that a rule ignores the flow: the client is told nothing.
	ErrDropped = errors.New("dropped by rule")
	// ErrNoName says that a name has no address.
	ErrNoName = errors.New("no such name")
	// ErrDenied says that an address, given or found for a name, is one that
	// stands for a name inside this process and means nothing outside of it, or
	// the unspecified one, which is no host's.
	ErrDenied = errors.New("address must not leave this process")
)

// errUnprepared is the error of a WriteTo to a target that did not come from
// Prepare.
var errUnprepared = errors.New("target has no address: it is not from Prepare")

// HungUp says that a server closed the connection in place of an answer. An
// [ErrNoUDP] that is one is a guess: some servers answer what they do not know so,
// and all do that are being restarted.
func HungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// HopError says where in a chain a dial failed.
type HopError struct {
	Hop, Hops int    // 1 is the server nearest to us; Hops is the length of the chain
	Upstream  string // the name that the config gives the server
	Op        string // "connect", "handshake", "negotiate", "authenticate", "request"
	Err       error  // a [socks.ReplyError], [socks.ReplyError4] or [*httpconnect.StatusError], a [net.Error], io.EOF, ...
}

// Error returns, for example, "hop 2 of 3 (p1): request: host unreachable
// (reply 4)". A single server's is "p1: ...".
func (e *HopError) Error() string {
	if e.Hops <= 1 {
		return fmt.Sprintf("%s: %s: %v", e.Upstream, e.Op, e.Err)
	}
	return fmt.Sprintf("hop %d of %d (%s): %s: %v", e.Hop, e.Hops, e.Upstream, e.Op, e.Err)
}

func (e *HopError) Unwrap() error { return e.Err }

// OfTarget says that the error is what the last server said of the target: a server
// in the middle, or one that cannot be reached, is about the way there.
func (e *HopError) OfTarget() bool { return e.Op == opRequest && e.Hop == e.Hops }

// Errno returns the error that the client's own connect(2) should return for
// err: ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, EACCES for "prohibited", or 0 for
// an [ErrDropped], of which the client is told nothing.
//
// A reply speaks for the target only if the server it comes from was asked for
// the target. If a hop in the middle of a chain, or a server's own address,
// refuses, then the way is broken and not the target: that is EHOSTUNREACH.
func Errno(err error) syscall.Errno {
	var hop *HopError
	if errors.As(err, &hop) {
		if !hop.OfTarget() {
			return syscall.EHOSTUNREACH
		}
		err = hop.Err
	}
	var reply socks.ReplyError
	var status *httpconnect.StatusError
	var dns *net.DNSError
	switch {
	case err == nil, errors.Is(err, ErrDropped):
		return 0
	case errors.Is(err, ErrRejected):
		return syscall.EACCES
	case errors.As(err, &reply):
		switch reply {
		case socks.ReplyRuleset:
			return syscall.EACCES
		case socks.ReplyNetUnreachable, socks.ReplyAddressType:
			return syscall.ENETUNREACH
		case socks.ReplyRefused:
			return syscall.ECONNREFUSED
		}
		return syscall.EHOSTUNREACH
	case errors.As(err, &status):
		return httpErrno(status)
	case errors.As(err, &dns), errors.Is(err, ErrNoName), errors.Is(err, context.DeadlineExceeded):
		return syscall.EHOSTUNREACH
	}
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ENETUNREACH} {
		if errors.Is(err, e) {
			return e
		}
	}
	return syscall.EHOSTUNREACH
}

// Refused says that the target itself answered, and refused.
func Refused(err error) bool { return err != nil && Errno(err) == syscall.ECONNREFUSED }

// The steps of a dial, as [HopError.Op] names them.
const (
	opConnect      = "connect"
	opTLS          = "handshake"
	opNegotiate    = "negotiate"
	opAuthenticate = "authenticate"
	opRequest      = "request"
)
