package engine_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack/stacktest"
)

// TestTCP: whatever the way, what a client says and hears comes through, over
// both IP versions, half-closed connections included; and there is a record of
// it.
func TestTCP(t *testing.T) {
	echo := echoTCP(t)
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"echo.test": enginetest.Loopback})
	far := outboundtest.Names{"echo.test": {enginetest.Loopback}}
	near := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	last := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: far, User: "ann", Password: "opensesame"})
	old := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: far})
	const text = `
upstreams:
  five:  {url: socks5h://%[1]s, user: ann, password: opensesame}
  here:  {url: socks5://%[1]s, user: ann, password: opensesame}
  four:  socks4a://%[2]s
  near:  socks5h://%[3]s
  chain: {url: socks5h://%[1]s, user: ann, password: opensesame, via: near}
rules:
  - {to: 10.0.0.0/8, via: drop}
  - {to: echo.test, via: %[4]s}
dns: {resolvers: ["%[5]s"]}
`
	for _, c := range []struct{ via, hops string }{
		{"direct", ""}, {"five", ""}, {"here", ""}, {"four", ""}, {"chain", "near > chain"},
	} {
		t.Run(c.via, func(t *testing.T) {
			l := enginetest.Start(t, text, last.Target(), old.Target(), near.Target(), c.via, dns.Addr)
			for _, network := range []string{"ip4", "ip6"} {
				said := strings.Repeat("x", 100_000)
				if got := exchange(t, l.MustDial(network, "echo.test", echo.Port()), said); got != "hello "+said {
					t.Errorf("%s: got %d bytes back, want hello and the %d that were sent", network, len(got), len(said))
				}
				l.Next().Has(t, enginetest.Record{
					"net": "tcp", "dst": net.JoinHostPort("echo.test", portOf(echo)), "rule": "2", "line": "10", "out": c.via, "hops": c.hops,
					"up": "100000", "down": "100006", "end": "eof", "err": "",
				})
			}
			if pins := l.Engine.Stats().Pool.Pins; pins != 0 {
				t.Errorf("%d leases are pinned after their flows, want none", pins)
			}
		})
	}
}

// exchange sends text, ends its direction and returns what comes back.
func exchange(t testing.TB, c *stacktest.Conn, text string) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(enginetest.Patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// echoTCP returns a server that says hello, then repeats everything once the
// client has said all: what comes back has passed a half-closed connection.
func echoTCP(t testing.TB) netip.AddrPort {
	return outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		io.WriteString(c, "hello ")
		b, err := io.ReadAll(c)
		if err == nil {
			c.Write(b)
		}
	})
}

func portOf(a netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// TestNamesGoToTheLastHopOnly: what only the far end should know is told to
// nobody on the way, nor to a resolver of this machine. What is sent to an
// address goes as the address.
func TestNamesGoToTheLastHopOnly(t *testing.T) {
	echo := echoTCP(t)
	dns := enginetest.StartDNS(t, nil)
	names := outboundtest.Names{"only-the-last-knows.test": {enginetest.Loopback}}
	first := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	second := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	last := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names})
	l := enginetest.Start(t, `
upstreams:
  first:  socks5h://%s
  second: {url: socks4a://%s, via: first}
  last:   {url: socks5h://%s, via: second}
rules: [{via: last}]
dns: {resolvers: ["%s"]}
`, first.Target(), second.Target(), last.Target(), dns.Addr)

	if got := exchange(t, l.MustDial("ip4", "only-the-last-knows.test", echo.Port()), "said"); got != "hello said" {
		t.Fatalf("got %q", got)
	}
	for _, hop := range []struct {
		name   string
		server *outboundtest.Server
		want   socks.Addr
	}{
		{"first", first, socks.Addr{IP: enginetest.Loopback, Port: second.Target().Port}},
		{"second", second, socks.Addr{IP: enginetest.Loopback, Port: last.Target().Port}},
		{"last", last, socks.Addr{Name: "only-the-last-knows.test", Port: echo.Port()}},
	} {
		if asked := hop.server.Requests(); len(asked) != 1 || asked[0].Addr != hop.want {
			t.Errorf("%s was asked for %v, want %v alone", hop.name, asked, hop.want)
		}
	}
	if asked := dns.Questions(); len(asked) > 0 {
		t.Errorf("a resolver of this machine was asked for %q", asked)
	}
}

// TestRefusalIsTold: the client's connect fails as the last hop says, at once,
// and the record says who said what. The client of this test knows only some of
// the ICMP errors; those that Linux knows are tested with Linux, in cmd/tunroute.
func TestRefusalIsTold(t *testing.T) {
	replies := map[string]enginetest.Script{
		"refused.test":  {Reply: socks.ReplyRefused},
		"net.test":      {Reply: socks.ReplyNetUnreachable},
		"host.test":     {Reply: socks.ReplyHostUnreachable},
		"eof.test":      {EOF: true},
		"never.test":    {Silent: true},
		"answered.test": {Reply: socks.ReplySucceeded, Serve: func(c net.Conn) { io.WriteString(c, "hello") }},
	}
	far := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script { return replies[r.Addr.Name] })
	near := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	l := enginetest.Start(t, `
upstreams:
  near: socks5h://%s
  far:  {url: socks5h://%s, via: near}
  gone: socks5h://%s
rules:
  - {to: gone.test, via: gone}
  - {to: .test, via: far}
timeouts: {request: 3s} # never.test takes as long
`, near.Target(), far, closed)
	for _, c := range []struct {
		network, name, end, err string
		errno                   error
	}{
		{"ip4", "refused.test", "refused", "hop 2 of 2 (far): request: connection refused (reply 5)", syscall.ECONNREFUSED},
		{"ip6", "refused.test", "refused", "hop 2 of 2 (far): request: connection refused (reply 5)", syscall.ECONNREFUSED},
		{"ip4", "net.test", "failed", "hop 2 of 2 (far): request: network unreachable (reply 3)", syscall.ENETUNREACH},
		{"ip6", "net.test", "failed", "hop 2 of 2 (far): request: network unreachable (reply 3)", syscall.ENETUNREACH},
		{"ip4", "host.test", "failed", "hop 2 of 2 (far): request: host unreachable (reply 4)", syscall.EHOSTUNREACH},
		{"ip4", "eof.test", "failed", "hop 2 of 2 (far): request: ", syscall.EHOSTUNREACH},
		{"ip4", "never.test", "failed", "hop 2 of 2 (far): request: ", syscall.EHOSTUNREACH},
		{"ip4", "gone.test", "failed", "gone: connect: ", syscall.EHOSTUNREACH},
	} {
		conn, err := l.Dial(c.network, c.name, 80)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, c.errno) {
			t.Errorf("%s by %s: %v, want %v", c.name, c.network, err, c.errno)
		}
		l.Next().Has(t, enginetest.Record{"dst": c.name + ":80", "end": c.end, "err": c.err, "up": "0", "down": "0"})
	}

	// And all the while the server is as good as ever.
	if got := exchange(t, l.MustDial("ip4", "answered.test", 80), ""); got != "hello" {
		t.Errorf("got %q", got)
	}
}

// TestOrphanIsRefused: a fake address without a name, from an answer of before a
// restart, leads nowhere: not to a server, whatever the rules say of addresses.
func TestOrphanIsRefused(t *testing.T) {
	far := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\n", far.Target())
	four, six := netip.MustParseAddrPort("198.19.1.2:80"), netip.MustParseAddrPort("[fd74:756e:726f::1:2]:80")
	if _, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, four); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("TCP to %s: %v, want EHOSTUNREACH", four, err)
	}
	l.Next().Has(t, enginetest.Record{"net": "tcp", "dst": four.String(), "out": "", "rule": "", "end": "orphan"})
	for _, to := range []netip.AddrPort{four, six} {
		if err := sendUDP(t, l, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to %s: %v, want ECONNREFUSED", to, err)
		}
		l.Next().Has(t, enginetest.Record{"net": "udp", "dst": to.String(), "out": "", "rule": "", "end": "orphan"})
	}
	if asked := far.Requests(); len(asked) > 0 {
		t.Errorf("the server was asked for %v", asked)
	}
	if n := l.Engine.Stats().Router.Orphans; n != 3 {
		t.Errorf("%d orphans are counted, want 3", n)
	}
}

// TestReservedAddresses: the resolver and the device answer for themselves. They
// serve DNS and nothing else, and answer a ping.
func TestReservedAddresses(t *testing.T) {
	l := enginetest.Start(t, "rules: [{via: direct}]\n")
	addrs, err := engine.AddrsOf(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{addrs.Resolver4, addrs.Resolver6, addrs.Device4, addrs.Device6} {
		to := netip.AddrPortFrom(a, 80)
		if _, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("TCP to %s: %v, want ECONNREFUSED", to, err)
		}
		if err := sendUDP(t, l, to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to %s: %v, want ECONNREFUSED", to, err)
		}
		if err := l.Host.Ping(enginetest.Within(t), a, 56); err != nil {
			t.Error(err)
		}
	}
	if n := l.Engine.Stats().Router.TCP; n != 0 {
		t.Errorf("the router has seen %d of these flows, want none", n)
	}
}

// TestEcho: a name answers a ping for itself: no proxy could carry it further.
func TestEcho(t *testing.T) {
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://127.0.0.1:9'}\nrules: [{via: far}]\n")
	for _, network := range []string{"ip4", "ip6"} {
		if err := l.Host.Ping(enginetest.Within(t), l.Lookup(network, "host.test"), 1000); err != nil {
			t.Error(err)
		}
	}
}

// TestEchoRefused: a ping to an address that leads to a proxy, or to an orphan,
// is told at once that it has not arrived.
func TestEchoRefused(t *testing.T) {
	w := stacktest.NewWire(0)
	enginetest.StartOn(t, w, enginetest.Parse(t, "upstreams: {far: 'socks5h://127.0.0.1:9'}\nrules: [{via: far}]\n"))
	for _, c := range []struct {
		from, to             string
		protocol, kind, code byte
	}{
		{"10.0.0.2", "192.0.2.1", 1, 3, 1},
		{"10.0.0.2", "198.19.1.2", 1, 3, 1},
		{"fd00::2", "2001:db8::1", 58, 1, 3},
	} {
		from, to := netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)
		if err := w.Send(stacktest.Echo(from, to, 1, 1, nil)); err != nil {
			t.Fatal(err)
		}
		p, err := w.Recv(enginetest.Within(t))
		if err != nil {
			t.Fatal(err)
		}
		protocol, rest := p[9], p[20:]
		if to.Is6() {
			protocol, rest = p[6], p[40:]
		}
		if protocol != c.protocol || rest[0] != c.kind || rest[1] != c.code {
			t.Errorf("ping %s: protocol %d type %d code %d, want %d, %d and %d",
				to, protocol, rest[0], rest[1], c.protocol, c.kind, c.code)
		}
	}
}
