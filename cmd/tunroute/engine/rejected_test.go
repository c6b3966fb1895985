package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// TestNameLeadsToRejectedAddress: a name that is resolved here does not lead to what a
// rule about addresses rejects, by TCP nor by UDP, unless a rule above that one is
// about the name; and the rules say nothing of the servers on the way.
func TestNameLeadsToRejectedAddress(t *testing.T) {
	echo := echoUDP(t)
	web := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) { io.Copy(c, c) })
	server := namedServer(t, "s", nil)
	old := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		t.Errorf("a server was asked for %v", r.Addr)
		return enginetest.Script{Reply: socks.ReplyRefused}
	})
	dns := enginetest.StartDNS(t, map[string]netip.Addr{
		"sly.test": enginetest.Loopback, "good.test": enginetest.Loopback, "old.test": enginetest.Loopback, "proxy.test": enginetest.Loopback,
	})
	l := enginetest.Start(t, `
upstreams: {s: "socks5h://proxy.test:%d", old: "socks5://%s"}
rules:
  - {to: good.test, via: direct}
  - {to: www.test, via: s}
  - {to: 127.0.0.0/8, via: reject}
  - {to: old.test, via: old}
  - {via: direct}
dns: {resolvers: ["%s"]}
`, server.Port(), old, dns.Addr)

	for _, name := range []string{"sly.test", "old.test"} {
		if c, err := l.Dial("ip4", name, web.Port()); !errors.Is(err, syscall.EHOSTUNREACH) { // as Linux shows "prohibited"
			t.Errorf("connect to %s: %v", name, err)
			if err == nil {
				c.Close()
			}
		}
		l.Next().Has(t, enginetest.Record{"dst": fmt.Sprintf("%s:%d", name, web.Port()), "end": "rejected", "err": name + " leads to an address that is rejected by rule"})
	}
	if err := sendUDP(t, l, netip.AddrPortFrom(l.Lookup("ip4", "sly.test"), echo.Port())); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram to sly.test: %v", err)
	}
	c := l.MustDial("ip4", "good.test", web.Port())
	c.Close()
	openOn(t, l, "s").Close() // "www.test"
}
