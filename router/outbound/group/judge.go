package group

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// Cause is what is wrong with a member.
type Cause uint8

// The causes. None says that an error is about the target.
const (
	None      Cause = iota
	Connect         // it cannot be connected to
	Silence         // it takes a connection and does not answer
	Hangup          // it takes a connection and closes it
	Secrecy         // the TLS handshake fails: its certificate, most likely
	Protocol        // it answers what is not its protocol
	General         // it answers "general failure"
	Auth            // it refuses user and password, or wants some
	NoUDP           // it carries no UDP
	Unreached       // it does not reach the target of the probe
)

var causes = [...]string{"", "connect failed", "no answer", "hung up", "TLS handshake failed", "not the protocol",
	"general failure", "authentication refused", "no UDP", "target of the probe not reached"}

// String returns, for example, "authentication refused".
func (c Cause) String() string { return causes[c] }

// judgement is what an error says.
type judgement struct {
	// next: another member may do better, and may be tried.
	next bool
	// cause is what it says of the member.
	cause Cause
	// proof: it says so only if another member reaches the same target,
	// and then of one target after the other; else the target may be as much
	// to blame. ssh -D hangs up where others say "refused", tor has one reply
	// for nearly everything, and a server may be silent because the target is.
	proof bool
}

// judge says what follows from the error of a member. It is the one place where
// errors of members are told apart.
//
// What the last server answers to the request for the target is about the target,
// so that it says nothing of the member: that a host cannot be reached is as true
// or false from a server that works. All before that is about the member. A UDP
// association has no target: whatever goes wrong there is about the member.
func judge(n flow.Network, err error) judgement {
	if inner, ok := err.(*Error); ok { // a group is as its most telling member
		return judge(n, inner.told)
	}
	var hop *outbound.HopError
	isHop := errors.As(err, &hop)
	switch {
	case errors.Is(err, outbound.ErrRejected), errors.Is(err, outbound.ErrDropped), errors.Is(err, outbound.ErrDenied):
		return judgement{} // ours to say, and the same for every member
	case n == flow.UDP && errors.Is(err, outbound.ErrNoUDP):
		return judgement{next: true, cause: NoUDP}
	case !isHop:
		return judgeDirect(err)
	case hop.Op != "request" || hop.Hop != hop.Hops:
		return judgement{next: true, cause: causeOf(hop)}
	}
	var reply socks.ReplyError
	var reply4 socks.ReplyError4
	var status *httpconnect.StatusError
	switch {
	case errors.As(hop.Err, &reply):
		return judgeReply(n, reply)
	case errors.As(hop.Err, &reply4):
		switch reply4 {
		case socks.Reply4NoIdent, socks.Reply4UserMismatch:
			return judgement{next: true, cause: Auth}
		}
		return judgement{next: true, cause: General, proof: true}
	case errors.As(hop.Err, &status):
		switch outbound.Errno(err) {
		case syscall.ECONNREFUSED, syscall.EACCES:
			return judgement{}
		}
		// Nothing else is told apart by all proxies: tinyproxy says 500 to all.
		return judgement{next: true, cause: General, proof: true}
	case isTimeout(hop.Err):
		return judgement{next: true, cause: Silence, proof: n == flow.TCP}
	case isHangup(hop.Err):
		return judgement{next: true, cause: Hangup, proof: n == flow.TCP}
	}
	return judgement{next: true} // what this version of SOCKS cannot be asked for
}

// judgeReply is judge for the replies of SOCKS5.
func judgeReply(n flow.Network, reply socks.ReplyError) judgement {
	if n == flow.UDP {
		if reply == socks.ReplyRuleset || reply == socks.ReplyCommand {
			return judgement{next: true, cause: NoUDP}
		}
		return judgement{next: true, cause: General}
	}
	switch reply {
	case socks.ReplyRefused, socks.ReplyRuleset, socks.ReplyCommand, socks.ReplyAddressType:
		return judgement{}
	case socks.ReplyNetUnreachable, socks.ReplyHostUnreachable, socks.ReplyTTL:
		return judgement{next: true}
	case socks.ReplyOnionIntroFailed, socks.ReplyOnionRendezvousFailed, socks.ReplyOnionIntroTimeout:
		return judgement{next: true} // of one circuit; another tor has others
	}
	if reply >= socks.ReplyOnionNotFound {
		return judgement{} // of the onion service itself
	}
	return judgement{next: true, cause: General, proof: true}
}

// judgeDirect is judge for an error that no server has to do with.
func judgeDirect(err error) judgement {
	for _, e := range []error{syscall.EADDRNOTAVAIL, syscall.ENODEV} {
		if errors.Is(err, e) { // its bind address or interface has gone
			return judgement{next: true, cause: Connect}
		}
	}
	return judgement{next: !outbound.Refused(err)}
}

// causeOf says what is wrong with a server that did not get as far as a request.
func causeOf(hop *outbound.HopError) Cause {
	switch {
	case hop.Op == "connect":
		return Connect
	case errors.Is(hop.Err, socks.ErrAuth), errors.Is(hop.Err, socks.ErrNoMethod):
		return Auth
	case errors.Is(hop.Err, socks.ErrProtocol), errors.Is(hop.Err, httpconnect.ErrProtocol):
		return Protocol
	case isTimeout(hop.Err):
		return Silence
	case hop.Op == "handshake":
		return Secrecy
	case hop.Op == "authenticate" && !isHangup(hop.Err): // another protocol's refusal
		return Auth
	}
	return Hangup
}

// isTimeout also has the end of a context: that of a flow is judged by nobody.
func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
