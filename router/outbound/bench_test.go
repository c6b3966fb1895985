package outbound_test

import (
	"net"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

// BenchmarkSocksDial is a flow through a SOCKS5 server on this machine: connect,
// greeting, request, and the end. The allocations are those of both ends.
func BenchmarkSocksDial(b *testing.B) {
	closes := func(c *net.TCPConn) { c.SetLinger(0) }
	for _, bb := range []struct {
		name    string
		options outbound.SocksOptions
		script  func(*net.TCPConn)
	}{
		{"plain", v5, say(closes, one(takesNone), one(granted))},
		{"user", v5user, say(closes, one(takesUser), one(userOK), one(granted))},
		{"user, pipelined", piped(v5user), say(closes, one(takesUser+userOK+granted))},
	} {
		b.Run(bb.name, func(b *testing.B) {
			o := bb.options
			o.Server, o.Via = flow.AddrTarget(outboundtest.Serve(b, loopback, bb.script)), newDirect(b, nil)
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
		})
	}
}
