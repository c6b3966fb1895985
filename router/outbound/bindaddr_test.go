package outbound

import (
	"net/netip"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

// The private address of a server that we reach at a public one is that before its NAT.
func TestBindAddrBehindNAT(t *testing.T) {
	const public, private = "203.0.113.1", "172.31.5.5"
	for _, tt := range []struct{ bound, server, from, want string }{
		{private, public, "198.51.100.7", public},
		{"100.64.0.9", public, "198.51.100.7", public},
		{private, public, "", public}, // a name: who knows
		{private, public, "172.31.9.9", private},
		{private, "10.0.0.1", "198.51.100.7", private},
		{"203.0.113.99", public, "198.51.100.7", "203.0.113.99"},
		{"fd00::1", public, "2001:db8::7", "fd00::1"},
		{"fd00::1", "2001:db8::1", "2001:db8::7", "2001:db8::1"},
	} {
		var from netip.Addr
		if tt.from != "" {
			from = netip.MustParseAddr(tt.from)
		}
		server := flow.Target{Addr: netip.MustParseAddr(tt.server), Port: 1080}
		got, err := bindAddr(socks.Addr{IP: netip.MustParseAddr(tt.bound), Port: 700}, server, from)
		if want := netip.AddrPortFrom(netip.MustParseAddr(tt.want), 700); got != want || err != nil {
			t.Errorf("%s of the server %s for %s: %v, %v, want %v", tt.bound, tt.server, tt.from, got, err, want)
		}
	}
}
