package group

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// The table of what the errors of members mean.
func TestJudge(t *testing.T) {
	at := func(hop, hops int, op string, err error) error {
		return &outbound.HopError{Hop: hop, Hops: hops, Upstream: "a", Op: op, Err: err}
	}
	step := func(op string, err error) error { return at(1, 1, op, err) }
	reply := func(r byte) error { return step("request", socks.ReplyError(r)) }
	timeout := fmt.Errorf("no answer within 10s: %w", os.ErrDeadlineExceeded)
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

	client := judgement{}                                                  // to the client, at once
	target := judgement{next: true}                                        // about the target
	member := func(c Cause) judgement { return judgement{true, c, false} } // about the member
	either := func(c Cause) judgement { return judgement{true, c, true} }  // nobody knows

	tests := []struct {
		name     string
		err      error
		tcp, udp judgement
	}{
		{"connect refused", step("connect", refused), member(Connect), member(Connect)},
		{"connect timed out", step("connect", context.DeadlineExceeded), member(Connect), member(Connect)},
		{"no route to the server", step("connect", syscall.EHOSTUNREACH), member(Connect), member(Connect)},
		{"no such server", step("connect", &net.DNSError{Err: "no such host", IsNotFound: true}), member(Connect), member(Connect)},
		{"hop 2 refused by hop 1", at(2, 2, "connect", socks.ReplyRefused), member(Connect), member(Connect)},
		{"hop 2 not allowed by hop 1", at(2, 2, "connect", socks.ReplyRuleset), member(Connect), member(Connect)},
		{"hop 2 unreachable", at(2, 2, "connect", socks.ReplyHostUnreachable), member(Connect), member(Connect)},
		{"request to hop 1 of 2", at(1, 2, "request", socks.ReplyRefused), member(Hangup), member(Hangup)},

		{"silent after greeting", step("negotiate", timeout), member(Silence), member(Silence)},
		{"silent, first of two", at(1, 2, "negotiate", timeout), member(Silence), member(Silence)},
		{"EOF after greeting", step("negotiate", io.EOF), member(Hangup), member(Hangup)},
		{"half a greeting", step("negotiate", io.ErrUnexpectedEOF), member(Hangup), member(Hangup)},
		{"reset after greeting", step("negotiate", syscall.ECONNRESET), member(Hangup), member(Hangup)},
		{"not SOCKS", step("negotiate", fmt.Errorf("%w: version 72", socks.ErrProtocol)), member(Protocol), member(Protocol)},
		{"wrong password", step("authenticate", fmt.Errorf("%w (status 1)", socks.ErrAuth)), member(Auth), member(Auth)},
		{"no method", step("authenticate", socks.ErrNoMethod), member(Auth), member(Auth)},
		{"wrong password at hop 1", at(1, 3, "authenticate", socks.ErrAuth), member(Auth), member(Auth)},
		{"wants a user", step("authenticate", errors.New("407 Proxy Authentication Required")), member(Auth), member(Auth)},
		{"certificate", step("handshake", x509.UnknownAuthorityError{}), member(Secrecy), member(Secrecy)},
		{"EOF for a handshake", step("handshake", io.EOF), member(Secrecy), member(Secrecy)},
		{"silent in a handshake", step("handshake", timeout), member(Silence), member(Silence)},
		{"not HTTP", step("negotiate", fmt.Errorf("%w: SSH-2.0", httpconnect.ErrProtocol)), member(Protocol), member(Protocol)},
		{"silent about the password", step("authenticate", timeout), member(Silence), member(Silence)},
		{"EOF for the password", step("authenticate", io.EOF), member(Hangup), member(Hangup)},

		{"reply 1", reply(1), either(General), member(General)},
		{"reply 2", reply(2), client, member(NoUDP)},
		{"reply 3", reply(3), target, member(General)},
		{"reply 4", reply(4), target, member(General)},
		{"reply 5", reply(5), client, member(General)},
		{"reply 6", reply(6), target, member(General)},
		{"reply 7", reply(7), client, member(NoUDP)},
		{"reply 8", reply(8), client, member(General)},
		{"reply 9", reply(9), either(General), member(General)},
		{"reply EF", reply(0xEF), either(General), member(General)},
		{"reply F0", reply(0xF0), client, member(General)},
		{"reply F1", reply(0xF1), client, member(General)},
		{"reply F2", reply(0xF2), target, member(General)},
		{"reply F3", reply(0xF3), target, member(General)},
		{"reply F4", reply(0xF4), client, member(General)},
		{"reply F5", reply(0xF5), client, member(General)},
		{"reply F6", reply(0xF6), client, member(General)},
		{"reply F7", reply(0xF7), target, member(General)},
		{"last of three unreachable", at(3, 3, "request", socks.ReplyHostUnreachable), target, member(General)},
		{"SOCKS4 91", step("request", socks.Reply4Rejected), either(General), either(General)},
		{"SOCKS4 92", step("request", socks.Reply4NoIdent), member(Auth), member(Auth)},
		{"SOCKS4 93", step("request", socks.Reply4UserMismatch), member(Auth), member(Auth)},
		{"HTTP 403", step("request", &httpconnect.StatusError{Code: 403}), client, client},
		{"HTTP 503, refused", step("request", &httpconnect.StatusError{Code: 503, Cause: "ERR_CONNECT_FAIL 111"}), client, client},
		{"HTTP 503, unreachable", step("request", &httpconnect.StatusError{Code: 503, Cause: "ERR_CONNECT_FAIL 113"}), either(General), either(General)},
		{"HTTP 500", step("request", &httpconnect.StatusError{Code: 500}), either(General), either(General)},
		{"EOF for a reply", step("request", io.EOF), either(Hangup), member(Hangup)},
		{"half a reply", step("request", io.ErrUnexpectedEOF), either(Hangup), member(Hangup)},
		{"reset for a reply", step("request", syscall.ECONNRESET), either(Hangup), member(Hangup)},
		{"silent after request", step("request", timeout), either(Silence), member(Silence)},
		{"cannot be asked for IPv6", step("request", fmt.Errorf("%w: %w", socks.ErrNoIPv6, syscall.ENETUNREACH)), target, target},

		{"direct: refused", refused, client, client},
		{"direct: unreachable", syscall.EHOSTUNREACH, target, target},
		{"direct: no network", syscall.ENETUNREACH, target, target},
		{"direct: timed out", context.DeadlineExceeded, target, target},
		{"direct: no such name", &net.DNSError{Err: "no such host", IsNotFound: true}, target, target},
		{"direct: bind address gone", os.NewSyscallError("bind", syscall.EADDRNOTAVAIL), member(Connect), member(Connect)},
		{"direct: interface gone", os.NewSyscallError("setsockopt", syscall.ENODEV), member(Connect), member(Connect)},
		{"fake address", fmt.Errorf("198.18.0.1: %w", outbound.ErrDenied), client, client},
		{"rejected", outbound.ErrRejected, client, client},

		{"no UDP", step("request", fmt.Errorf("%w: %w", outbound.ErrNoUDP, socks.ReplyCommand)), client, member(NoUDP)},
		{"no UDP for EOF", step("request", fmt.Errorf("%w: %w", outbound.ErrNoUDP, io.EOF)), either(Hangup), member(NoUDP)},
		{"hop 1 has no UDP", at(1, 2, "request", outbound.ErrNoUDP), member(Hangup), member(NoUDP)},
	}
	for _, tt := range tests {
		if got := judge(flow.TCP, tt.err); got != tt.tcp {
			t.Errorf("%s: TCP: %+v, want %+v", tt.name, got, tt.tcp)
		}
		if got := judge(flow.UDP, tt.err); got != tt.udp {
			t.Errorf("%s: UDP: %+v, want %+v", tt.name, got, tt.udp)
		}
		// A group is judged as its most telling member is.
		g := &Error{Group: "inner", Tries: []Try{{"a", tt.err}}, told: tt.err}
		if got := judge(flow.TCP, g); got != tt.tcp {
			t.Errorf("%s within a group: TCP: %+v, want %+v", tt.name, got, tt.tcp)
		}
		if got, want := outbound.Errno(g), outbound.Errno(tt.err); got != want {
			t.Errorf("%s within a group: Errno %v, want %v", tt.name, got, want)
		}
	}
}
