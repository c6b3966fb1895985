package engine_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/socks"
)

// TestFlowLimit: one flow more than the limit is refused, with a enginetest.Record, and
// there is room again when another has ended.
func TestFlowLimit(t *testing.T) {
	a, _ := twoServers(t)
	l := enginetest.Start(t, "upstreams: {a: 'socks5h://%s'}\nrules: [{via: a}]\nlimits: {flows: 2}\n", a)
	first := l.MustDial("ip4", "www.test", 80)
	l.MustDial("ip4", "www.test", 80)
	if _, err := l.Dial("ip4", "www.test", 80); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the third of two: %v, want ECONNREFUSED", err)
	}
	l.Next().Has(t, enginetest.Record{"end": "limit", "up": "0"})
	first.Close()
	if end := l.Next()["end"]; end != "eof" && end != "client" { // by whether the server has said its word first
		t.Errorf("the first ended by %q", end)
	}
	l.MustDial("ip4", "www.test", 80)
}

// TestSilentFlow: the client is told by a reset of a flow that nobody has used for long.
func TestSilentFlow(t *testing.T) {
	a, _ := twoServers(t)
	l := enginetest.Start(t, "upstreams: {a: 'socks5h://%s'}\nrules: [{via: a}]\ntimeouts: {tcp-idle: 200ms}\n", a)
	c := l.MustDial("ip4", "www.test", 80)
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
	l.Next().Has(t, enginetest.Record{"end": "idle", "err": "timeouts.tcp-idle"})
}

// TestRuleLimit: a flow more than a rule lets through is refused, also after a reload that
// has the rule still, for TCP and UDP; other rules are as they were.
func TestRuleLimit(t *testing.T) {
	a, _ := twoServers(t)
	const upstreams = "upstreams: {a: 'socks5h://%s'}\n"
	const limited = "  - {to: .limited.test, via: a, limits: {sessions: 1, per: source}}\n"
	l := enginetest.Start(t, upstreams+"rules:\n"+limited+"  - {via: a}\n", a)
	first := l.MustDial("ip4", "www.limited.test", 80)
	over := func() {
		t.Helper()
		if _, err := l.Dial("ip4", "mail.limited.test", 80); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the second of one: %v, want ECONNREFUSED", err)
		}
		l.Next().Has(t, enginetest.Record{"end": "limit", "err": "more than 1 flows of one source, which the rule allows"})
	}
	over()
	l.MustDial("ip4", "www.test", 80).Close()
	l.Next()
	if err := l.Engine.Reload(enginetest.Parse(t, upstreams+"rules:\n  - {to: new.test, via: reject}\n"+limited+"  - {via: a}\n", a)); err != nil {
		t.Fatal(err)
	}
	over()
	if n := l.Engine.Stats().Router.Limited; n != 2 {
		t.Errorf("%d flows limited, want 2", n)
	}
	first.Close()
	l.Next()
	l.MustDial("ip4", "mail.limited.test", 80)
}

// TestRateLimit: of all flows, and of those of a source, whatever the rule.
func TestRateLimit(t *testing.T) {
	a, _ := twoServers(t)
	l := enginetest.Start(t, "upstreams: {a: 'socks5h://%s'}\nrules: [{via: a}]\nlimits: {rate: 3/h, rate-per-source: 2/h}\n", a)
	for range 2 {
		l.MustDial("ip4", "www.test", 80)
	}
	for range 5 { // which use up nothing of what is for all
		if _, err := l.Dial("ip4", "www.test", 80); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("more than two: %v, want ECONNREFUSED", err)
		}
		l.Next().Has(t, enginetest.Record{"end": "limit", "err": "more than 2/h new flows of one source, which limits.rate-per-source allows"})
	}
	c, err := l.Host.DialTCP(enginetest.Within(t), netip.MustParseAddrPort("10.0.0.77:0"), netip.AddrPortFrom(l.Lookup("ip4", "www.test"), 80))
	if err != nil {
		t.Fatalf("another source: %v", err)
	}
	c.Close()
}

// TestUDPBandwidth: datagrams that go too fast are lost, and counted.
func TestUDPBandwidth(t *testing.T) {
	r := startRelay(t)
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far, bandwidth: {up: 1kB/s}}]\n", r.addr)
	to := netip.MustParseAddrPort("192.0.2.1:5000")
	c := listen(t, l, true)
	// The first waits for the association, and is within the burst.
	say(t, c, to, "first")
	r.next(t)
	const sent = 100
	for range sent {
		say(t, c, to, strings.Repeat("x", 1000))
	}
	enginetest.Eventually(t, "all are sent or lost", func() bool { return l.Engine.Stats().Router.UDPLimited >= sent-17-1 })
	if n := l.Engine.Stats().Router.UDPLimited; n < sent-17-1 || n > sent-15 {
		t.Errorf("%d datagrams of %d lost, want all but the 16 of a burst", n, sent)
	}
}

// TestHalfOpenLimit: a source with too many attempts that wait has to wait with
// the next; others do not.
func TestHalfOpenLimit(t *testing.T) {
	answer := make(chan struct{})
	far := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		if r.Addr.Name == "slow.test" {
			<-answer
		}
		return enginetest.Script{Serve: func(c net.Conn) { c.Write([]byte("a")) }}
	})
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\nlimits: {half-open-per-source: 1}\n", far)
	slow := netip.AddrPortFrom(l.Lookup("ip4", "slow.test"), 80)
	fast := netip.AddrPortFrom(l.Lookup("ip4", "fast.test"), 80)

	dialled := make(chan error, 1)
	go func() {
		c, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, slow)
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	enginetest.Eventually(t, "the slow one waits", func() bool { return l.Engine.Stats().Stack.HalfOpen == 1 })

	ctx, cancel := context.WithCancel(context.Background())
	second := make(chan error, 1)
	go func() {
		c, err := l.Host.DialTCP(ctx, netip.AddrPort{}, fast)
		if err == nil {
			c.Close()
		}
		second <- err
	}()
	enginetest.Eventually(t, "an attempt is counted as dropped", func() bool { return l.Engine.Stats().Stack.HalfOpenDropped > 0 })
	cancel()
	if err := enginetest.Receive(t, "the second attempt ends", second); err == nil {
		t.Error("the second attempt of a source that may have one was answered")
	}
	other, err := l.Host.DialTCP(enginetest.Within(t), netip.MustParseAddrPort("10.0.0.3:0"), fast)
	if err != nil {
		t.Errorf("another source: %v", err)
	} else {
		other.Close()
	}
	close(answer)
	if err := enginetest.Receive(t, "the slow one is answered", dialled); err != nil {
		t.Errorf("the slow one: %v", err)
	}
}

// TestSessionLimit: one UDP conversation more than the limit takes the place of
// the one that has been silent for longest.
func TestSessionLimit(t *testing.T) {
	r := startRelay(t)
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\nlimits: {udp-sessions: 2}\n", r.addr)
	to := netip.MustParseAddrPort("192.0.2.1:5000")
	for _, text := range []string{"first", "second", "third"} {
		say(t, listen(t, l, true), to, text)
		if _, got := r.next(t); got != text {
			t.Errorf("the relay got %q, want %q", got, text)
		}
	}
	enginetest.Eventually(t, "one session has gone", func() bool {
		s := l.Engine.Stats().Router
		return s.Sessions == 2 && s.UDPEvicted == 1
	})
}
