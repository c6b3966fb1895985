package engine_test

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack/stacktest"
)

// namedServer starts a server that says its name to whoever connects, and repeats what
// it hears; while broken is true, no network can be reached through it.
func namedServer(t testing.TB, name string, broken *atomic.Bool) netip.AddrPort {
	return enginetest.StartScripted(t, func(socks.Request) enginetest.Script {
		if broken != nil && broken.Load() {
			return enginetest.Script{Reply: socks.ReplyNetUnreachable}
		}
		return enginetest.Script{Serve: func(c net.Conn) {
			io.WriteString(c, name)
			io.Copy(c, c)
		}}
	})
}

// openOn opens a flow, which has to go through the server of that name.
func openOn(t testing.TB, l *enginetest.Lab, server string) *stacktest.Conn {
	t.Helper()
	c := l.MustDial("ip4", "www.test", 80)
	if got := readByte(t, c); got != server {
		t.Errorf("connected to %q, want %q", got, server)
	}
	return c
}

// TestGroupFailsOver: the program sees nothing of a gateway that hangs up or leads
// nowhere, and the record has the members that the flow went through. Who is bad is
// known after a reload too, unless it is another server now.
func TestGroupFailsOver(t *testing.T) {
	var broken atomic.Bool
	var asked atomic.Int64
	dead := outboundtest.Serve(t, enginetest.Loopback, func(*net.TCPConn) { asked.Add(1) })
	a, b := namedServer(t, "a", &broken), namedServer(t, "b", nil)
	const text = `
upstreams:
  dead: %s%s
  a: socks5h://%s
  b: socks5h://%s
  inner: {group: [a, b]}
  g: {group: [dead, inner], badexpire: 1h}
rules: [{via: g}]
`
	l := enginetest.Start(t, text, "socks5h://", dead, a, b)
	flow := func(server, hops string, wantAsked int64) {
		t.Helper()
		openOn(t, l, server).Close()
		l.Next().Has(t, enginetest.Record{"dst": "www.test:80", "out": "g", "hops": hops, "end": "eof"})
		if n := asked.Load(); n != wantAsked {
			t.Errorf("the dead server was asked %d times, want %d", n, wantAsked)
		}
	}
	flow("a", "g/inner/a", 1)
	broken.Store(true)
	flow("b", "g/inner/b", 1)
	broken.Store(false)
	flow("a", "g/inner/a", 1)

	for _, reload := range []struct {
		url   string
		asked int64
	}{{"socks5h://", 1}, {"socks5h://ann:secret@", 2}} {
		if err := l.Engine.Reload(enginetest.Parse(t, "# another line\n"+text, reload.url, dead, a, b)); err != nil {
			t.Fatal(err)
		}
		flow("a", "g/inner/a", reload.asked)
	}
}

// TestGroupFailureIsTold: the error that says most about the target decides what the
// program is told, and the record has what came of each member.
func TestGroupFailureIsTold(t *testing.T) {
	far := enginetest.StartScripted(t, func(socks.Request) enginetest.Script {
		return enginetest.Script{Reply: socks.ReplyRefused}
	})
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	l := enginetest.Start(t, "upstreams: {gone: 'socks5h://%s', far: 'socks5h://%s', g: {group: [gone, far]}}\nrules: [{via: g}]\n", closed, far)
	if c, err := l.Dial("ip4", "www.test", 80); err == nil {
		c.Close()
		t.Error("connected")
	}
	rec := l.Next()
	rec.Has(t, enginetest.Record{"end": "refused", "out": "g", "hops": "", "err": "g: gone: connect: "})
	rec.Has(t, enginetest.Record{"err": "; far: request: connection refused (reply 5)"})
}

// TestGroupCountsOpenFlows: a flow counts until it has ended, also where the relay has
// taken its socket over.
func TestGroupCountsOpenFlows(t *testing.T) {
	a, b := namedServer(t, "a", nil), namedServer(t, "b", nil)
	l := enginetest.Start(t, "upstreams: {a: 'socks5h://%s', b: 'socks5h://%s', g: {group: [a, b], policy: least-flows}}\nrules: [{via: g}]\n", a, b)
	first := openOn(t, l, "a")
	openOn(t, l, "b")
	third := openOn(t, l, "a")
	for _, c := range []*stacktest.Conn{first, third} {
		c.Close()
		l.Next().Has(t, enginetest.Record{"hops": "g/a", "end": "eof"})
	}
	openOn(t, l, "a")
}
