package engine_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// TestTransports: whatever a server is spoken to over, alone or as a part of a
// chain of several kinds, flows come through whole with half-closed connections
// included, and refusals are told.
func TestTransports(t *testing.T) {
	echo := echoTCP(t)
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	dns := enginetest.StartDNS(t, nil)
	far := outboundtest.Names{"echo.test": {enginetest.Loopback}}
	cert, _, text := outboundtest.Certificate(t, "proxy.test")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(o outboundtest.ServerOptions) *outboundtest.Server {
		o.Resolver = far
		return outboundtest.StartServer(t, o)
	}
	secure := &tls.Config{Certificates: []tls.Certificate{cert}}
	local := start(outboundtest.ServerOptions{Unix: true, User: "ann", Password: "opensesame"})
	overTLS := start(outboundtest.ServerOptions{TLS: secure})
	web := start(outboundtest.ServerOptions{HTTP: true, User: "ann", Password: "opensesame"})
	webTLS := start(outboundtest.ServerOptions{HTTP: true, TLS: secure})
	const config = `
upstreams:
  unix:  {url: "socks5h+unix://%[1]s", user: ann, password: opensesame}
  tls:   {url: socks5h+tls://%[2]s, ca: %[5]s}
  named: {url: socks5h+tls://%[2]s, ca: %[5]s, server-name: proxy.test}
  http:  {url: http://%[3]s, user: ann, password: opensesame}
  https: {url: https://%[4]s, ca: %[5]s}
  three: {url: socks5h+tls://%[2]s, ca: %[5]s, via: two}
  two:   {url: http://%[3]s, user: ann, password: opensesame, via: unix}
  other: {url: socks5h+tls://%[2]s, ca: %[5]s, via: https}
rules:
  - {to: echo.test, via: %[6]s}
dns: {resolvers: ["%[7]s"]}
`
	for _, c := range []struct{ via, hops string }{
		{"unix", ""}, {"tls", ""}, {"named", ""}, {"http", ""}, {"https", ""}, {"three", "unix > two > three"}, {"other", "https > other"},
	} {
		t.Run(c.via, func(t *testing.T) {
			l := enginetest.Start(t, config, local.Path(), overTLS.Target(), web.Target(), webTLS.Target(), ca, c.via, dns.Addr)
			said := strings.Repeat("x", 100_000)
			if got := exchange(t, l.MustDial("ip4", "echo.test", echo.Port()), said); got != "hello "+said {
				t.Errorf("got %d bytes back, want hello and the %d that were sent", len(got), len(said))
			}
			l.Next().Has(t, enginetest.Record{"net": "tcp", "out": c.via, "hops": c.hops, "up": "100000", "down": "100006", "end": "eof"})
			if conn, err := l.Dial("ip4", "echo.test", closed.Port()); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a closed port: %v, %v, want ECONNREFUSED", conn, err)
			}
			l.Next().Has(t, enginetest.Record{"net": "tcp", "out": c.via, "end": "refused"})
		})
	}
}

// TestEarlyReply: through a server that says success before it knows, a program sees
// that a connection broke, and through others what there is.
func TestEarlyReply(t *testing.T) {
	liar := enginetest.StartScripted(t, func(socks.Request) enginetest.Script {
		// It waits, so that the client's connect is over before the end comes.
		return enginetest.Script{Serve: func(c net.Conn) { c.Read(make([]byte, 1)) }}
	})
	l := enginetest.Start(t, `
upstreams:
  liar:   {url: socks5h://%[1]s, early-reply: true}
  honest: socks5h://%[1]s
rules:
  - {to: liar.test, via: liar}
  - {to: honest.test, via: honest}
`, liar)
	for name, want := range map[string]struct {
		err error
		end string
	}{
		"liar.test":   {syscall.ECONNRESET, "upstream"},
		"honest.test": {io.EOF, "eof"},
	} {
		c := l.MustDial("ip4", name, 80)
		c.SetDeadline(time.Now().Add(enginetest.Patience))
		io.WriteString(c, "x")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, want.err) {
			t.Errorf("%s: got %v, want %v", name, err, want.err)
		}
		c.CloseWrite()
		l.Next().Has(t, enginetest.Record{"net": "tcp", "end": want.end})
	}
}

// TestUsersOfFlows: a server that tells flows apart by their users can, by the rule,
// by where they are from and by where they go.
func TestUsersOfFlows(t *testing.T) {
	users := make(chan string, 2)
	tor := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		socks.ReadVersion(c)
		socks.ReadMethods(c)
		c.Write(socks.AppendMethod(nil, socks.MethodUserPass))
		user, _, _ := socks.ReadUserPass(c)
		users <- user
		c.Write(socks.AppendAuthStatus(nil, true))
		socks.ReadRequest(c)
		c.Write(socks.AppendReply(nil, socks.ReplyRefused, netip.AddrPort{}))
	})
	l := enginetest.Start(t, `
upstreams:
  tor: {url: socks5h://%[1]s, user: "{rule}_{source}_{target}_{port}", password: any}
rules:
  - {to: one.test, via: tor}
  - {to: two.test, via: tor}
`, tor)
	for rule, name := range []string{"one.test", "two.test"} {
		l.Dial("ip4", name, 80)
		record := l.Next()
		source, _, _ := net.SplitHostPort(record["src"])
		want := fmt.Sprintf("%d_%s_%s_80", rule+1, source, name)
		if got := enginetest.Receive(t, "a user", users); got != want || source == "" {
			t.Errorf("%s: user %q, want %q", name, got, want)
		}
	}
}

// TestServersLeavesOutUnixSockets: they have no address for a route to lead back.
func TestServersLeavesOutUnixSockets(t *testing.T) {
	cfg, err := config.FromProxies([]string{"socks5h+unix:///run/tor/socks", "http://192.0.2.1:3128"})
	if err != nil {
		t.Fatal(err)
	}
	cfg.DNS.Resolvers = nil
	if got, err := engine.Servers(enginetest.Within(t), cfg, 0); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v, want none", got, err)
	}
	cfg, err = config.FromProxies([]string{"https://192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	cfg.DNS.Resolvers = nil
	want := engine.Server{Name: "upstream proxy", Addr: netip.MustParseAddr("192.0.2.1")}
	if got, err := engine.Servers(enginetest.Within(t), cfg, 0); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}
