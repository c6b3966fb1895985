package outbound

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"tunroute/router/socks"
)

func addrs(list ...string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, s := range list {
		out[i] = netip.MustParseAddr(s)
	}
	return out
}

func TestInterleave(t *testing.T) {
	tests := []struct{ in, want []netip.Addr }{
		{addrs("192.0.2.1"), addrs("192.0.2.1")},
		{addrs("192.0.2.1", "192.0.2.2"), addrs("192.0.2.1", "192.0.2.2")},
		{addrs("::1", "::2", "::3", "192.0.2.1"), addrs("::1", "192.0.2.1", "::2", "::3")},
		{addrs("192.0.2.1", "::1", "::2", "::3"), addrs("192.0.2.1", "::1", "::2", "::3")},
		{addrs("192.0.2.1", "192.0.2.2", "::1", "::2"), addrs("192.0.2.1", "::1", "192.0.2.2", "::2")},
	}
	for _, tt := range tests {
		if got := interleave(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("interleave(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

// Of the errors of several addresses, the one that knows most is told.
func TestMoreTelling(t *testing.T) {
	unreachable := errors.Join(errors.New("no route"), syscall.ENETUNREACH)
	timeout := errors.New("i/o timeout")
	refused := errors.Join(errors.New("refused"), syscall.ECONNREFUSED)
	reply := &HopError{Hop: 1, Hops: 1, Op: opRequest, Err: socks.ReplyRefused}
	tests := []struct{ a, b, want error }{
		{nil, unreachable, unreachable},
		{unreachable, timeout, timeout},
		{timeout, unreachable, timeout},
		{timeout, refused, refused},
		{refused, timeout, refused},
		{refused, reply, refused},
		{unreachable, reply, reply},
	}
	for _, tt := range tests {
		if got := moreTelling(tt.a, tt.b); got != tt.want {
			t.Errorf("moreTelling(%v, %v) = %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}
