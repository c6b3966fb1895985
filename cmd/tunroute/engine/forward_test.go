package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// program listens on the client machine; it says whom it sees, and what it hears.
func program(t *testing.T, l *enginetest.Lab, at netip.AddrPort) {
	t.Helper()
	listener, err := l.Host.ListenTCP(at)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			fmt.Fprintf(c, "%s from %s", b, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
}

// tell connects to an address from outside and returns what the program says.
func tell(t *testing.T, at netip.AddrPort, text string) (string, error) {
	t.Helper()
	var c net.Conn
	enginetest.Eventually(t, "somebody listens at "+at.String(), func() bool {
		var err error
		c, err = new(net.Dialer).DialContext(enginetest.Within(t), "tcp", at.String())
		return err == nil
	})
	defer c.Close()
	// A RST is told once, to whoever comes first.
	_, written := io.WriteString(c, text)
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	return string(b), errors.Join(written, err)
}

// TestForwardListens: who connects to this machine is brought to the program, which
// sees somebody that it can answer; strangers and what nobody takes are reset.
func TestForwardListens(t *testing.T) {
	here := func() netip.AddrPort { return netip.AddrPortFrom(enginetest.Loopback, freePort(t)) }
	behind, own, closed, closedTo := here(), here(), here(), here()
	l := enginetest.Start(t, `
rules: [{via: direct}]
forward:
  - {listen: "%s", to: 10.0.0.2:80}
  - {listen: "%s", via: direct, from: 127.0.0.0/8, to: 80}
  - {listen: "%s", to: 10.0.0.2:81}
  - {listen: "%s", from: 192.0.2.0/24, to: 10.0.0.2:80}
`, behind, own, closed, closedTo)
	addrs, err := engine.AddrsOf(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	program(t, l, netip.AddrPortFrom(l.Host.Addr4(), 80))
	program(t, l, netip.AddrPortFrom(addrs.Device4, 80))
	for at, to := range map[netip.AddrPort]string{behind: "10.0.0.2:80", own: netip.AddrPortFrom(addrs.Device4, 80).String()} {
		text := strings.Repeat("x", 100_000)
		got, err := tell(t, at, text)
		if want := text + " from " + addrs.Resolver4.String(); got != want || err != nil {
			t.Errorf("at %v: %d bytes, %v, want %d", at, len(got), err, len(want))
		}
		l.Next().Has(t, enginetest.Record{"net": "tcp", "in": "forward", "dst": to, "rule": "", "out": "", "down": "100000", "end": "eof"})
	}
	if got, err := tell(t, closed, "x"); err == nil {
		t.Errorf("a program that does not listen says %q", got)
	}
	l.Next().Has(t, enginetest.Record{"end": "client", "err": "connection refused"})
	if got, err := tell(t, closedTo, "x"); err == nil {
		t.Errorf("a stranger is told %q", got)
	}
	changed := enginetest.Parse(t, "rules: [{via: direct}]\n")
	if err := l.Engine.Reload(changed); err == nil || !strings.Contains(err.Error(), "forward has changed") {
		t.Errorf("Reload without forwards: %v", err)
	}
}

// TestForwardBinds: a server's address serves one connection, and then there is another.
func TestForwardBinds(t *testing.T) {
	bound := make(chan netip.AddrPort, 10)
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{Bound: func(at netip.AddrPort) socks.Addr {
		bound <- at
		return socks.Addr{IP: at.Addr(), Port: at.Port()}
	}})
	l := enginetest.Start(t, `
upstreams: {d1: "socks5h://%s"}
rules: [{via: direct}]
forward: {via: d1, from: 127.0.0.1, to: 10.0.0.2:80}
`, server.Target())
	program(t, l, netip.AddrPortFrom(l.Host.Addr4(), 80))
	for range 3 {
		got, err := tell(t, enginetest.Receive(t, "a BIND", bound), "hello")
		if !strings.HasPrefix(got, "hello from ") || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		l.Next().Has(t, enginetest.Record{"in": "forward", "dst": "10.0.0.2:80", "end": "eof"})
	}
	for _, r := range server.Requests() {
		if want := (socks.Addr{IP: enginetest.Loopback}); r.Command != socks.Bind || r.Addr != want {
			t.Errorf("the server was asked for %+v, want a BIND for %v", r, want)
		}
	}
}
