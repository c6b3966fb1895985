package engine_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/flow"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack/stacktest"
)

// twoServers returns two SOCKS servers that say their names to whoever connects,
// and then repeat what they hear.
func twoServers(t *testing.T) (a, b netip.AddrPort) {
	named := func(name string) netip.AddrPort {
		return enginetest.StartScripted(t, func(socks.Request) enginetest.Script {
			return enginetest.Script{Serve: func(c net.Conn) {
				io.WriteString(c, name)
				io.Copy(c, c)
			}}
		})
	}
	return named("a"), named("b")
}

// readByte returns the next byte of a connection as text.
func readByte(t testing.TB, r io.Reader) string {
	t.Helper()
	b := make([]byte, 1)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReload: a new config decides the flows that come then; those that are open
// keep their way, and names their addresses.
func TestReload(t *testing.T) {
	a, b := twoServers(t)
	const text = "upstreams: {a: 'socks5h://%s', b: 'socks5h://%s'}\nrules: [{via: %s}]\n"
	l := enginetest.Start(t, text, a, b, "a")
	addr := l.Lookup("ip4", "www.test")
	old := l.MustDial("ip4", "www.test", 80)
	if got := readByte(t, old); got != "a" {
		t.Fatalf("connected to %q, want a", got)
	}

	if err := l.Engine.Reload(enginetest.Parse(t, text, a, b, "b")); err != nil {
		t.Fatal(err)
	}
	if got := readByte(t, l.MustDial("ip4", "www.test", 80)); got != "b" {
		t.Errorf("a new flow is connected to %q, want b", got)
	}
	if _, err := io.WriteString(old, "x"); err != nil {
		t.Fatal(err)
	}
	if got := readByte(t, old); got != "x" {
		t.Errorf("the old flow says %q", got)
	}
	if got := l.Lookup("ip4", "www.test"); got != addr {
		t.Errorf("the name has the address %s now, and had %s", got, addr)
	}

	if err := l.Engine.Reload(enginetest.Parse(t, text, a, b, "reject")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Dial("ip4", "www.test", 81); err == nil {
		t.Error("a flow that is rejected now was connected")
	}
	for rec := l.Next(); rec["dst"] != "www.test:81"; rec = l.Next() {
	}
}

// TestReloadOfAServerIsForOpenSocketsToo: what a UDP socket sends to somebody new goes
// by the server that the upstream has now, and what it has sent to before by the one
// from then. A reload that leaves the upstream as it was changes nothing.
func TestReloadOfAServerIsForOpenSocketsToo(t *testing.T) {
	before, after := startRelay(t), startRelay(t)
	deaf := enginetest.StartScripted(t, func(socks.Request) enginetest.Script { return enginetest.Script{Reply: socks.ReplyCommand} })
	const text = "upstreams: {a: 'socks5h://%s'%s}\nrules: [{via: a}]\n"
	l := enginetest.Start(t, text, before.addr, "")
	reload := func(server netip.AddrPort, more string) {
		t.Helper()
		if err := l.Engine.Reload(enginetest.Parse(t, text, server, more)); err != nil {
			t.Fatal(err)
		}
	}
	c := listen(t, l, true)
	get := func(r *relay, to string) {
		t.Helper()
		say(t, c, netip.MustParseAddrPort(to), "x")
		if got, _ := r.next(t); got != to {
			t.Errorf("the relay got a datagram for %s, want %s", got, to)
		}
	}
	get(before, "192.0.2.1:1000")
	reload(after.addr, "")
	get(after, "192.0.2.1:1001")
	get(before, "192.0.2.1:1000")
	peer := after.peer.String()
	reload(after.addr, ", b: 'socks5h://192.0.2.9'")
	if get(after, "192.0.2.1:1002"); after.peer.String() != peer {
		t.Error("another association with a server that is the same")
	}

	reload(deaf, "")
	if err := sendUDP(t, l, netip.MustParseAddrPort("192.0.2.1:1003")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram by a server without UDP: %v, want %v", err, syscall.ECONNREFUSED)
	}
	reload(after.addr, "")
	get(after, "192.0.2.1:1004")
}

// TestReloadChangesNames: the mode of a name may change; what was leased stays
// good.
func TestReloadChangesNames(t *testing.T) {
	a, _ := twoServers(t)
	there := netip.MustParseAddr("192.0.2.80")
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"www.test": there})
	const text = "upstreams: {a: 'socks5h://%s'}\nnames: {default: %s}\nrules: [{via: a}]\ndns: {resolvers: ['%s']}\n"
	l := enginetest.Start(t, text, a, "remote", dns.Addr)
	fake := l.Lookup("ip4", "www.test")
	if err := l.Engine.Reload(enginetest.Parse(t, text, a, "local", dns.Addr)); err != nil {
		t.Fatal(err)
	}
	if got := l.Lookup("ip4", "www.test"); got != there {
		t.Errorf("the name is %s, want %s", got, there)
	}
	c, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, netip.AddrPortFrom(fake, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := readByte(t, c); got != "a" {
		t.Errorf("the old address leads to %q", got)
	}
}

// TestReloadRefused: what only a new start can change, or what cannot be made, is
// refused and named, and everything stays as it was.
func TestReloadRefused(t *testing.T) {
	a, b := twoServers(t)
	const text = "upstreams: {a: 'socks5h://%s', b: 'socks5h://%s'}\nrules: [{via: %s}]\n"
	l := enginetest.Start(t, text, a, b, "a")
	for part, more := range map[string]string{
		"tun.mtu":           "tun: {mtu: 9000}",
		"tun":               "tun: off\nlisten: {socks: 127.0.0.1}",
		"dns.capture":       "dns: {capture: false}",
		"listen.socks":      "listen: {socks: 127.0.0.1}",
		"limits.flows":      "limits: {flows: 7}",
		"timeouts.udp-idle": "timeouts: {udp-idle: 7s}",
	} {
		err := l.Engine.Reload(enginetest.Parse(t, text+more, a, b, "b"))
		if err == nil || !strings.HasPrefix(err.Error(), part+" has changed") {
			t.Errorf("Reload with another %s: %v, want that it takes a new start", part, err)
		}
	}
	broken := enginetest.Parse(t, text, a, b, "b")
	broken.Upstreams[1].Server = flow.Target{}
	if err := l.Engine.Reload(broken); err == nil || !strings.Contains(err.Error(), "upstream b: ") {
		t.Errorf("Reload with an upstream that cannot be: %v", err)
	}
	if got := readByte(t, l.MustDial("ip4", "www.test", 80)); got != "a" {
		t.Errorf("after all that a flow is connected to %q, want a", got)
	}
}

// TestNewRefused: an engine that cannot be is not made, and the error says which
// part of the config it is about.
func TestNewRefused(t *testing.T) {
	cfg := enginetest.Parse(t, "upstreams: {a: 'socks5h://127.0.0.1'}\nrules: [{via: a}]\n")
	cfg.Upstreams[0].Server = flow.Target{}
	w := stacktest.NewWire(0)
	if _, err := engine.New(cfg, engine.Options{Device: w}); err == nil || !strings.Contains(err.Error(), "upstream a: ") {
		t.Errorf("New with an upstream that cannot be: %v", err)
	}
	if len(engine.Check(cfg)) == 0 {
		t.Error("Check says nothing about it")
	}
	cfg = enginetest.Parse(t, "rules: [{via: direct}]\ndns: {range4: 198.18.0.0/24, range6: 'fd00::/112'}\n")
	if _, err := engine.New(cfg, engine.Options{Device: w}); err != nil {
		t.Errorf("New with the smallest ranges: %v", err)
	}
	if _, err := engine.New(cfg, engine.Options{}); err == nil {
		t.Error("an engine without a device was made")
	}
}

// TestWayToServerRefused: a server whose own address refuses is a broken way, not
// a target that refuses.
func TestWayToServerRefused(t *testing.T) {
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	l := enginetest.Start(t, "upstreams: {gone: 'socks5h://%s'}\nrules: [{via: gone}]\n", closed)
	if _, err := l.Dial("ip4", "www.test", 80); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("got %v, want EHOSTUNREACH", err)
	}
	l.Next().Has(t, enginetest.Record{"end": "failed", "err": "gone: connect: "})
}
