package engine_test

import (
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// TestResolverThroughUpstream: a resolver may be asked through a server: by UDP where
// that carries it, else by TCP, and over TLS.
func TestResolverThroughUpstream(t *testing.T) {
	there := netip.MustParseAddr("192.0.2.80")
	names := map[string]netip.Addr{"www.intern.test": there}
	cert, _, ca := outboundtest.Certificate(t, "dns.test")
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, resolver string
		udp, tls       bool
	}{
		{"udp", "{url: '%s', via: far, for: .intern.test}", true, false},
		{"no udp", "{url: 192.0.2.53, via: far, for: .intern.test}", false, false},
		{"tcp", "{url: 'tcp://192.0.2.53', via: far, for: .intern.test}", false, false},
		{"tls", "{url: 'tls://192.0.2.53#dns.test', via: far, for: .intern.test, ca: %q}", false, true},
		{"tls, resolved by the server", "{url: 'tls://dns.test', via: far, for: .intern.test, ca: %q}", false, true},
		{"tls at an address", "{url: 'tls://dns.test', at: 192.0.2.53, via: far, for: .intern.test, ca: %q}", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nobody := enginetest.StartDNS(t, nil)
			dns := enginetest.StartDNS(t, names)
			requests := make(chan socks.Request, 100)
			var far netip.AddrPort
			if tt.udp {
				s := outboundtest.StartServer(t, outboundtest.ServerOptions{})
				far = netip.AddrPortFrom(s.Target().Addr, s.Target().Port)
				tt.resolver = strings.ReplaceAll(tt.resolver, "%s", dns.Addr.String())
			} else {
				far = enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
					requests <- r
					if r.Command != socks.Connect {
						return enginetest.Script{Reply: socks.ReplyCommand}
					}
					return enginetest.Script{Serve: func(c net.Conn) {
						if tt.tls {
							c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
						}
						dns.ServeTCP(c)
					}}
				})
				tt.resolver = strings.ReplaceAll(tt.resolver, "%q", "'"+file+"'")
			}
			l := enginetest.Start(t, `
upstreams: {far: 'socks5h://%s'}
names: {local: [.intern.test]}
rules: [{via: far}]
dns: {resolvers: ["%s", `+tt.resolver+`]}
`, far, nobody.Addr)
			for range 2 {
				if got := l.Lookup("ip4", "www.intern.test"); got != there {
					t.Errorf("%s", got)
				}
			}
			if got := dns.Asked("www.intern.test"); got != 1 {
				t.Errorf("asked %d times", got)
			}
			if got := nobody.Questions(); len(got) > 0 {
				t.Errorf("the other resolver was asked for %q", got)
			}
			if tt.udp {
				return
			}
			var last socks.Request
			for len(requests) > 0 {
				last = <-requests
			}
			want := "192.0.2.53"
			if strings.Contains(tt.name, "resolved") {
				want = "dns.test"
			}
			if got := last.Addr.String(); !strings.HasPrefix(got, want) {
				t.Errorf("connected to %s, want %s", got, want)
			}
		})
	}
}

// TestResolversForSome: the longest suffix decides whom to ask.
func TestResolversForSome(t *testing.T) {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }
	names := func(last byte) map[string]netip.Addr {
		a := addr(last)
		return map[string]netip.Addr{"www.example.com": a, "www.corp.example.com": a, "www.lab.corp.example.com": a, "corp.example.com": a}
	}
	all, corp, lab := enginetest.StartDNS(t, names(1)), enginetest.StartDNS(t, names(2)), enginetest.StartDNS(t, names(3))
	l := enginetest.Start(t, `
names: {default: local}
rules: [{via: direct}]
dns:
  resolvers:
    - "%s"
    - {url: "%s", for: [.corp.example.com]}
    - {url: "%s", for: .lab.corp.example.com}
  rebind-allow: [www.example.com]
`, all.Addr, corp.Addr, lab.Addr)
	for name, want := range map[string]byte{"www.example.com": 1, "www.corp.example.com": 2, "corp.example.com": 2, "WWW.Lab.Corp.Example.com": 3} {
		if got := l.Lookup("ip4", name); got != addr(want) {
			t.Errorf("%s is %s, want %s", name, got, addr(want))
		}
	}
}

// TestPrivateAddresses: only names of this network have them.
func TestPrivateAddresses(t *testing.T) {
	private := netip.MustParseAddr("10.1.2.3")
	names := map[string]bool{
		"evil.example.com": false, "www.mine.example.com": true, "www.allowed.example.com": true, "allowed.example.com": false,
		"nas.home.arpa": true, "proxy.example.com": true, "maybe.example.com": true,
	}
	known := make(map[string]netip.Addr)
	for name := range names {
		known[name] = private
	}
	dns := enginetest.StartDNS(t, known)
	l := enginetest.Start(t, `
upstreams: {far: 'socks5h://proxy.example.com'}
names: {default: local, local: [.mine.example.com], local-then-remote: [maybe.example.com]}
rules: [{via: far}]
dns: {resolvers: ["%s"], rebind-allow: [www.allowed.example.com]}
`, dns.Addr)
	for name, want := range names {
		addrs, err := l.Resolver("udp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", name+".")
		if got := err == nil && len(addrs) == 1 && addrs[0].Unmap() == private; got != want || err != nil && !isNotFound(err) {
			t.Errorf("%s: %v, %v", name, addrs, err)
		}
	}
}

// TestHostsFile: nobody is asked for what it has.
func TestHostsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte("192.0.2.7 www.mine.test\n10.0.0.7 nas\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dns := enginetest.StartDNS(t, nil)
	l := enginetest.Start(t, `
names: {local: [.mine.test]}
rules: [{via: reject}]
dns: {resolvers: ["%s"], hosts: ["%s"]}
`, dns.Addr, file)
	for name, want := range map[string]string{"www.mine.test": "192.0.2.7", "nas": "10.0.0.7"} {
		if got := l.Lookup("ip4", name); got.String() != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	got, err := l.Resolver("udp", enginetest.AnyServer).LookupAddr(enginetest.Within(t), "10.0.0.7")
	if err != nil || !slices.Equal(got, []string{"nas."}) {
		t.Errorf("10.0.0.7 is %v, %v", got, err)
	}
	if asked := dns.Questions(); slices.Contains(asked, "www.mine.test") || slices.Contains(asked, "nas") {
		t.Errorf("asked for %q", asked)
	}
	cfg := enginetest.Parse(t, "rules: [{via: reject}]\ndns: {hosts: ['%s']}\n", file+".missing")
	if found := engine.Check(cfg); len(found) != 1 || !strings.Contains(found[0].Msg, "dns.hosts: ") {
		t.Errorf("a missing file: %v", found)
	}
}

// TestPublicResolversAreNotAsked: for names that mean something in this network only,
// unless the config says that they know them.
func TestPublicResolversAreNotAsked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte("192.168.7.9 nas.local\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	here := []string{"x.local.", "_ipp._tcp.printer.local.", "a.home.arpa.", "7.7.168.192.in-addr.arpa.", "abc.onion."}
	for resolver, asked := range map[string][]string{
		"tcp://192.0.2.53": {"www.test", "_ldap._tcp.dc.corp.local"},
		"tcp://10.0.0.53":  {"x.local", "_ipp._tcp.printer.local", "a.home.arpa", "7.7.168.192.in-addr.arpa", "abc.onion", "www.test", "_ldap._tcp.dc.corp.local"},
	} {
		far, own := startFarAway(t, "www.test"), enginetest.StartDNS(t, nil)
		l := enginetest.Start(t, `
upstreams: {far: 'socks5h://%s'}
names: {default: local, local: [.corp.local]}
rules: [{via: far}]
dns:
  hosts: [%q]
  resolvers:
    - {url: %q, via: far}
    - {url: %q, for: [.own.local]}
`, far.at, file, resolver, own.Addr)
		for _, name := range append(here, "_ldap._tcp.dc.corp.local.", "x.own.local.") {
			for range 2 {
				m := query(t, l, name, dnsmessage.TypeTXT)
				if m.RCode != dnsmessage.RCodeNameError || len(m.Authorities) != 1 {
					t.Errorf("%s: %s: %s, authority %v", resolver, name, m.RCode, m.Authorities)
				}
			}
		}
		if got := l.Lookup("ip4", "nas.local"); got != netip.MustParseAddr("192.168.7.9") {
			t.Errorf("%s: nas.local is %v", resolver, got)
		}
		if m := query(t, l, "www.test.", dnsmessage.TypeTXT); m.RCode != dnsmessage.RCodeSuccess {
			t.Errorf("%s: www.test: %s", resolver, m.RCode)
		}
		got := far.Questions()
		slices.Sort(asked)
		if !slices.Equal(got, asked) {
			t.Errorf("%s was asked for %q, want %q", resolver, got, asked)
		}
		if n := own.Asked("x.own.local"); n == 0 {
			t.Error("a resolver of its own was not asked for x.own.local")
		}
		l.Stop()
	}
}

// TestReloadOfResolvers: others are asked then, by flows that are open too, and nothing
// is remembered of what the ones before said.
func TestReloadOfResolvers(t *testing.T) {
	was, is := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	one := enginetest.StartDNS(t, map[string]netip.Addr{"www.intern.test": was})
	two := enginetest.StartDNS(t, map[string]netip.Addr{"www.intern.test": is})
	const text = "names: {local: [.intern.test]}\nrules: [{via: reject}]\ndns: {resolvers: ['%s']}\n"
	l := enginetest.Start(t, text, one.Addr)
	if got := l.Lookup("ip4", "www.intern.test"); got != was {
		t.Errorf("%s, want %s", got, was)
	}
	for _, tt := range []struct {
		addr netip.AddrPort
		want netip.Addr
	}{{two.Addr, is}, {one.Addr, was}, {one.Addr, was}} {
		if err := l.Engine.Reload(enginetest.Parse(t, text, tt.addr)); err != nil {
			t.Fatal(err)
		}
		if got := l.Lookup("ip4", "www.intern.test"); got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
	if got := one.Asked("www.intern.test"); got != 2 {
		t.Errorf("the first one was asked %d times, want twice", got)
	}
}

// TestResolversThatWeReach: those that are behind a server are none of ours to reach.
func TestResolversThatWeReach(t *testing.T) {
	cfg, err := config.Parse("tunroute.yaml", []byte(`
upstreams: {far: 'socks5h://192.0.2.1', side: {url: direct, interface: lo, mark: 0x20}}
rules: [{via: far}]
dns:
  resolvers:
    - 192.0.2.53
    - tls://192.0.2.54#dns.test
    - {url: https://dns.test/, at: [192.0.2.55, "2001:db8::55"]}
    - {url: 192.0.2.56, via: far}
    - {url: 192.0.2.57, via: side}
    - {url: 192.0.2.53, for: .corp.test}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := engine.Servers(enginetest.Within(t), cfg, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, s := range got[1:] {
		text = append(text, s.Addr.String())
	}
	want := []string{"192.0.2.53", "192.0.2.54", "192.0.2.55", "2001:db8::55", "192.0.2.57"}
	if !slices.Equal(text, want) || got[len(got)-1].Mark != 0x20 {
		t.Errorf("%v, want %v", got, want)
	}
}
