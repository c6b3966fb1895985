package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// Two tries of one server fit in the 5 s after which glibc and musl
	// ask again.
	defaultTimeout  = 2 * time.Second
	defaultAttempts = 2

	headerSize = 12
	maxMessage = 1<<16 - 1

	// The longest answer by UDP that is read. What this program asks offers
	// 1232 octets; more than 4096 nobody sends (RFC 6891 §6.2.5).
	maxUDP = 4096
)

// Options say whom a [Resolver] asks and how. Servers must be set.
type Options struct {
	// Servers are asked in this order.
	Servers []netip.AddrPort

	// Dial opens the way to a server; network is "udp" or "tcp". The
	// connection for "udp" keeps the bounds of datagrams and delivers those
	// of the server only. Nil means a zero [net.Dialer].
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Timeout is for one try of one server. Zero means 2 seconds.
	Timeout time.Duration

	// Attempts is how often the list of servers is gone through. Zero means
	// twice.
	Attempts int
}

// Resolver asks upstream servers. It is immutable and safe for concurrent use,
// holds nothing between questions and starts nothing that outlives one.
type Resolver struct {
	servers  []netip.AddrPort
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	timeout  time.Duration
	attempts int
}

// New returns a Resolver.
func New(o Options) (*Resolver, error) {
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Attempts == 0 {
		o.Attempts = defaultAttempts
	}
	switch {
	case len(o.Servers) == 0:
		return nil, errors.New("resolver without a server to ask")
	case o.Timeout < 0 || o.Attempts < 0:
		return nil, fmt.Errorf("resolver with a timeout of %v and %d attempts: must be positive", o.Timeout, o.Attempts)
	}
	for _, s := range o.Servers {
		if !s.IsValid() || s.Port() == 0 {
			return nil, fmt.Errorf("dns server %v is not an address and a port", s)
		}
	}
	return &Resolver{slices.Clone(o.Servers), o.Dial, o.Timeout, o.Attempts}, nil
}

// errNotQuery is about the caller's message.
var errNotQuery = errors.New("not a dns message with one question")

// Exchange sends a question message and returns the answer, which has the id of
// query. With network "udp" an answer may be truncated (TC); with "tcp" it is
// asked for again by TCP then. Query is not changed, and must not offer to take
// more than 4096 octets by UDP.
//
// A server that cannot be reached, does not answer in time, or answers that it
// failed, refuses or does not know the kind of question (SERVFAIL, REFUSED,
// NOTIMP) is passed over; if none does better the first such answer comes back.
// It blocks for a time-out per try at most, twice that where UDP leads to TCP,
// and until ctx ends.
func (r *Resolver) Exchange(ctx context.Context, query []byte, network string) ([]byte, error) {
	question, ok := questionOf(query)
	if !ok {
		return nil, errNotQuery
	}
	var (
		bad  []byte // the first answer that says no more than that it is none
		errs error
	)
	for range r.attempts {
		for _, server := range r.servers {
			answer, err := r.try(ctx, server, query, question, network)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				errs = fmt.Errorf("dns server %v: %w", server, err)
				continue
			}
			copy(answer, query[:2])
			switch rcode(answer) {
			case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
				if bad == nil {
					bad = answer
				}
				continue
			}
			return answer, nil
		}
		if bad != nil {
			return bad, nil // the same question would get the same answer
		}
	}
	return nil, errs
}

// try asks one server once.
func (r *Resolver) try(ctx context.Context, server netip.AddrPort, query, question []byte, network string) ([]byte, error) {
	msg := slices.Clone(query)
	binary.BigEndian.PutUint16(msg, uint16(rand.Uint32())) // ChaCha8, seeded by the system
	answer, err := r.once(ctx, "udp", server, msg, question)
	var noDial *dialError
	switch {
	case errors.As(err, &noDial):
		// The way there may carry TCP only.
	case err != nil:
		return nil, err
	case network != "tcp" || !isTruncated(answer):
		return answer, nil
	}
	return r.once(ctx, "tcp", server, msg, question)
}

// dialError says that nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// once opens a way to the server, asks, and waits for the answer.
func (r *Resolver) once(ctx context.Context, network string, server netip.AddrPort, msg, question []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, errTimeout)
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // and not that the connection is closed
		}
	}()
	conn, err := r.dial(ctx, network, server.String())
	if err != nil {
		return nil, &dialError{err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if network == "tcp" {
		return askTCP(conn, msg, question)
	}
	return askUDP(conn, msg, question)
}

// errTimeout is a time-out in the eyes of net.Error and of errors.Is.
var errTimeout = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

func askUDP(conn net.Conn, msg, question []byte) ([]byte, error) {
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDP)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if isAnswer(buf[:n], msg, question) {
			return buf[:n], nil
		}
	}
}

func askTCP(conn net.Conn, msg, question []byte) ([]byte, error) {
	if len(msg) > maxMessage {
		return nil, errNotQuery
	}
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	if _, err := conn.Write(append(frame, msg...)); err != nil {
		return nil, err
	}
	var prefix [2]byte
	if _, err := io.ReadFull(conn, prefix[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(prefix[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, err
	}
	if !isAnswer(answer, msg, question) {
		return nil, errors.New("the answer is to another question")
	}
	return answer, nil
}

// questionOf returns the question section of a message with one question.
func questionOf(msg []byte) ([]byte, bool) {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, false
	}
	_, end, err := dns.UnpackDomainName(msg, headerSize)
	if err != nil || len(msg)-end < 4 {
		return nil, false
	}
	return msg[headerSize : end+4], true
}

// isAnswer reports whether answer is one to query: the id, the opcode and the
// question are the same, but for the case of letters. A server that read no
// further than the header may say so without the question.
func isAnswer(answer, query, question []byte) bool {
	if len(answer) < headerSize || answer[0] != query[0] || answer[1] != query[1] {
		return false
	}
	const qr, opcode = 0x80, 0x78
	if answer[2]&(qr|opcode) != qr|query[2]&opcode {
		return false
	}
	if binary.BigEndian.Uint16(answer[4:]) == 0 {
		return rcode(answer) != dns.RcodeSuccess
	}
	other, ok := questionOf(answer)
	if !ok || string(other[len(other)-4:]) != string(question[len(question)-4:]) {
		return false
	}
	return sameName(other, question)
}

// sameName reports whether two question sections, as questionOf returns them, ask
// for the same name.
func sameName(a, b []byte) bool {
	nameA, _, errA := dns.UnpackDomainName(a, 0)
	nameB, _, errB := dns.UnpackDomainName(b, 0)
	return errA == nil && errB == nil && strings.EqualFold(nameA, nameB)
}

// rcode returns the lower bits of the response code.
func rcode(msg []byte) int { return int(msg[3] & 0xf) }

func isTruncated(msg []byte) bool { return msg[2]&0x02 != 0 }
