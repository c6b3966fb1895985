package resolve

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// sections adds records to the sections of a message.
func sections(answer, ns, extra []string) func(*dns.Msg) {
	return func(m *dns.Msg) {
		for _, s := range []struct {
			to   *[]dns.RR
			text []string
		}{{&m.Answer, answer}, {&m.Ns, ns}, {&m.Extra, extra}} {
			var x dns.Msg
			rr(s.text...)(&x)
			*s.to = append(*s.to, x.Answer...)
		}
	}
}

// TestClean: what comes back is what was asked for, and nothing else.
func TestClean(t *testing.T) {
	const (
		sig = " 60 IN RRSIG A 13 2 60 20300101000000 20200101000000 1 example.com. c2ln"
		soa = "example.com. 60 IN SOA ns.example.com. a.example.com. 1 1 1 1 60"
	)
	list := func(s ...string) []string { return s }
	for _, tt := range []struct {
		name              string
		qtype             uint16
		do                bool
		answer, ns, extra []string
		want              []string // without TTL and class
		refused           string
	}{
		{"as it is", dns.TypeA, false, list("www.example.com. 60 IN A 203.0.113.1", "www.example.com. 60 IN A 203.0.113.2"), nil, nil,
			list("www.example.com. A 203.0.113.1", "www.example.com. A 203.0.113.2"), ""},
		{"letters of another case", dns.TypeA, false, list("WWW.Example.com. 60 IN A 203.0.113.1"), nil, nil, list("www.example.com. A 203.0.113.1"), ""},
		{"another name", dns.TypeA, false, list("www.example.com. 60 IN A 203.0.113.1", "bank.example.net. 60 IN A 203.0.113.66"), nil, nil,
			list("www.example.com. A 203.0.113.1"), ""},
		{"another name alone", dns.TypeA, false, list("bank.example.net. 60 IN A 203.0.113.66"), nil, nil, nil, ""},
		{"the zone of it", dns.TypeA, false, list("www.example.com. 60 IN A 203.0.113.1"), list("com. 60 IN NS ns.example.net.", soa),
			list("ns.example.net. 60 IN A 203.0.113.66", "bank.example.net. 60 IN A 203.0.113.66"), list("www.example.com. A 203.0.113.1"), ""},
		{"another type", dns.TypeA, false, list("www.example.com. 60 IN AAAA 2001:db8::1", `www.example.com. 60 IN TXT "x"`), nil, nil, nil, ""},
		{"another class", dns.TypeA, false, list("www.example.com. 60 CH A 203.0.113.66"), nil, nil, nil, ""},
		{"aliases", dns.TypeA, false, list("b.example.net. 60 IN A 203.0.113.1", "www.example.com. 60 IN CNAME a.example.org.", "a.example.org. 60 IN CNAME b.example.net.",
			"a.example.org. 60 IN A 203.0.113.66", "c.example.net. 60 IN A 203.0.113.66"), nil, nil,
			list("b.example.net. A 203.0.113.1", "www.example.com. CNAME a.example.org.", "a.example.org. CNAME b.example.net."), ""},
		{"two aliases of a name", dns.TypeA, false, list("www.example.com. 60 IN CNAME a.example.org.", "www.example.com. 60 IN CNAME b.example.org.",
			"a.example.org. 60 IN A 203.0.113.1", "b.example.org. 60 IN A 203.0.113.66"), nil, nil, list("www.example.com. CNAME a.example.org.", "a.example.org. A 203.0.113.1"), ""},
		{"an alias that is asked for", dns.TypeCNAME, false, list("www.example.com. 60 IN CNAME a.example.org.", "a.example.org. 60 IN CNAME b.example.org."), nil, nil,
			list("www.example.com. CNAME a.example.org."), ""},
		{"a renamed zone", dns.TypeA, false, list("example.com. 60 IN DNAME example.org.", "www.example.com. 60 IN CNAME www.example.org.", "www.example.org. 60 IN A 203.0.113.1",
			"example.net. 60 IN DNAME evil.example."), nil, nil,
			list("example.com. DNAME example.org.", "www.example.com. CNAME www.example.org.", "www.example.org. A 203.0.113.1"), ""},
		{"all types", dns.TypeANY, false, list("www.example.com. 60 IN A 203.0.113.1", `www.example.com. 60 IN TXT "x"`, "bank.example.net. 60 IN A 203.0.113.66"), nil, nil,
			list("www.example.com. A 203.0.113.1", `www.example.com. TXT "x"`), ""},
		{"signatures", dns.TypeA, true, list("www.example.com. 60 IN A 203.0.113.1", "www.example.com."+sig, "bank.example.net."+sig),
			list("a.example.com. 60 IN NSEC b.example.com. A", "com. 60 IN NS ns.example.net."), nil,
			list("www.example.com. A 203.0.113.1", "www.example.com. RRSIG A 13 2 60 20300101000000 20200101000000 1 example.com. c2ln", "a.example.com. NSEC b.example.com. A"), ""},
		{"signatures not asked for", dns.TypeA, false, list("www.example.com. 60 IN A 203.0.113.1", "www.example.com."+sig), list("a.example.com. 60 IN NSEC b.example.com. A"), nil,
			list("www.example.com. A 203.0.113.1"), ""},
		{"nothing", dns.TypeA, false, nil, list(soa, "example.net. 60 IN SOA ns.example.net. a.example.net. 1 1 1 1 60"), nil,
			list("example.com. SOA ns.example.com. a.example.com. 1 1 1 1 60"), ""},

		{"loopback", dns.TypeA, false, list("www.example.com. 60 IN A 127.0.0.1"), nil, nil, nil, "127.0.0.1"},
		{"private", dns.TypeA, false, list("www.example.com. 60 IN A 203.0.113.1", "www.example.com. 60 IN A 10.1.2.3", "www.example.com. 60 IN A 172.31.0.1", "www.example.com. 60 IN A 192.168.1.1"),
			nil, nil, list("www.example.com. A 203.0.113.1"), "192.168.1.1"},
		{"link-local", dns.TypeA, false, list("www.example.com. 60 IN A 169.254.169.254"), nil, nil, nil, "169.254.169.254"},
		{"unspecified", dns.TypeA, false, list("www.example.com. 60 IN A 0.0.0.0"), nil, nil, nil, "0.0.0.0"},
		{"this network", dns.TypeA, false, list("www.example.com. 60 IN A 0.1.2.3"), nil, nil, nil, "0.1.2.3"},
		{"IPv6", dns.TypeAAAA, false, list("www.example.com. 60 IN AAAA ::1", "www.example.com. 60 IN AAAA fd00::1", "www.example.com. 60 IN AAAA fe80::1", "www.example.com. 60 IN AAAA ::"), nil, nil, nil, "::"},
		{"mapped", dns.TypeAAAA, false, list("www.example.com. 60 IN AAAA ::ffff:10.0.0.1"), nil, nil, nil, "10.0.0.1"},
		{"behind an alias", dns.TypeA, false, list("www.example.com. 60 IN CNAME a.example.org.", "a.example.org. 60 IN A 10.0.0.1"), nil, nil, list("www.example.com. CNAME a.example.org."), "10.0.0.1"},
		{"in a hint", dns.TypeHTTPS, false, list(`www.example.com. 60 IN HTTPS 1 . alpn="h2" ipv4hint="203.0.113.1,10.0.0.1"`, `www.example.com. 60 IN HTTPS 2 . ipv6hint="2001:db8::1"`), nil, nil,
			list(`www.example.com. HTTPS 2 . ipv6hint="2001:db8::1"`), "10.0.0.1"},
		{"in ANY", dns.TypeANY, false, list("www.example.com. 60 IN A 10.0.0.1", `www.example.com. 60 IN TXT "x"`), nil, nil, list(`www.example.com. TXT "x"`), "10.0.0.1"},
		{"shared address space", dns.TypeA, false, list("www.example.com. 60 IN A 100.64.0.1"), nil, nil, nil, "100.64.0.1"},
		{"beside shared address space", dns.TypeA, false, list("www.example.com. 60 IN A 100.128.0.1"), nil, nil, list("www.example.com. A 100.128.0.1"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			query := new(dns.Msg).SetQuestion("www.example.com.", tt.qtype)
			query.SetEdns0(1232, tt.do)
			b, err := query.Pack()
			if err != nil {
				t.Fatal(err)
			}
			q, err := parseQuery(b)
			if err != nil {
				t.Fatal(err)
			}
			m := new(dns.Msg).SetReply(query)
			sections(tt.answer, tt.ns, tt.extra)(m)
			m.SetEdns0(1232, tt.do)
			msg, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			text := func(private bool) ([]string, *answer) {
				a, err := clean(msg, &q, private)
				if err != nil {
					t.Fatal(err)
				}
				var out dns.Msg
				if err := out.Unpack(a.to(&q, 10*time.Second, maxTTL)); err != nil || out.Id != query.Id {
					t.Fatalf("%v, %v", err, out)
				}
				var got []string
				for _, rr := range slices.Concat(out.Answer, out.Ns, out.Extra) {
					if rr.Header().Ttl != 50 {
						t.Errorf("%v: the TTL is not less for the age", rr)
					}
					got = append(got, strings.Join(slices.DeleteFunc(strings.Fields(rr.String()), func(f string) bool { return f == "50" || f == "IN" }), " "))
				}
				return got, a
			}
			got, a := text(false)
			refused := ""
			if a.refused.IsValid() {
				refused = a.refused.String()
			}
			if !slices.Equal(got, tt.want) || refused != tt.refused {
				t.Errorf("got  %q, refused %q\nwant %q, refused %q", got, refused, tt.want, tt.refused)
			}
			if all, a := text(true); a.refused.IsValid() || tt.refused != "" && len(all) <= len(got) {
				t.Errorf("with private addresses: %q", all)
			}
		})
	}
}

// TestPrivateAddresses: names that are not of the public tree may have them, and those
// that are allowed.
func TestPrivateAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) { w.answer(q, rr(q.Question[0].Name+" 60 IN A 10.0.0.1")) })
		r := start(t, Options{Servers: []Server{p.server(UDP)}, Private: func(name string) bool { return below(name, "corp.example.com") }})
		for name, want := range map[string]bool{
			"www.example.com": false, "example": true, "com": true, "www.example": true, "nas.local": true, "nas.lan": true,
			"a.b.home.arpa": true, "home.arpa.example.com": false, "www.corp.example.com": true, "corp.example.com": true,
			"notcorp.example.com": false, "xlan": true, "x.xlan": false, "corp": true, "Nas.LAN": true,
		} {
			got := ask(t, r, name)
			if got != "NOERROR 10.0.0.1" && got != "NOERROR" || want != (got == "NOERROR 10.0.0.1") {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}

// TestSystemIsBelieved: as the machine's own programs do.
func TestSystemIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) { w.answer(q, rr(q.Question[0].Name+" 60 IN A 10.0.0.1")) })
		path := t.TempDir() + "/resolv.conf"
		writeFile(t, path, "nameserver "+p.addr.Addr().String()+"\n", 0)
		r := start(t, Options{Servers: []Server{{System: NewSystem(path), Dial: p.server(UDP).Dial}}})
		if got := ask(t, r, "db.prod.example.com"); got != "NOERROR 10.0.0.1" {
			t.Errorf("got %s", got)
		}
	})
}

func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		name, domain string
		want         bool
	}{
		{"a.b", "b", true}, {"b", "b", true}, {"ab", "b", false}, {"b", "a.b", false}, {"a", ".", true}, {".", ".", true}, {`x\.b`, "b", false},
	} {
		if got := below(tt.name, tt.domain); got != tt.want {
			t.Errorf("%s below %s: %v", tt.name, tt.domain, got)
		}
	}
}

// TestAliasesEnd: sixteen are followed, more are a server's joke.
func TestAliasesEnd(t *testing.T) {
	for n, want := range map[int]bool{1: true, maxAliases: true, maxAliases + 1: false, 1000: false} {
		q, err := parseQuery(pack(t, "n0.example.com.", dns.TypeA))
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion("n0.example.com.", dns.TypeA)
		m.Response = true
		for i := range n {
			rr(fmt.Sprintf("n%d.example.com. 60 IN CNAME n%d.example.com.", i, i+1))(m)
		}
		rr(fmt.Sprintf("n%d.example.com. 60 IN A 203.0.113.1", n))(m)
		m.Compress = true
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		a, err := clean(b, &q, false)
		if ok := err == nil && len(a.addrs) == 1; ok != want {
			t.Errorf("%d aliases: %v", n, err)
		}
	}
}

func TestIsPrivate(t *testing.T) {
	for text, want := range map[string]bool{
		"10.1.2.3": true, "172.16.0.1": true, "172.32.0.1": false, "192.168.1.1": true, "192.169.1.1": false,
		"127.0.0.2": true, "169.254.1.1": true, "0.0.0.0": true, "0.1.2.3": true, "1.0.0.0": false,
		"100.64.0.0": true, "100.127.255.255": true, "100.63.255.255": false, "100.128.0.0": false,
		"255.255.255.255": true, "255.255.255.254": false,
		"::": true, "::1": true, "fe80::1": true, "fd00::1": true, "fec0::1": true, "feff::1": true, "2001:db8::1": false,
		"64:ff9b::192.168.1.1": true, "64:ff9b::203.0.113.1": false, "64:ff9b:1::1": true, "64:ff9b:2::a00:1": false,
		"2002:a00:1::1": true, "2002:cb00:7101::1": false, "2002:7f00:1::": true,
		"::127.0.0.1": true, "::203.0.113.1": false, "::0.0.0.2": true,
	} {
		if got := IsPrivate(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// TestRecordsCutShort: a last record that ends before its data, or in the middle of it, is
// no answer, though package dns reads it.
func TestRecordsCutShort(t *testing.T) {
	for _, tt := range []struct {
		record string
		cut    int
	}{
		{"www.test. 60 IN A 192.0.2.1", 4},
		{"www.test. 60 IN AAAA 2001:db8::1", 16},
		{"test. 60 IN SOA a. b. 1 2 3 4 5", 23}, // its second name too
	} {
		record, err := dns.NewRR(tt.record)
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion("www.test.", record.Header().Rrtype)
		query, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		q, err := parseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		m.Response = true
		if record.Header().Rrtype == dns.TypeSOA {
			m.Ns = []dns.RR{record}
		} else {
			m.Answer = []dns.RR{record}
		}
		whole, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := clean(whole, &q, false); err != nil {
			t.Errorf("%s: %v", tt.record, err)
		}
		short := bytes.Clone(whole[:len(whole)-tt.cut])
		at := bytes.LastIndex(whole, []byte{0, 0, 0, 60}) + 4
		binary.BigEndian.PutUint16(short[at:], binary.BigEndian.Uint16(short[at:])-uint16(tt.cut))
		if a, err := clean(short, &q, false); err == nil {
			t.Errorf("%s without its last %d octets: %x", tt.record, tt.cut, a.msg)
		}
	}
}
