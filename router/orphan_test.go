package router

import (
	"net/netip"
	"testing"
	"time"
)

func TestClientsAreToldOfOnce(t *testing.T) {
	var c clients
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	start := time.Unix(1e9, 0)
	for _, tt := range []struct {
		addr  netip.Addr
		after time.Duration
		want  bool
	}{
		{a, 0, true}, {a, 0, false}, {b, 0, true}, {a, tellAgain - 1, false},
		{a, tellAgain, true}, {b, tellAgain, true}, {b, 2*tellAgain - 1, false},
	} {
		if got := c.isNew(tt.addr, start.Add(tt.after)); got != tt.want {
			t.Errorf("%s after %s: %v, want %v", tt.addr, tt.after, got, tt.want)
		}
	}
	for i := range 3 * maxClients {
		c.isNew(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), start)
		if len(c.told) > maxClients {
			t.Fatalf("%d clients are remembered", len(c.told))
		}
	}
}
