package engine_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/stack/stacktest"
)

// TestDNS: queries by UDP and by TCP, to whichever server the client was told
// of, get the same fake addresses, and these lead back to the name.
func TestDNS(t *testing.T) {
	dns := enginetest.StartDNS(t, nil)
	l := enginetest.Start(t, "rules: [{via: reject}]\ndns: {resolvers: ['%s']}\n", dns.Addr)
	addrs, err := engine.AddrsOf(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	ranges := map[string]netip.Prefix{"ip4": config.Default().DNS.Range4, "ip6": config.Default().DNS.Range6}
	for _, network := range []string{"ip4", "ip6"} {
		want := l.Lookup(network, "www.Example.test")
		if !ranges[network].Contains(want) {
			t.Errorf("%s of a name is %s, want one of %s", network, want, ranges[network])
		}
		for _, server := range []netip.AddrPort{
			netip.AddrPortFrom(addrs.Resolver4, 53),
			netip.AddrPortFrom(addrs.Resolver6, 53),
			enginetest.AnyServer,
			netip.MustParseAddrPort("[2001:db8::53]:53"),
		} {
			for _, transport := range []string{"udp", "tcp"} {
				r := l.Resolver(transport, server)
				got, err := r.LookupNetIP(enginetest.Within(t), network, "WWW.example.test.")
				if err != nil || len(got) != 1 || got[0].Unmap() != want {
					t.Errorf("%s of %s by %s: %v, %v, want %s", network, server, transport, got, err, want)
				}
				names, err := r.LookupAddr(enginetest.Within(t), want.String())
				if err != nil || !slices.Equal(names, []string{"www.example.test."}) {
					t.Errorf("name of %s by %s: %q, %v", want, transport, names, err)
				}
			}
		}
	}
	if _, err := l.Resolver("udp", enginetest.AnyServer).LookupAddr(enginetest.Within(t), "198.19.1.2"); !isNotFound(err) {
		t.Errorf("name of an orphan: %v, want that there is none", err)
	}
	if asked := dns.Questions(); len(asked) > 0 {
		t.Errorf("a resolver of this machine was asked for %q", asked)
	}
}

func isNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

// TestOtherQuestions: what is no address of a name that goes direct is asked of the
// resolver, also where the client asked by TCP.
func TestOtherQuestions(t *testing.T) {
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"txt.test": enginetest.Loopback})
	l := enginetest.Start(t, "rules: [{via: direct}]\ndns: {resolvers: ['%s']}\n", dns.Addr)
	for _, transport := range []string{"udp", "tcp"} {
		texts, err := l.Resolver(transport, enginetest.AnyServer).LookupTXT(enginetest.Within(t), "txt.test.")
		if err != nil || !slices.Equal(texts, []string{"from the resolver"}) {
			t.Errorf("TXT by %s: %q, %v", transport, texts, err)
		}
	}
}

// TestCaptureOff: then only the resolver's own addresses answer, and queries to
// others are flows as all are.
func TestCaptureOff(t *testing.T) {
	r := startRelay(t)
	l := enginetest.Start(t, `
upstreams: {far: 'socks5h://%s'}
rules: [{via: far}]
dns: {capture: false}
`, r.addr)
	addrs, err := engine.AddrsOf(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"udp", "tcp"} {
		for _, server := range []netip.Addr{addrs.Resolver4, addrs.Resolver6} {
			_, err := l.Resolver(transport, netip.AddrPortFrom(server, 53)).LookupNetIP(enginetest.Within(t), "ip4", "www.test.")
			if err != nil {
				t.Errorf("%s by %s: %v", server, transport, err)
			}
		}
	}
	c := listen(t, l, true)
	say(t, c, enginetest.AnyServer, "a query, or not")
	if to, text := r.next(t); to != enginetest.AnyServer.String() || text != "a query, or not" {
		t.Errorf("the relay got %q for %s, want it for %s", text, to, enginetest.AnyServer)
	}
}

// TestLocalNames: a name that is resolved here is asked for here, its flow has
// the true address and the rules see that.
func TestLocalNames(t *testing.T) {
	there := netip.MustParseAddr("192.0.2.80")
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"www.intern.test": there, "www.maybe.test": there})
	far := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	l := enginetest.Start(t, `
upstreams: {far: 'socks5h://%s'}
names: {local: [.intern.test], local-then-remote: [.maybe.test]}
rules:
  - {to: 192.0.2.80, port: 9, via: reject}
  - {to: .maybe.test, via: far}
dns: {resolvers: ["%s"]}
`, far.Target(), dns.Addr)
	for _, name := range []string{"www.intern.test", "www.maybe.test"} {
		if got := l.Lookup("ip4", name); got != there {
			t.Errorf("%s is %s, want %s", name, got, there)
		}
	}
	if _, err := l.Resolver("udp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", "nobody.intern.test."); !isNotFound(err) {
		t.Errorf("a name that there is not: %v", err)
	}
	if got := l.Lookup("ip4", "unknown.maybe.test"); !config.Default().DNS.Range4.Contains(got) {
		t.Errorf("unknown.maybe.test is %s, want a fake address", got)
	}
	_ = sendUDP(t, l, netip.AddrPortFrom(there, 9))
	l.Next().Has(t, enginetest.Record{"dst": "192.0.2.80:9", "rule": "1", "end": "rejected"})
	want := []string{"nobody.intern.test", "unknown.maybe.test", "www.intern.test", "www.maybe.test"}
	if asked := dns.Questions(); !slices.Equal(asked, want) {
		t.Errorf("the resolver was asked for %q, want %q", asked, want)
	}
}

// TestQuestionsByTCPAreBounded: a client that opens one connection after the other is
// refused, and another is not.
func TestQuestionsByTCPAreBounded(t *testing.T) {
	l := enginetest.Start(t, "rules: [{via: reject}]\n")
	const most = 128
	from := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("10.0.0.77"), uint16(port))
	}
	for i := range most {
		c, err := l.Host.DialTCP(enginetest.Within(t), from(10000+i), enginetest.AnyServer)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
	}
	if _, err := l.Host.DialTCP(enginetest.Within(t), from(20000), enginetest.AnyServer); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("one more: %v, want ECONNREFUSED", err)
	}
	if _, err := l.Resolver("tcp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", "www.test."); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// TestQuestionsAreShared: a client whose questions nobody answers leaves the resolver to
// others.
func TestQuestionsAreShared(t *testing.T) {
	const most = 192
	heard := make(chan string, 4*most) // each question may be repeated
	resolver := outboundtest.ServeUDP(t, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, b []byte) {
		var m dnsmessage.Message
		if m.Unpack(b) != nil || len(m.Questions) != 1 {
			return
		}
		if name := m.Questions[0].Name.String(); !strings.HasSuffix(name, "known.test.") {
			heard <- name
			return
		}
		m.Response, m.Additionals = true, nil
		answer, _ := m.Pack()
		c.WriteToUDPAddrPort(answer, from)
	})
	l := enginetest.Start(t, "rules: [{via: direct}]\ndns: {resolvers: ['%s']}\n", resolver)
	ask := func(c net.PacketConn, name string) {
		t.Helper()
		m := dnsmessage.Message{
			Header:    dnsmessage.Header{RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		say(t, c, enginetest.AnyServer, string(b))
	}
	outcome := func(c net.PacketConn) string {
		t.Helper()
		text, _ := hear(t, c)
		var m dnsmessage.Message
		if err := m.Unpack([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return m.Questions[0].Name.String() + " " + m.RCode.String()
	}
	greedy := listen(t, l, true)
	modest, err := l.Host.ListenUDP(netip.MustParseAddrPort("10.0.0.77:5300"))
	if err != nil {
		t.Fatal(err)
	}
	defer modest.Close()
	modest.SetDeadline(time.Now().Add(enginetest.Patience))
	waiting := make(map[string]bool)
	for i := range most {
		ask(greedy, fmt.Sprintf("%d.test.", i))
	}
	for len(waiting) < most {
		waiting[enginetest.Receive(t, "a question", heard)] = true
	}
	ask(greedy, "one.known.test.")
	if got := outcome(greedy); got != "one.known.test. RCodeServerFailure" {
		t.Errorf("the client of so many: %s", got)
	}
	ask(modest, "other.known.test.")
	if got := outcome(modest); got != "other.known.test. RCodeSuccess" {
		t.Errorf("another client: %s", got)
	}
}

// TestListeners: dns.listen answers on sockets of this machine too.
func TestListeners(t *testing.T) {
	at := outboundtest.ClosedPort(t, enginetest.Loopback)
	l := enginetest.Start(t, "rules: [{via: reject}]\ndns: {listen: ['%s']}\n", at)
	want := l.Lookup("ip4", "www.test")
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at.String())
		}}
		enginetest.Eventually(t, "an answer by "+network, func() bool {
			got, err := r.LookupNetIP(enginetest.Within(t), "ip4", "www.test.")
			return err == nil && len(got) == 1 && got[0].Unmap() == want
		})
	}
}

// TestListenerTaken: what listens there already is told at once, and nothing is
// left open.
func TestListenerTaken(t *testing.T) {
	taken, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(enginetest.Loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := outboundtest.ClosedPort(t, enginetest.Loopback)
	w := stacktest.NewWire(0)
	cfg := enginetest.Parse(t, "rules: [{via: reject}]\ndns: {listen: ['%s', '%s']}\n", free, taken.LocalAddr())
	e, err := engine.New(cfg, engine.Options{Device: w})
	if err != nil {
		t.Fatal(err)
	}
	err = e.Run(enginetest.Within(t))
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "dns.listen "+taken.LocalAddr().String()) {
		t.Errorf("Run: %v, want that the address is in use", err)
	}
	l, err := net.Listen("tcp", free.String())
	if err != nil {
		t.Fatalf("the other listener was left open: %v", err)
	}
	l.Close()
	if err := w.Send([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the device was left open: %v", err)
	}
}

// TestListenersAreOurs: another daemon cannot have the same listeners, although a
// daemon has several sockets for each.
func TestListenersAreOurs(t *testing.T) {
	at := outboundtest.ClosedPort(t, enginetest.Loopback)
	const text = "rules: [{via: reject}]\ndns: {listen: ['%s']}\n"
	l := enginetest.Start(t, text, at)
	l.Lookup("ip4", "www.test") // and so it listens
	e, err := engine.New(enginetest.Parse(t, text, at), engine.Options{Device: stacktest.NewWire(0)})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(enginetest.Within(t)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Run: %v, want that the address is in use", err)
	}
}
