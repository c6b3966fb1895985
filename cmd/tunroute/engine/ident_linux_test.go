package engine_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/interop/servers"
	"tunroute/router/outbound/outboundtest"
)

// askBack asks for a connection what a server asks that got it.
func askBack(server *net.TCPConn) string {
	from := server.RemoteAddr().(*net.TCPAddr)
	c, err := net.Dial("tcp", net.JoinHostPort(from.IP.String(), "113"))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	fmt.Fprintf(c, "%d, %d\r\n", from.Port, server.LocalAddr().(*net.TCPAddr).Port)
	line, _ := bufio.NewReader(c).ReadString('\n')
	_, user, _ := strings.Cut(strings.TrimSpace(line), " : ")
	return user
}

// TestIdent: a server that asks back whose a connection is, is told so from the first
// moment until the connection ends.
func TestIdent(t *testing.T) {
	type answer struct {
		conn *net.TCPConn
		said string
	}
	answers := make(chan answer, 8)
	ask := func(c *net.TCPConn) { answers <- answer{c, askBack(c)} }
	five := outboundtest.Serve(t, enginetest.Loopback, ask)
	four := outboundtest.Serve(t, enginetest.Loopback, ask)
	target := outboundtest.Serve(t, enginetest.Loopback, ask)
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"target.test": enginetest.Loopback})
	const text = `
upstreams:
  five: {url: "socks5h://%s", user: ann, password: opensesame}
  four: {url: "socks4a://%s", user: joe}
  plain: socks4a://%[2]s
rules:
  - {to: five.test, via: five}
  - {to: four.test, via: four}
  - {to: plain.test, via: plain}
  - {to: target.test, via: direct}
dns: {resolvers: ["%s"]}
ident: {listen: [127.0.0.1], user: "r{rule}-{target}"}
`
	l := enginetest.Start(t, text, five, four, dns.Addr)
	for _, tt := range []struct{ name, want string }{
		{"five.test", "USERID : UNIX : r1-five.test"},
		{"four.test", "USERID : UNIX : joe"},
		{"plain.test", "USERID : UNIX : r3-plain.test"},
		{"target.test", "ERROR : NO-USER"}, // is no server of ours
	} {
		port := uint16(80)
		if tt.name == "target.test" {
			port = target.Port()
		}
		if c, err := l.Dial("ip4", tt.name, port); err == nil {
			io.ReadAll(c)
			c.Close()
		}
		l.Next()
		got := enginetest.Receive(t, "the answer", answers)
		if got.said != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got.said, tt.want)
		}
		enginetest.Eventually(t, "the connection is forgotten", func() bool { return askBack(got.conn) == "ERROR : NO-USER" })
	}
}

// TestIdentAsDantedWantsIt: danted takes nobody whose user it does not know.
func TestIdentAsDantedWantsIt(t *testing.T) {
	danted := servers.Start(t, servers.Dante, servers.Options{Listen: enginetest.Loopback, Config: "clientmethod: rfc931"})
	for _, tt := range []struct{ ident, want string }{
		// It goes on, and finds no way to the target.
		{"ident: {listen: [127.0.0.1], user: root}", "p: request: network unreachable (reply 3)"},
		{"ident: {listen: [127.0.0.1], user: no-such-user}", "p: negotiate: "},
		{"", "p: negotiate: "},
	} {
		l := enginetest.Start(t, "upstreams: {p: \"socks5h://%s\"}\nrules: [{via: p}]\n%s\n", danted, tt.ident)
		if _, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, netip.MustParseAddrPort("192.0.2.80:80")); err == nil {
			t.Errorf("%s: connected", tt.ident)
		}
		l.Next().Has(t, enginetest.Record{"end": "failed", "err": tt.want})
		l.Stop()
	}
}
