package outbound_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/gssapi"
	"tunroute/router/gssapi/gssapitest"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// newDirect returns a Direct that resolves names by r.
func newDirect(t testing.TB, r outbound.Resolver) *outbound.Direct {
	t.Helper()
	d, err := outbound.NewDirect(outbound.DirectOptions{Resolver: r})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newSocks(t testing.TB, o outbound.SocksOptions) *outbound.Socks {
	t.Helper()
	s, err := outbound.NewSocks(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDirect(t *testing.T) {
	outboundtest.Run(t, outboundtest.Options{}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
		return newDirect(t, env.Resolver)
	})
}

// link is a server of a chain, as a URL's scheme and user say it.
type link struct {
	scheme string // socks4, socks4a, socks5, socks5h, http; with +unix, +tls or the protection of GSSAPI behind it
	user   string // with a password of the same length, but for SOCKS4
}

// over returns the scheme without what it goes over, and that.
func (l link) over() (scheme, over string) {
	scheme, over, _ = strings.Cut(l.scheme, "+")
	return scheme, over
}

// options returns the options of the outbound that goes to a server at target
// through via.
func (l link) options(name string, target flow.Target, via outbound.Dialer, r outbound.Resolver) outbound.SocksOptions {
	o := outbound.SocksOptions{Name: name, Server: target, Via: via, User: l.user, Resolver: r}
	o.Version = socks.Version5
	scheme, _ := l.over()
	if scheme == "socks4" || scheme == "socks4a" {
		o.Version = socks.Version4
	} else {
		o.Password = password(l.user)
	}
	o.RemoteNames = scheme == "socks4a" || scheme == "socks5h"
	return o
}

func password(user string) string {
	b := []byte(user)
	slices.Reverse(b)
	return string(b)
}

// chain starts a server for each link and returns the outbound through all of
// them.
func chain(t testing.TB, env outboundtest.Env, links []link) outbound.Dialer {
	var d outbound.Dialer = newDirect(t, env.Resolver)
	for i, l := range links {
		o := outboundtest.ServerOptions{User: l.user, Resolver: env.Resolver}
		scheme, over := l.over()
		if scheme != "socks4" && scheme != "socks4a" {
			o.Password = password(l.user)
		}
		o.HTTP = scheme == "http"
		var trust *x509.CertPool
		switch over {
		case "unix":
			o.Unix = true
		case "tls":
			o.TLS, trust = serverTLS(t)
		case "none", "integrity", "confidentiality":
			p := map[string]gssapi.Protection{"integrity": gssapi.Integrity, "confidentiality": gssapi.Confidentiality}[over]
			o.GSSAPI = &p
		}
		server := outboundtest.StartServer(t, o)
		if over == "unix" {
			d = newUnix(t, server.Path())
		}
		c := l.options(string(rune('a'+i)), server.Target(), d, env.Resolver)
		if trust != nil {
			c.TLS = &tls.Config{RootCAs: trust}
		}
		if o.GSSAPI != nil {
			c.GSSAPI = toyGSSAPI(*o.GSSAPI)
		}
		if o.HTTP {
			d = newHTTP(t, outbound.HTTPOptions{Name: c.Name, Server: c.Server, Via: d, TLS: c.TLS, User: c.User, Password: c.Password})
			continue
		}
		d = newSocks(t, c)
	}
	return d
}

// toyGSSAPI is how an [outboundtest.Server] with GSSAPI is spoken to.
func toyGSSAPI(p gssapi.Protection) *outbound.GSSAPI {
	return &outbound.GSSAPI{Protection: p, Initiate: func(context.Context) (gssapi.Context, error) {
		c, _ := gssapitest.Pair("client", "server")
		return c, nil
	}}
}

// serverTLS returns the config of a TLS server with a certificate of its own, and
// who trusts it.
func serverTLS(t testing.TB) (*tls.Config, *x509.CertPool) {
	t.Helper()
	cert, trust, _ := outboundtest.Certificate(t, "localhost")
	return &tls.Config{Certificates: []tls.Certificate{cert}}, trust
}

func newHTTP(t testing.TB, o outbound.HTTPOptions) *outbound.HTTP {
	t.Helper()
	h, err := outbound.NewHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newUnix(t testing.TB, path string) *outbound.Unix {
	t.Helper()
	u, err := outbound.NewUnix(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestSocks(t *testing.T) {
	const header = 10     // of a SOCKS UDP header with an IPv4 address
	const wrapped = 4 + 9 // the head of a GSSAPI message and what the toy adds
	socks4 := outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoIPv6: true, NoUDP: true}
	socks5 := outboundtest.Options{MaxUDP: 65507 - header}
	noUDP := outboundtest.Options{NoUDP: true}
	http := outboundtest.Options{NoUDP: true, NoBind: true}
	tests := []struct {
		name    string
		links   []link
		options outboundtest.Options
	}{
		{"socks4", []link{{"socks4", ""}}, socks4},
		{"socks4 user", []link{{"socks4", "ann"}}, socks4},
		{"socks4a", []link{{"socks4a", ""}}, socks4},
		{"socks5", []link{{"socks5", ""}}, socks5},
		{"socks5 user", []link{{"socks5", "ann"}}, socks5},
		{"socks5h", []link{{"socks5h", ""}}, socks5},
		{"socks5h user", []link{{"socks5h", "ann"}}, socks5},
		{"chain of 2", []link{{"socks5", "ann"}, {"socks5h", ""}}, outboundtest.Options{MaxUDP: 65507 - 2*header}},
		{"chain of 2 with socks4a", []link{{"socks5h", ""}, {"socks4a", "bob"}}, socks4},
		{"chain of 3", []link{{"socks4", ""}, {"socks5", "ann"}, {"socks5h", "bob"}}, noUDP},
		{"chain of 3 with UDP", []link{{"socks5h", "ann"}, {"socks5", ""}, {"socks5", "bob"}}, outboundtest.Options{MaxUDP: 65507 - 3*header}},
		{"socks4a over a unix socket", []link{{"socks4a+unix", "ann"}}, socks4},
		{"socks5 over a unix socket", []link{{"socks5+unix", ""}}, noUDP},
		{"socks5h over a unix socket", []link{{"socks5h+unix", "ann"}}, noUDP},
		{"socks4a over TLS", []link{{"socks4a+tls", "ann"}}, socks4},
		{"socks5 over TLS", []link{{"socks5+tls", ""}}, noUDP},
		{"socks5h over TLS", []link{{"socks5h+tls", "ann"}}, noUDP},
		{"TLS within TLS behind a server", []link{{"socks5", "ann"}, {"socks5+tls", ""}, {"socks5h+tls", "bob"}}, noUDP},
		{"socks5h with GSSAPI for a start", []link{{"socks5h+none", ""}}, socks5},
		{"socks5 with integrity by GSSAPI", []link{{"socks5+integrity", ""}}, outboundtest.Options{MaxUDP: 65507 - header - wrapped}},
		{"socks5h with confidentiality by GSSAPI", []link{{"socks5h+confidentiality", ""}}, outboundtest.Options{MaxUDP: 65507 - header - wrapped}},
		{"GSSAPI behind GSSAPI behind a server", []link{{"socks5h", "ann"}, {"socks5+confidentiality", ""}, {"socks5h+integrity", ""}}, outboundtest.Options{MaxUDP: 65507 - 3*header - 2*wrapped}},
		{"http", []link{{"http", ""}}, http},
		{"http user", []link{{"http", "ann"}}, http},
		{"http over TLS", []link{{"http+tls", "ann"}}, http},
		{"chain of 3 kinds", []link{{"socks5", "ann"}, {"http", "bob"}, {"socks5h+tls", "cleo"}}, noUDP},
		{"chain of 3 other kinds", []link{{"http+tls", "ann"}, {"socks4a", "bob"}, {"http", ""}}, http},
		{"chain of 2 over a unix socket", []link{{"socks5h+unix", "ann"}, {"socks5h", ""}}, noUDP},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			outboundtest.Run(t, tt.options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				return chain(t, env, tt.links)
			})
		})
	}
}

// A server that listens on IPv6, with its relay there too.
func TestSocksServerOnIPv6(t *testing.T) {
	outboundtest.Run(t, outboundtest.Options{MaxUDP: 65507 - 10}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
		server := outboundtest.StartServer(t, outboundtest.ServerOptions{Listen: netip.IPv6Loopback(), Resolver: env.Resolver})
		return newSocks(t, link{scheme: "socks5h"}.options("six", server.Target(), newDirect(t, nil), nil))
	})
}
