package engine_test

import (
	"net/netip"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
)

// TestServerNameIsKept: the name of a server is looked up once for many flows, and
// again when its time has passed, so that the server may move. A reload asks again only where
// others are asked.
func TestServerNameIsKept(t *testing.T) {
	server := namedServer(t, "a", nil)
	dns := enginetest.StartDNS(t, nil)
	dns.Set("stays.test", enginetest.Loopback, 24*3600)
	dns.Set("moves.test", netip.MustParseAddr("127.0.0.77"), 1) // nobody listens there
	const text = `
upstreams:
  stays: socks5h://stays.test:%[1]d
  moves: socks5h://moves.test:%[1]d
rules: [{to: moved.test, via: moves}, {via: stays}]
dns:
  resolvers: ["%[2]s"]
`
	l := enginetest.Start(t, text, server.Port(), dns.Addr)
	stays := func(asked int) {
		t.Helper()
		for range 20 {
			openOn(t, l, "a").Close()
		}
		if n := dns.Asked("stays.test"); n != asked {
			t.Errorf("%d questions about the server that stays, want %d", n, asked)
		}
	}
	stays(2) // one of each family
	if c, err := l.Dial("ip4", "moved.test", 80); err == nil {
		c.Close()
		t.Error("a flow got through to where no server is")
	}
	dns.Set("moves.test", enginetest.Loopback, 1)
	enginetest.Eventually(t, "a flow goes where the server has moved to", func() bool {
		c, err := l.Dial("ip4", "moved.test", 80)
		if err != nil {
			return false
		}
		defer c.Close()
		return readByte(t, c) == "a"
	})
	if err := l.Engine.Reload(enginetest.Parse(t, text, server.Port(), dns.Addr)); err != nil {
		t.Fatal(err)
	}
	stays(2)
	if err := l.Engine.Reload(enginetest.Parse(t, text+"  strategy: race\n", server.Port(), dns.Addr)); err != nil {
		t.Fatal(err)
	}
	stays(4)
}
