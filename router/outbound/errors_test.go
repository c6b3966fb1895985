package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// The table of what a client is told.
func TestErrno(t *testing.T) {
	last := func(err error) error {
		return &outbound.HopError{Hop: 2, Hops: 2, Upstream: "p1", Op: "request", Err: err}
	}
	first := func(err error) error {
		return &outbound.HopError{Hop: 1, Hops: 2, Upstream: "d1", Op: "request", Err: err}
	}
	tests := []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{outbound.ErrDropped, 0},
		{outbound.ErrRejected, syscall.EACCES},
		{outbound.ErrNoName, syscall.EHOSTUNREACH},
		{outbound.ErrNoUDP, syscall.EHOSTUNREACH},
		{outbound.ErrDenied, syscall.EHOSTUNREACH},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, syscall.EHOSTUNREACH},
		{context.DeadlineExceeded, syscall.EHOSTUNREACH},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, syscall.ECONNREFUSED},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}, syscall.ENETUNREACH},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, syscall.EHOSTUNREACH},
		{last(socks.ReplyGeneral), syscall.EHOSTUNREACH},
		{last(socks.ReplyRuleset), syscall.EACCES},
		{last(socks.ReplyNetUnreachable), syscall.ENETUNREACH},
		{last(socks.ReplyHostUnreachable), syscall.EHOSTUNREACH},
		{last(socks.ReplyRefused), syscall.ECONNREFUSED},
		{last(socks.ReplyTTL), syscall.EHOSTUNREACH},
		{last(socks.ReplyCommand), syscall.EHOSTUNREACH},
		{last(socks.ReplyAddressType), syscall.ENETUNREACH},
		{last(socks.ReplyOnionNotFound), syscall.EHOSTUNREACH},
		{last(socks.Reply4Rejected), syscall.EHOSTUNREACH},
		{last(io.EOF), syscall.EHOSTUNREACH},
		{fmt.Errorf("flow 7: %w", last(socks.ReplyRefused)), syscall.ECONNREFUSED},
		{first(socks.ReplyRefused), syscall.EHOSTUNREACH},
		{&outbound.HopError{Hop: 1, Hops: 1, Op: "connect", Err: syscall.ECONNREFUSED}, syscall.EHOSTUNREACH},
		{&outbound.HopError{Hop: 1, Hops: 1, Op: "authenticate", Err: socks.ErrAuth}, syscall.EHOSTUNREACH},
	}
	for _, tt := range tests {
		if got := outbound.Errno(tt.err); got != tt.want {
			t.Errorf("Errno(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestHopErrorText(t *testing.T) {
	err := &outbound.HopError{Hop: 2, Hops: 3, Upstream: "p1", Op: "request", Err: socks.ReplyHostUnreachable}
	if got, want := err.Error(), "hop 2 of 3 (p1): request: host unreachable (reply 4)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err.Hop, err.Hops = 1, 1
	if got, want := err.Error(), "p1: request: host unreachable (reply 4)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRejectAndDrop(t *testing.T) {
	for _, tt := range []struct {
		d interface {
			outbound.Dialer
			outbound.PacketDialer
		}
		want error
	}{
		{outbound.Reject{}, outbound.ErrRejected},
		{outbound.Drop{}, outbound.ErrDropped},
	} {
		if conn, err := tt.d.DialTCP(t.Context(), flow.Target{Name: "example.org", Port: 80}); conn != nil || !errors.Is(err, tt.want) {
			t.Errorf("%T: DialTCP: %v, %v, want %v", tt.d, conn, err, tt.want)
		}
		if conn, err := tt.d.OpenUDP(t.Context()); conn != nil || !errors.Is(err, tt.want) {
			t.Errorf("%T: OpenUDP: %v, %v, want %v", tt.d, conn, err, tt.want)
		}
	}
}
