package outbound_test

import (
	"net"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound/outboundtest"
)

// BenchmarkSocksDial is a flow through a SOCKS5 server on this machine: connect,
// greeting, request, and the end. The allocations are those of both ends.
func BenchmarkSocksDial(b *testing.B) {
	server := outboundtest.Serve(b, loopback, say(func(c *net.TCPConn) { c.SetLinger(0) }, one(takesNone), one(granted)))
	o := v5
	o.Server, o.Via = flow.AddrTarget(server), newDirect(b, nil)
	s := newSocks(b, o)
	b.ReportAllocs()
	for b.Loop() {
		conn, err := s.DialTCP(b.Context(), where)
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := conn.(*net.TCPConn); !ok {
			b.Fatalf("the connection is a %T, want a *net.TCPConn", conn)
		}
		conn.Close()
	}
}
