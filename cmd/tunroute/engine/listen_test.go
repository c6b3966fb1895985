package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// freePort returns a port at which nobody listens.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// serve runs an engine without a device until the test ends. SELF in its config
// is where it listens, which is returned.
func serve(t *testing.T, cfg string) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(enginetest.Loopback, freePort(t))
	ready := make(chan struct{})
	e, err := engine.New(enginetest.Parse(t, "%s", strings.ReplaceAll(cfg, "SELF", at.String())), engine.Options{Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); run.Wait() })
	enginetest.Receive(t, "ready", ready)
	return at
}

// clientOf returns a client of a SOCKS5 server.
func clientOf(t *testing.T, at netip.AddrPort) *outbound.Socks {
	t.Helper()
	direct, err := outbound.NewDirect(outbound.DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := outbound.NewSocks(outbound.SocksOptions{Name: "us", Version: socks.Version5, RemoteNames: true, Server: flow.AddrTarget(at), Via: direct})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// echo serves until the test ends.
func echo(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestServerAlone: without an interface, clients of a listener go by the rules, and
// hear what became of their requests.
func TestServerAlone(t *testing.T) {
	target := echo(t)
	c := clientOf(t, serve(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
rules:
- {to: [127.0.0.1, localhost], port: %d, via: direct}
- {to: 127.0.0.3, via: drop}
- {to: 127.0.0.2, via: direct}
`, target.Port())))
	for _, host := range []string{"127.0.0.1", "localhost"} {
		to, _ := flow.NewTarget(host, target.Port())
		conn, err := c.DialTCP(enginetest.Within(t), to)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%s: got %q, %v", host, got, err)
		}
		conn.Close()
	}
	for addr, want := range map[string]error{
		"127.0.0.1": socks.ReplyRuleset, // another port
		"127.0.0.2": socks.ReplyRefused,
		"127.0.0.3": io.EOF,
		// Without an interface nobody has been given a fake address.
		"198.18.0.9": socks.ReplyRuleset,
	} {
		to := flow.AddrTarget(netip.AddrPortFrom(netip.MustParseAddr(addr), freePort(t)))
		if _, err := c.DialTCP(enginetest.Within(t), to); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", addr, err, want)
		}
	}
}
