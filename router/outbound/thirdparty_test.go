package outbound_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/interop/servers"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

// The suite through servers that this project did not write. What they do not
// do, they were seen not to do: microsocks loses the answer after our FIN, ssh -D
// hangs up where others reply, Dante has one SOCKS4 reply for all failures and gives a
// BIND up when somebody else connects.
func TestThirdPartyServers(t *testing.T) {
	const header = 10
	six := netip.IPv6Loopback()
	dante := servers.Options{External: []netip.Addr{loopback, six}, Config: "udp.connectdst: no"}
	dante6 := dante
	dante6.Listen = six
	udp := outboundtest.Options{MaxUDP: 65507 - header, BindEnds: true}
	udp2 := outboundtest.Options{MaxUDP: 65507 - 2*header, BindEnds: true}
	// By default danted's relay hears nobody but whom it has sent to last.
	danteDefault := servers.Options{External: dante.External}
	udpDefault := outboundtest.Options{MaxUDP: 65507 - header, NoStrangers: true, BindEnds: true}
	micro := outboundtest.Options{NoHalfClose: true, NoUDP: true, NoBind: true}
	ssh := outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoUDP: true, NoBind: true}
	ssh4 := ssh
	ssh4.NoIPv6 = true

	type hop struct {
		link
		kind   servers.Kind
		server servers.Options
	}
	tests := []struct {
		name    string
		hops    []hop
		options outboundtest.Options
	}{
		{"dante socks5, as it comes", []hop{{link{"socks5", ""}, servers.Dante, danteDefault}}, udpDefault},
		{"dante socks5", []hop{{link{"socks5", ""}, servers.Dante, dante}}, udp},
		{"dante socks5h", []hop{{link{"socks5h", ""}, servers.Dante, dante}}, udp},
		{"dante socks5h on IPv6", []hop{{link{"socks5h", ""}, servers.Dante, dante6}}, udp},
		{"dante socks4", []hop{{link{"socks4", "ann"}, servers.Dante, dante}}, outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoIPv6: true, NoUDP: true, BindEnds: true}},
		{"microsocks socks5", []hop{{link{"socks5", ""}, servers.Microsocks, servers.Options{}}}, micro},
		{"microsocks socks5h user", []hop{{link{"socks5h", "ann"}, servers.Microsocks, servers.Options{User: "ann", Password: password("ann")}}}, micro},
		{"ssh -D socks4", []hop{{link{"socks4", ""}, servers.OpenSSH, servers.Options{}}}, ssh4},
		{"ssh -D socks4a", []hop{{link{"socks4a", ""}, servers.OpenSSH, servers.Options{}}}, ssh4},
		{"ssh -D socks5h", []hop{{link{"socks5h", ""}, servers.OpenSSH, servers.Options{}}}, ssh},
		{"dante, dante", []hop{
			{link{"socks5", ""}, servers.Dante, dante},
			{link{"socks5h", ""}, servers.Dante, dante},
		}, udp2},
		{"ssh -D, microsocks, dante", []hop{
			{link{"socks4a", ""}, servers.OpenSSH, servers.Options{}},
			{link{"socks5", "bob"}, servers.Microsocks, servers.Options{User: "bob", Password: password("bob")}},
			{link{"socks5h", ""}, servers.Dante, dante},
		}, outboundtest.Options{NoHalfClose: true, NoUDP: true, BindEnds: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var at []flow.Target
			for _, h := range tt.hops {
				at = append(at, flow.AddrTarget(servers.Start(t, h.kind, h.server)))
			}
			outboundtest.Run(t, tt.options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				var d outbound.Dialer = newDirect(t, env.Resolver)
				for i, h := range tt.hops {
					d = newSocks(t, h.options(string(rune('a'+i)), at[i], d, env.Resolver))
				}
				return d
			})
		})
	}
}

// Who takes all in one segment, as they were measured to: the option's comment says
// so. Beside them ss-local and tor do.
func TestThirdPartyPipeline(t *testing.T) {
	for kind, options := range map[servers.Kind]outboundtest.Options{
		servers.Dante:   {MaxUDP: 65507 - 10, NoStrangers: true, BindEnds: true},
		servers.OpenSSH: {Refused: syscall.EHOSTUNREACH, NoUDP: true, NoBind: true},
	} {
		t.Run(string(kind), func(t *testing.T) {
			o := servers.Options{}
			if kind == servers.Dante {
				o.External = []netip.Addr{loopback, netip.IPv6Loopback()}
			}
			at := flow.AddrTarget(servers.Start(t, kind, o))
			outboundtest.Run(t, options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				return newSocks(t, piped(link{scheme: "socks5h"}.options("a", at, newDirect(t, nil), nil)))
			})
		})
	}
}

// The suite through HTTP proxies. squid says why a connect failed, tinyproxy does
// not; of both the answer after our FIN is lost.
func TestThirdPartyHTTP(t *testing.T) {
	squid := outboundtest.Options{NoHalfClose: true, NoUDP: true, NoBind: true}
	tiny := outboundtest.Options{NoHalfClose: true, NoUDP: true, NoBind: true, Refused: syscall.EHOSTUNREACH}
	for _, tt := range []struct {
		name    string
		kind    servers.Kind
		user    string
		options outboundtest.Options
	}{
		{"squid", servers.Squid, "", squid},
		{"tinyproxy", servers.Tinyproxy, "", tiny},
		{"tinyproxy user", servers.Tinyproxy, "ann", tiny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := flow.AddrTarget(servers.Start(t, tt.kind, servers.Options{User: tt.user, Password: password(tt.user)}))
			outboundtest.Run(t, tt.options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				return newHTTP(t, outbound.HTTPOptions{Name: "a", Server: at, Via: newDirect(t, nil), User: tt.user, Password: password(tt.user)})
			})
		})
	}

	// What they say to the wrong password, and to what their rules forbid.
	closed := servers.Options{User: "ann", Password: "secret", Config: "ConnectPort 1"}
	at := flow.AddrTarget(servers.Start(t, servers.Tinyproxy, closed))
	for _, c := range []struct {
		password string
		op       string
		errno    syscall.Errno
	}{
		{"wrong", "authenticate", syscall.EHOSTUNREACH},
		{"secret", "request", syscall.EACCES},
	} {
		h := newHTTP(t, outbound.HTTPOptions{Name: "a", Server: at, Via: newDirect(t, nil), User: "ann", Password: c.password})
		_, err := h.DialTCP(t.Context(), flow.AddrTarget(outboundtest.ClosedPort(t, loopback)))
		var hop *outbound.HopError
		if !errors.As(err, &hop) || hop.Op != c.op || outbound.Errno(err) != c.errno {
			t.Errorf("password %s: got %v (%v), want %s and %v", c.password, err, outbound.Errno(err), c.op, c.errno)
		}
	}
}

// The suite through SOCKS over TLS, which stunnel takes off in front of ssh -D, and
// through a chain of three kinds. It is not Dante there because danted closes by a
// RST behind a refusal, for which stunnel forgets the refusal now and then.
func TestThirdPartyTLS(t *testing.T) {
	cert, trust, text := outboundtest.Certificate(t, "localhost")
	file := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(file, append(text, outboundtest.Key(t, cert)...), 0o600); err != nil {
		t.Fatal(err)
	}
	ssh := servers.Start(t, servers.OpenSSH, servers.Options{})
	secure := flow.AddrTarget(servers.Start(t, servers.Stunnel, servers.Options{
		Config: fmt.Sprintf("cert = %s\nconnect = %s", file, ssh),
	}))
	tiny := flow.AddrTarget(servers.Start(t, servers.Tinyproxy, servers.Options{}))
	squid := flow.AddrTarget(servers.Start(t, servers.Squid, servers.Options{}))

	t.Run("stunnel and ssh -D", func(t *testing.T) {
		outboundtest.Run(t, outboundtest.Options{NoUDP: true, NoBind: true, Refused: syscall.EHOSTUNREACH}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
			o := link{scheme: "socks5h"}.options("a", secure, newDirect(t, nil), nil)
			o.TLS = &tls.Config{RootCAs: trust}
			return newSocks(t, o)
		})
	})
	t.Run("tinyproxy, stunnel and ssh -D, squid", func(t *testing.T) {
		outboundtest.Run(t, outboundtest.Options{NoHalfClose: true, NoUDP: true, NoBind: true}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
			a := newHTTP(t, outbound.HTTPOptions{Name: "a", Server: tiny, Via: newDirect(t, nil)})
			o := link{scheme: "socks5h"}.options("b", secure, a, nil)
			o.TLS = &tls.Config{RootCAs: trust}
			return newHTTP(t, outbound.HTTPOptions{Name: "c", Server: squid, Via: newSocks(t, o)})
		})
	})
}
