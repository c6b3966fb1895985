package engine_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack/stacktest"
)

// sendUDP sends a datagram from a connected socket of the client machine and
// returns the error that the socket learns of.
func sendUDP(t testing.TB, l *enginetest.Lab, to netip.AddrPort) error {
	t.Helper()
	c, err := l.Host.DialUDP(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	// A refusal does not wake the reader of netstack's sockets.
	for end := time.Now().Add(enginetest.Patience); time.Now().Before(end); {
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return os.ErrDeadlineExceeded
}

// echoUDP returns a server that sends every datagram back.
func echoUDP(t testing.TB) netip.AddrPort {
	return outboundtest.ServeUDP(t, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, b []byte) {
		c.WriteToUDPAddrPort(b, from)
	})
}

// listen opens a socket of the client machine at its address of a family.
func listen(t testing.TB, l *enginetest.Lab, is4 bool) *stacktest.UDPConn {
	t.Helper()
	at := l.Host.Addr6()
	if is4 {
		at = l.Host.Addr4()
	}
	c, err := l.Host.ListenUDP(netip.AddrPortFrom(at, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(enginetest.Patience))
	return c
}

// hear reads a datagram and returns what it says and who says it.
func hear(t testing.TB, c net.PacketConn) (string, netip.AddrPort) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n]), from.(*net.UDPAddr).AddrPort()
}

func say(t testing.TB, c net.PacketConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteTo([]byte(text), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
}

// TestUDP: datagrams of all sizes reach their target and are answered from the
// address that the client sent them to, whatever the way. Fragments are put
// together before and made after it.
func TestUDP(t *testing.T) {
	echo := echoUDP(t)
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"echo.test": enginetest.Loopback})
	names := outboundtest.Names{"echo.test": {enginetest.Loopback}}
	far := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names})
	for _, via := range []string{"direct", "far", "here"} {
		t.Run(via, func(t *testing.T) {
			l := enginetest.Start(t, `
upstreams:
  far:  socks5h://%[1]s
  here: socks5://%[1]s
rules: [{proto: udp, via: %[2]s}]
dns: {resolvers: ["%[3]s"]}
timeouts: {udp-idle: 3s}
`, far.Target(), via, dns.Addr)
			for _, network := range []string{"ip4", "ip6"} {
				to := netip.AddrPortFrom(l.Lookup(network, "echo.test"), echo.Port())
				c := listen(t, l, to.Addr().Is4())
				for _, size := range []int{0, 1, 1200, 1472, 9000} {
					text := string(bytes.Repeat([]byte{'x'}, size))
					say(t, c, to, text)
					if got, from := hear(t, c); got != text || from != to {
						t.Errorf("%s: got %d bytes from %v, want %d from %v", network, len(got), from, size, to)
					}
				}
				l.Next().Has(t, enginetest.Record{
					"net": "udp", "dst": net.JoinHostPort("echo.test", portOf(echo)), "rule": "1", "out": via,
					"up": "11673", "down": "11673", "end": "idle", "err": "",
				})
			}
		})
	}
}

// relay is a SOCKS5 server whose UDP relay is the test: it takes the client's
// datagrams, headers and all, and may answer as anybody.
type relay struct {
	at   *net.UDPConn
	addr netip.AddrPort // of the server
	peer net.Addr       // the engine's socket
}

func startRelay(t testing.TB) *relay {
	t.Helper()
	r := new(relay)
	at, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(enginetest.Loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { at.Close() })
	at.SetDeadline(time.Now().Add(enginetest.Patience))
	r.at = at
	r.addr = outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		socks.ReadVersion(c)
		socks.ReadMethods(c)
		c.Write(socks.AppendMethod(nil, socks.MethodNone))
		if req, err := socks.ReadRequest(c); err != nil || req.Command != socks.UDPAssociate {
			c.Write(socks.AppendReply(nil, socks.ReplyCommand, netip.AddrPort{}))
			return
		}
		c.Write(socks.AppendReply(nil, socks.ReplySucceeded, at.LocalAddr().(*net.UDPAddr).AddrPort()))
		io.Copy(io.Discard, c) // the association lives as long as this
	})
	return r
}

// next returns the target and the payload of the next datagram.
func (r *relay) next(t testing.TB) (target, payload string) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, from, err := r.at.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	r.peer = from
	h, text, err := socks.ParseUDP(b[:n])
	if err != nil {
		t.Fatal(err)
	}
	host := string(h.Name)
	if host == "" {
		host = h.Addr.Addr().String()
	}
	return net.JoinHostPort(host, portOf(netip.AddrPortFrom(enginetest.Loopback, h.Addr.Port()))), string(text)
}

// answer sends a datagram to the client as from had.
func (r *relay) answer(t testing.TB, from, text string) {
	t.Helper()
	a := netip.MustParseAddrPort(from)
	b, err := socks.AppendUDPHeader(nil, socks.Addr{IP: a.Addr(), Port: a.Port()})
	if err == nil {
		_, err = r.at.WriteTo(append(b, text...), r.peer)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestUDPFullCone: one client port is one association, whoever it sends to; and
// whoever sends to that reaches the client.
func TestUDPFullCone(t *testing.T) {
	r := startRelay(t)
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\n", r.addr)
	c := listen(t, l, true)
	name := netip.AddrPortFrom(l.Lookup("ip4", "name.test"), 4000)
	address := netip.MustParseAddrPort("192.0.2.1:5000")

	say(t, c, name, "to a name")
	if to, text := r.next(t); to != "name.test:4000" || text != "to a name" {
		t.Errorf("the relay got %q for %s, want it for the name", text, to)
	}
	peer := r.peer.String()
	say(t, c, address, "to an address")
	if to, text := r.next(t); to != address.String() || text != "to an address" {
		t.Errorf("the relay got %q for %s, want it for %s", text, to, address)
	}
	if r.peer.String() != peer {
		t.Errorf("a second socket was opened for the second target")
	}
	// The name's answer comes from an address that the client has never seen.
	r.answer(t, "198.51.100.7:4000", "from the name")
	if text, from := hear(t, c); text != "from the name" || from != name {
		t.Errorf("got %q from %v, want it from %v", text, from, name)
	}
	r.answer(t, address.String(), "from the address")
	if text, from := hear(t, c); text != "from the address" || from != address {
		t.Errorf("got %q from %v, want it from %v", text, from, address)
	}
	r.answer(t, "203.0.113.9:99", "from a stranger")
	if text, from := hear(t, c); text != "from a stranger" || from.String() != "203.0.113.9:99" {
		t.Errorf("got %q from %v, want it from 203.0.113.9:99", text, from)
	}
	if s := l.Engine.Stats().Router; s.Sessions != 1 || s.Paths != 2 {
		t.Errorf("%d sessions with %d paths, want 1 and 2", s.Sessions, s.Paths)
	}
}

// TestNoUDPIsToldAtOnce: where the way carries no UDP the client hears of it, so
// that QUIC falls back to TCP at once.
func TestNoUDPIsToldAtOnce(t *testing.T) {
	old := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	deaf := outboundtest.StartServer(t, outboundtest.ServerOptions{NoUDP: true})
	l := enginetest.Start(t, `
upstreams: {old: 'socks4a://%s', deaf: 'socks5h://%s'}
rules:
  - {to: old.test, via: old}
  - {to: deaf.test, via: deaf}
`, old.Target(), deaf.Target())
	for _, c := range []struct{ name, end string }{
		{"old.test", "failed"}, {"deaf.test", "failed"}, {"deaf.test", "failed"}, {"other.test", "rejected"},
	} {
		for _, network := range []string{"ip4", "ip6"} {
			err := sendUDP(t, l, netip.AddrPortFrom(l.Lookup(network, c.name), 443))
			if c.end == "rejected" {
				// ICMP's "prohibited" is no error to netstack's sockets.
				l.Next().Has(t, enginetest.Record{"dst": c.name + ":443", "rule": "default", "out": "reject", "end": c.end})
				break
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s by %s: %v, want ECONNREFUSED", c.name, network, err)
			}
			l.Next().Has(t, enginetest.Record{"net": "udp", "dst": c.name + ":443", "end": c.end, "err": "no UDP"})
		}
	}
}
