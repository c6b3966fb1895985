package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

func template(t *testing.T, text string) *flow.Template {
	t.Helper()
	p, err := flow.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Each flow has a user of its own, whatever the server speaks, and also where the
// server is in the middle of a chain; what asks for no flow has one too.
func TestUserOfAFlow(t *testing.T) {
	asked := &outbound.Flow{Rule: 2, Flow: flow.Flow{
		Source: netip.MustParseAddrPort("[2001:db8::7]:5"),
		Target: flow.Target{Name: "example.org", Port: 443},
	}}
	const text = "{rule}_{source}_{target}_{port}"
	const user = "3_2001-db8--7_example.org_443"
	basic := func(user string) string {
		v, err := httpconnect.Basic(user, "secret")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	users := template(t, text)
	socks4, socks5, http := v4, v5, outbound.HTTPOptions{Password: "secret", Users: users}
	socks4.Users, socks5.Users, socks5.Password = users, users, "secret"
	for _, tt := range []struct {
		name    string
		answers []string
		dialer  func(script func(*net.TCPConn)) outbound.Dialer
		said    func(user string) string
	}{
		{"SOCKS4", []string{granted4}, func(script func(*net.TCPConn)) outbound.Dialer { return scripted(t, socks4, script) },
			func(user string) string { return user + "\x00" }},
		{"SOCKS5", []string{takesUser, userOK, granted}, func(script func(*net.TCPConn)) outbound.Dialer { return scripted(t, socks5, script) },
			func(user string) string { return "\x01" + string(rune(len(user))) + user + "\x06secret" }},
		{"SOCKS5 pipelined", []string{takesUser + userOK + granted}, func(script func(*net.TCPConn)) outbound.Dialer { return scripted(t, piped(socks5), script) },
			func(user string) string { return "\x01" + string(rune(len(user))) + user + "\x06secret" }},
		{"HTTP", []string{connected}, func(script func(*net.TCPConn)) outbound.Dialer { return scriptedHTTP(t, http, script) }, basic},
		{"before another hop", []string{takesUser, userOK, granted, takesNone, granted},
			func(script func(*net.TCPConn)) outbound.Dialer {
				last := v5
				last.Name, last.Server, last.Via = "last", where, scripted(t, socks5, script)
				return newSocks(t, last)
			},
			func(user string) string { return "\x01" + string(rune(len(user))) + user + "\x06secret" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			heard := make(chan string, 2)
			d := tt.dialer(func(c *net.TCPConn) {
				var all strings.Builder
				buf := make([]byte, 1024)
				for _, a := range tt.answers {
					n, _ := c.Read(buf)
					all.Write(buf[:n])
					io.WriteString(c, a)
				}
				heard <- all.String()
			})
			for _, c := range []struct {
				ctx  context.Context
				user string
			}{
				{outbound.WithFlow(t.Context(), asked), user},
				{t.Context(), "-_-_-_-"},
			} {
				conn := must(d.DialTCP(c.ctx, where))(t)
				conn.Close()
				if got, want := <-heard, tt.said(c.user); !strings.Contains(got, want) {
					t.Errorf("the server heard %q, want %q in it", got, want)
				}
			}
		})
	}
}

// A user that a name makes too long is an error of the flow, and no server's: none is
// connected to.
func TestUserOfAFlowTooLong(t *testing.T) {
	server := outboundtest.Serve(t, loopback, func(*net.TCPConn) { t.Error("the server was connected to") })
	asked := &outbound.Flow{Flow: flow.Flow{Target: flow.Target{Name: strings.Repeat("a", 128), Port: 80}}}
	for _, o := range []outbound.SocksOptions{v4, v5} {
		o.Name, o.Server, o.Via, o.Users = "p1", flow.AddrTarget(server), newDirect(t, nil), template(t, "{target}{target}")
		_, err := newSocks(t, o).DialTCP(outbound.WithFlow(t.Context(), asked), where)
		var hop *outbound.HopError
		if !errors.As(err, &hop) || hop.Op != "request" {
			t.Errorf("SOCKS%d: got %v, want an error of the request", o.Version, err)
		}
	}
}
