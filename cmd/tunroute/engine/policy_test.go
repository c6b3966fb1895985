package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// farAway is a SOCKS5 server behind which there is nothing but a DNS server.
type farAway struct {
	*enginetest.DNS
	at netip.AddrPort

	mu  sync.Mutex
	got []string // what the server was asked to connect to
}

func startFarAway(t *testing.T, names ...string) *farAway {
	f := &farAway{}
	known := make(map[string]netip.Addr)
	for _, name := range names {
		known[name] = netip.MustParseAddr("192.0.2.1")
	}
	f.DNS = enginetest.NewDNS(known)
	f.at = enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		f.mu.Lock()
		f.got = append(f.got, r.Addr.String())
		f.mu.Unlock()
		if r.Addr.Port != 53 {
			return enginetest.Script{Reply: socks.ReplyRefused}
		}
		return enginetest.Script{Serve: f.ServeTCP}
	})
	return f
}

// requests returns what the server was asked for, each once.
func (f *farAway) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(f.got)))
}

// query asks the resolver of the lab a question and returns the answer.
func query(t *testing.T, l *enginetest.Lab, name string, qtype dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: qtype, Class: dnsmessage.ClassINET}},
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Host.DialUDP(netip.AddrPort{}, enginetest.AnyServer)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if deadline, ok := enginetest.Within(t).Deadline(); ok {
		c.SetDeadline(deadline)
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var a dnsmessage.Message
	if err := a.Unpack(buf[:n]); err != nil {
		t.Fatalf("%s: answer %x: %v", name, buf[:n], err)
	}
	return a
}

// TestRemoteQuestionsGoTheNamesWay: what is no address of a name is asked of the
// remote resolver through the outbound of the name's rule, and of nobody else.
func TestRemoteQuestionsGoTheNamesWay(t *testing.T) {
	a := startFarAway(t, "www.a.test", "_sip._tcp.www.a.test", "mixed.test")
	b := startFarAway(t, "www.b.test")
	alpn := dnsmessage.SVCParam{Key: dnsmessage.SVCParamALPN, Value: []byte("\x02h2")}
	hint := dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte("\xc0\x00\x02\x01")}
	a.SetHTTPS("www.a.test", alpn, hint)
	here := enginetest.StartDNS(t, map[string]netip.Addr{"www.direct.test": enginetest.Loopback})
	l := enginetest.Start(t, `
upstreams:
  a: socks5h://%s
  b: socks5h://%s
  sure: {group: [b], policy: fallback}
rules:
  - {to: .a.test, via: a}
  - {to: .b.test, via: sure}
  - {to: .direct.test, via: direct}
  - {to: mixed.test, port: 22, via: direct}
  - {to: mixed.test, port: 25, via: reject}
  - {to: mixed.test, via: a}
dns: {resolvers: ['%s'], remote-resolvers: [203.0.113.9]}
`, a.at, b.at, here.Addr)
	for _, tt := range []struct {
		name string
		dns  *enginetest.DNS // who is to be asked; nil: nobody
	}{
		{"www.a.test.", a.DNS},
		{"_sip._tcp.www.a.test.", a.DNS},
		{"www.b.test.", b.DNS},
		{"www.direct.test.", here},
		{"mixed.test.", a.DNS},
		{"rejected.test.", nil},
	} {
		m := query(t, l, tt.name, dnsmessage.TypeTXT)
		name := strings.TrimSuffix(tt.name, ".")
		for who, d := range map[string]*enginetest.DNS{"a": a.DNS, "b": b.DNS, "the resolver here": here} {
			if n := d.Asked(name); n != map[bool]int{true: 1, false: 0}[d == tt.dns] {
				t.Errorf("%s was asked for %s %d times", who, name, n)
			}
		}
		want := dnsmessage.RCodeSuccess
		if tt.dns == nil {
			want = dnsmessage.RCodeRefused
		}
		if m.RCode != want || len(m.Answers) != map[bool]int{true: 1}[tt.dns != nil] {
			t.Errorf("%s: %v", name, m.GoString())
		}
	}
	m := query(t, l, "www.a.test.", dnsmessage.TypeHTTPS)
	if len(m.Answers) != 1 {
		t.Fatalf("HTTPS: %v", m.GoString())
	}
	if got := m.Answers[0].Body.(*dnsmessage.HTTPSResource).Params; len(got) != 1 || got[0].GoString() != alpn.GoString() {
		t.Errorf("HTTPS: %v, want the protocol and no hint", got)
	}
	for who, f := range map[string]*farAway{"a": a, "b": b} {
		if got := f.requests(); !slices.Equal(got, []string{"203.0.113.9:53"}) {
			t.Errorf("%s was asked for %q", who, got)
		}
	}
}

// TestNobodyIsAsked: without a remote resolver no question about a name that goes
// through a server leaves this machine.
func TestNobodyIsAsked(t *testing.T) {
	a := startFarAway(t)
	here := enginetest.StartDNS(t, map[string]netip.Addr{"printer": enginetest.Loopback})
	l := enginetest.Start(t, "upstreams: {a: 'socks5h://%s'}\nrules: [{via: a}]\ndns: {resolvers: ['%s']}\n", a.at, here.Addr)
	for qtype, want := range map[dnsmessage.Type]dnsmessage.RCode{
		dnsmessage.TypeTXT: dnsmessage.RCodeRefused, dnsmessage.TypeMX: dnsmessage.RCodeRefused,
		dnsmessage.TypePTR: dnsmessage.RCodeRefused, dnsmessage.TypeSRV: dnsmessage.RCodeRefused,
		dnsmessage.TypeHTTPS: dnsmessage.RCodeSuccess, dnsmessage.TypeALL: dnsmessage.RCodeSuccess,
	} {
		if m := query(t, l, "www.secret.test.", qtype); m.RCode != want {
			t.Errorf("%s: %s, want %s", qtype, m.RCode, want)
		}
	}
	if asked := append(here.Questions(), a.requests()...); len(asked) > 0 {
		t.Errorf("asked for %q", asked)
	}
	// But names that mean something here only are asked for here, and get no lease:
	// a search list of Kubernetes does not fill the pool.
	for _, name := range []string{
		"printer.", "www.secret.test.default.svc.cluster.local.", "www.secret.test.svc.cluster.local.",
		"www.secret.test.cluster.local.", "4.3.2.10.in-addr.arpa.",
	} {
		query(t, l, name, dnsmessage.TypeA)
	}
	if n := l.Engine.Stats().Pool.Leases; n != 0 {
		t.Errorf("%d leases", n)
	}
	if got := here.Questions(); len(got) != 5 {
		t.Errorf("the resolver here was asked for %q", got)
	}
}

// TestReloadWhileRemoteResolverIsAsked: the question is asked anew, by the way that the new
// config has.
func TestReloadWhileRemoteResolverIsAsked(t *testing.T) {
	asked := make(chan socks.Request, 10)
	silent := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		return enginetest.Script{Serve: func(c net.Conn) {
			asked <- r
			_, _ = io.Copy(io.Discard, c)
		}}
	})
	other := startFarAway(t, "www.test")
	const text = `
upstreams: {far: 'socks5h://%s'}
rules: [{via: far}]
dns: {resolvers: [127.0.0.1], remote-resolvers: [203.0.113.9], strategy: %s}
`
	for _, strategy := range []string{"failover", "race"} { // and the cache is another
		l := enginetest.Start(t, text, silent, "failover")
		answered := make(chan dnsmessage.RCode, 1)
		go func() { answered <- query(t, l, "www.test.", dnsmessage.TypeTXT).RCode }()
		enginetest.Receive(t, "a question to the first one", asked)
		if err := l.Engine.Reload(enginetest.Parse(t, text, other.at, strategy)); err != nil {
			t.Fatal(err)
		}
		if got := enginetest.Receive(t, "an answer", answered); got != dnsmessage.RCodeSuccess {
			t.Errorf("%s: %s", strategy, got)
		}
		l.Stop()
	}
}

// TestServicesGoAsTheirHost: a name that goes to the far end, and one that a resolver of
// its own is asked for, take the names of their services along.
func TestServicesGoAsTheirHost(t *testing.T) {
	everybody, own := enginetest.StartDNS(t, nil), enginetest.StartDNS(t, nil)
	l := enginetest.Start(t, `
upstreams: {a: 'socks5h://127.0.0.1:1'}
names: {default: local, remote: [vpn.example.com, host]}
rules: [{via: a}]
dns:
  resolvers:
    - %q
    - {url: %q, for: [mail.example.com]}
`, everybody.Addr, own.Addr)
	for name, want := range map[string]dnsmessage.RCode{
		"_8443._https.vpn.example.com.": dnsmessage.RCodeSuccess, // there is no such record
		"_vpn._tcp.vpn.example.com.":    dnsmessage.RCodeSuccess,
		"_http._tcp.host.":              dnsmessage.RCodeSuccess,
		"_imaps._tcp.mail.example.com.": dnsmessage.RCodeNameError, // so they say
	} {
		if m := query(t, l, name, dnsmessage.TypeHTTPS); m.RCode != want {
			t.Errorf("%s: %s, want %s", name, m.RCode, want)
		}
	}
	if asked := everybody.Questions(); len(asked) > 0 {
		t.Errorf("the resolver for other names was asked for %q", asked)
	}
	if asked := own.Questions(); len(asked) != 1 {
		t.Errorf("the name's own resolver was asked for %q", asked)
	}
}

// TestVerdictsDecideAnswers: what names get by what their rules are, and that a reload
// changes it.
func TestVerdictsDecideAnswers(t *testing.T) {
	there := netip.MustParseAddr("192.0.2.80")
	here := enginetest.StartDNS(t, map[string]netip.Addr{"www.direct.test": there, "partly.direct.test": there, "rejected.test": there})
	const text = `
upstreams: {a: 'socks5h://127.0.0.1:1'}
rules:
  - {to: partly.direct.test, port: 80, via: a}
  - {to: .direct.test, via: direct}
  - {to: port.test, port: 80, via: a}
  - {to: rejected.test, via: reject}
  - {to: dropped.test, via: drop}
  - {to: here.test, from: 192.0.2.7, via: a}
dns: {resolvers: ['%s'], %s}
`
	l := enginetest.Start(t, text, here.Addr, "rejected: nxdomain, direct: real")
	const fake, none, real = "a fake address", "no such name", "its address"
	what := func(name string) string {
		m := query(t, l, name, dnsmessage.TypeA)
		switch {
		case m.RCode == dnsmessage.RCodeNameError:
			return none
		case m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1:
			return m.GoString()
		}
		a := netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A)
		switch {
		case a == there:
			return real
		case config.Default().DNS.Range4.Contains(a):
			return fake
		}
		return a.String()
	}
	for name, want := range map[string]string{
		"www.direct.test.": real, "partly.direct.test.": fake, "port.test.": fake,
		"rejected.test.": none, "unknown.test.": none, "dropped.test.": fake, "here.test.": fake,
	} {
		if got := what(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if n := here.Asked("rejected.test"); n != 0 {
		t.Errorf("a rejected name was asked for %d times", n)
	}
	if m := query(t, l, "rejected.test.", dnsmessage.TypeTXT); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("TXT of a rejected name: %s", m.RCode)
	}
	changed := enginetest.Parse(t, strings.ReplaceAll(text, "rejected.test, via: reject", "rejected.test, via: a"), here.Addr, "rejected: nxdomain, direct: real")
	if err := l.Engine.Reload(changed); err != nil {
		t.Fatal(err)
	}
	if got := what("rejected.test."); got != fake {
		t.Errorf("after a reload: %s, want %s", got, fake)
	}
	if err := l.Engine.Reload(enginetest.Parse(t, text, here.Addr, "reject-encrypted: true, https: nodata, ech: strip")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"rejected.test.": fake, "www.direct.test.": fake, "dns.google.": none} {
		if got := what(name); got != want {
			t.Errorf("%s after a reload of dns: %s, want %s", name, got, want)
		}
	}

	// If nothing is said, both have fake ones.
	l = enginetest.Start(t, text, here.Addr, "capture: true")
	for _, name := range []string{"www.direct.test.", "rejected.test."} {
		if got := what(name); got != fake {
			t.Errorf("%s: %s, want %s", name, got, fake)
		}
	}
}

// TestFamiliesThatAreCarried: a true IPv6 address is told only where some rule leads
// to one.
func TestFamiliesThatAreCarried(t *testing.T) {
	here := enginetest.StartDNS(t, map[string]netip.Addr{"printer": enginetest.Loopback})
	for rules, asked := range map[string]int{
		"{via: direct}": 1,
		"{via: a}":      1,
		"{via: g}":      1,
		"{via: old}":    0,
		"{via: four}":   0,
		"{to: 0.0.0.0/0, via: a}, {to: 'fc00::/7', via: reject}":           0,
		"{to: 0.0.0.0/0, via: a}, {to: ., via: a}":                         0,
		"{to: 0.0.0.0/0, via: a}, {to: ., via: a}, {to: '::/0', via: a}":   1,
		"{to: ['192.0.2.0/24', '2001:db8::/32'], via: old}, {via: reject}": 0,
	} {
		l := enginetest.Start(t, `
upstreams:
  a: socks5h://127.0.0.1:1
  old: socks4a://127.0.0.1:1
  four: {url: direct, bind: 127.0.0.1}
  g: {group: [old, direct]}
rules: [%s]
dns: {resolvers: ['%s']}
`, rules, here.Addr)
		before := here.Asked("printer")
		m := query(t, l, "printer.", dnsmessage.TypeAAAA)
		if n := here.Asked("printer") - before; m.RCode != dnsmessage.RCodeSuccess || n != asked {
			t.Errorf("%s: %s, the resolver was asked %d times, want %d", rules, m.RCode, n, asked)
		}
		if m := query(t, l, "www.test.", dnsmessage.TypeAAAA); len(m.Answers) != 1 {
			t.Errorf("%s: a faked name has %d IPv6 addresses", rules, len(m.Answers))
		}
		l.Stop()
	}
}

// TestEncryptedDNSIsRejected: the names do not exist, whatever their mode; the port and
// the addresses are refused, whatever the rules say.
func TestEncryptedDNSIsRejected(t *testing.T) {
	far := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	here := enginetest.StartDNS(t, map[string]netip.Addr{"dns.quad9.net": netip.MustParseAddr("9.9.9.9")})
	const text = "upstreams: {far: 'socks5h://%s'}\nnames: {local: [.quad9.net]}\nrules: [{via: far}]\ndns: {resolvers: ['%s'], reject-encrypted: %v}\n"
	l := enginetest.Start(t, text, far.Target(), here.Addr, true)
	for _, name := range []string{"dns.google.", "Mozilla.cloudflare-dns.com.", "dns.quad9.net."} {
		for _, qtype := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeHTTPS} {
			if m := query(t, l, name, qtype); m.RCode != dnsmessage.RCodeNameError {
				t.Errorf("%s %s: %s", name, qtype, m.RCode)
			}
		}
	}
	for _, to := range []string{"9.9.9.9:443", "192.0.2.1:853"} {
		at := netip.MustParseAddrPort(to)
		if _, err := l.Host.DialTCP(enginetest.Within(t), netip.AddrPort{}, at); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("TCP to %s: %v, want EHOSTUNREACH, as for what is prohibited", to, err)
		}
		l.Next().Has(t, enginetest.Record{"net": "tcp", "dst": to, "out": "reject", "end": "rejected", "err": "dns.reject-encrypted"})
		if err := sendUDP(t, l, at); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP to %s: %v, want ECONNREFUSED", to, err)
		}
		l.Next().Has(t, enginetest.Record{"net": "udp", "dst": to, "out": "reject", "end": "rejected", "err": "dns.reject-encrypted"})
	}
	if asked := append(here.Questions(), fmt.Sprint(len(far.Requests()))); len(asked) != 1 || asked[0] != "0" {
		t.Errorf("asked for %q", asked)
	}
	l = enginetest.Start(t, text, far.Target(), here.Addr, false)
	if m := query(t, l, "dns.google.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("without the key: %s", m.RCode)
	}
}
