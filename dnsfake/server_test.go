package dnsfake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// exchangerFunc is a resolver made of a function.
type exchangerFunc func(ctx context.Context, query []byte, network string) ([]byte, error)

func (f exchangerFunc) Exchange(ctx context.Context, query []byte, network string) ([]byte, error) {
	return f(ctx, query, network)
}

// zone is a resolver that knows these records, in the form of a zone file, and
// answers NXDOMAIN for other names. It fails for names below "fails.test".
func zone(t testing.TB, records ...string) Exchanger {
	t.Helper()
	var rrs []dns.RR
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
		var q, a dns.Msg
		if err := q.Unpack(query); err != nil {
			t.Errorf("the resolver was sent %x: %v", query, err)
			return nil, err
		}
		a.SetReply(&q)
		a.RecursionAvailable = true
		name := dns.CanonicalName(q.Question[0].Name)
		if dns.IsSubDomain("fails.test.", name) {
			return nil, errors.New("no answer")
		}
		a.Rcode = dns.RcodeNameError
		for _, rr := range rrs {
			if dns.CanonicalName(rr.Header().Name) != name {
				continue
			}
			a.Rcode = dns.RcodeSuccess
			if rr.Header().Rrtype == q.Question[0].Qtype {
				a.Answer = append(a.Answer, rr)
			}
		}
		if opt := q.IsEdns0(); opt != nil {
			a.SetEdns0(4096, opt.Do())
		}
		return a.Pack()
	})
}

// bySuffix is the modes of the tests.
func bySuffix(name string) Mode {
	switch {
	case under(name, "local.test"), under(name, "fails.test"):
		return Local
	case under(name, "both.test"):
		return LocalThenRemote
	}
	return Remote
}

// policy is one of modes and a resolver.
func policy(mode func(string) Mode, r Exchanger) func(string) Policy {
	return func(name string) Policy { return Policy{Mode: mode(name), Resolver: r} }
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Pool == nil {
		o.Pool = newPool(t, PoolOptions{})
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// question packs a question.
func question(t testing.TB, name string, qtype uint16, edit ...func(*dns.Msg)) []byte {
	t.Helper()
	var m dns.Msg
	m.SetQuestion(name, qtype)
	m.Id = 0x1234
	for _, e := range edit {
		e(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func edns(size uint16, do bool) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, do) }
}

// ask asks by UDP and unpacks the answer.
func ask(t testing.TB, s *Server, msg []byte) *dns.Msg {
	t.Helper()
	return unpack(t, s.Answer(t.Context(), msg, "udp"))
}

func unpack(t testing.TB, b []byte) *dns.Msg {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	return &m
}

// text is what matters of an answer: response code and records, but OPT.
func text(m *dns.Msg) string {
	parts := []string{dns.RcodeToString[m.Rcode]}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				parts = append(parts, []string{"", "ns ", "extra "}[i]+strings.ReplaceAll(rr.String(), "\t", " "))
			}
		}
	}
	return strings.Join(parts, "; ")
}

const soa = "; ns . 1 IN SOA . nobody.invalid. 1 3600 1200 604800 1"

func TestNewRefuses(t *testing.T) {
	p := newPool(t, PoolOptions{Quarantine: time.Minute})
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "without a pool"},
		{Options{Pool: p, TTL: -1}, "ttl"},
		{Options{Pool: p, TTL: time.Millisecond}, "ttl"},
		{Options{Pool: p, TTL: 48 * time.Hour}, "ttl"},
		{Options{Pool: p, TTL: time.Hour}, "longer than the quarantine"},
		{Options{Pool: p, MaxForwards: -1}, "at most"},
	} {
		if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.o, err, tt.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	pool := newPool(t, PoolOptions{})
	a4 := mustLease(t, pool, "leased.test", false)
	a6 := mustLease(t, pool, "leased.test", true)
	reverse := func(a netip.Addr) string {
		name, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	s := newServer(t, Options{Pool: pool, Policy: policy(bySuffix, zone(t,
		"leased.test. 300 IN TXT hello",
		"leased.test. 300 IN A 192.0.2.99",
		"leased.test. 300 IN HTTPS 1 . alpn=h2",
		"www.local.test. 300 IN A 192.0.2.1",
		"www.local.test. 300 IN HTTPS 1 . alpn=h2",
		"fake.local.test. 300 IN A 198.18.1.1",
		"fake6.local.test. 300 IN AAAA fd74:756e:726f::99",
		"v4.both.test. 300 IN A 192.0.2.4",
		"v4.both.test. 300 IN HTTPS 1 . alpn=h2",
		"v6.both.test. 300 IN AAAA 2001:db8::6",
		"dual.both.test. 300 IN A 192.0.2.5",
		"dual.both.test. 300 IN AAAA 2001:db8::5",
		"txt.both.test. 300 IN TXT hello",
		"fake.both.test. 300 IN A 198.18.1.1",
		"9.2.0.192.in-addr.arpa. 300 IN PTR nine.test.",
		"localhost. 300 IN A 192.0.2.6",
		"resolver.arpa. 300 IN A 192.0.2.7",
		"use-application-dns.net. 300 IN A 192.0.2.8",
	))})
	lease := func(name string, v6 bool) string {
		kind := "A"
		if v6 {
			kind = "AAAA"
		}
		return fmt.Sprintf("NOERROR; %s 1 IN %s %v", dns.Fqdn(name), kind, mustLease(t, pool, name, v6))
	}
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		// Remote names.
		{"leased.test.", dns.TypeA, "NOERROR; leased.test. 1 IN A " + a4.String()},
		{"leased.test.", dns.TypeAAAA, "NOERROR; leased.test. 1 IN AAAA " + a6.String()},
		{"new.test.", dns.TypeA, lease("new.test", false)},
		{"leased.test.", dns.TypeHTTPS, "NOERROR" + soa},
		{"_8443._foo.leased.test.", dns.TypeSVCB, "NOERROR" + soa},
		{"leased.test.", dns.TypeANY, `NOERROR; leased.test. 1 IN HINFO "RFC8482" ""`},
		{"leased.test.", dns.TypeTXT, `NOERROR; leased.test. 300 IN TXT "hello"`},
		{"leased.test.", dns.TypeMX, "NOERROR"},
		{"other.test.", dns.TypeTXT, "NXDOMAIN"},
		{"txt.fails.test.", dns.TypeTXT, "SERVFAIL"},

		// Names that are never leased.
		{".", dns.TypeA, "NOERROR" + soa},
		{"10.0.0.20.", dns.TypeA, "NOERROR" + soa},
		{"127.1.", dns.TypeA, "NOERROR" + soa},
		{`a\.b.test.`, dns.TypeA, "NOERROR" + soa},
		{`a\000b.test.`, dns.TypeAAAA, "NOERROR" + soa},
		{`My\032Printer.test.`, dns.TypeA, "NOERROR" + soa},

		// Local names.
		{"www.local.test.", dns.TypeA, "NOERROR; www.local.test. 300 IN A 192.0.2.1"},
		{"www.local.test.", dns.TypeAAAA, "NOERROR"},
		{"www.local.test.", dns.TypeHTTPS, `NOERROR; www.local.test. 300 IN HTTPS 1 . alpn="h2"`},
		{"www.local.test.", dns.TypeANY, "NOERROR"},
		{"nx.local.test.", dns.TypeA, "NXDOMAIN"},
		{"fails.test.", dns.TypeA, "SERVFAIL"},
		{"fake.local.test.", dns.TypeA, "SERVFAIL"},
		{"fake6.local.test.", dns.TypeAAAA, "SERVFAIL"},

		// Local first.
		{"v4.both.test.", dns.TypeA, "NOERROR; v4.both.test. 300 IN A 192.0.2.4"},
		{"v4.both.test.", dns.TypeAAAA, "NOERROR"},
		{"v4.both.test.", dns.TypeHTTPS, "NOERROR" + soa},
		{"v6.both.test.", dns.TypeA, "NOERROR"},
		{"v6.both.test.", dns.TypeAAAA, "NOERROR; v6.both.test. 300 IN AAAA 2001:db8::6"},
		{"dual.both.test.", dns.TypeA, "NOERROR; dual.both.test. 300 IN A 192.0.2.5"},
		{"dual.both.test.", dns.TypeAAAA, "NOERROR; dual.both.test. 300 IN AAAA 2001:db8::5"},
		{"txt.both.test.", dns.TypeA, lease("txt.both.test", false)},
		{"txt.both.test.", dns.TypeTXT, `NOERROR; txt.both.test. 300 IN TXT "hello"`},
		{"nx.both.test.", dns.TypeA, lease("nx.both.test", false)},
		{"nx.both.test.", dns.TypeAAAA, lease("nx.both.test", true)},
		{"fake.both.test.", dns.TypeA, lease("fake.both.test", false)},
		{"nx.both.test.", dns.TypeANY, `NOERROR; nx.both.test. 1 IN HINFO "RFC8482" ""`},

		// Reverse names.
		{reverse(a4), dns.TypePTR, "NOERROR; " + reverse(a4) + " 1 IN PTR leased.test."},
		{reverse(a6), dns.TypePTR, "NOERROR; " + reverse(a6) + " 1 IN PTR leased.test."},
		{reverse(a4), dns.TypeA, "NOERROR" + soa},
		{reverse(netip.MustParseAddr("198.18.0.1")), dns.TypePTR, "NXDOMAIN" + soa},
		{reverse(netip.MustParseAddr("fd74:756e:726f::ffff:0:0")), dns.TypePTR, "NXDOMAIN" + soa},
		{reverse(netip.MustParseAddr("192.0.2.9")), dns.TypePTR, "NOERROR; 9.2.0.192.in-addr.arpa. 300 IN PTR nine.test."},

		// Names of their own kind.
		{"localhost.", dns.TypeA, "NOERROR; localhost. 1 IN A 127.0.0.1"},
		{"a.b.localhost.", dns.TypeAAAA, "NOERROR; a.b.localhost. 1 IN AAAA ::1"},
		{"localhost.", dns.TypeTXT, "NOERROR" + soa},
		{"resolver.arpa.", dns.TypeA, "NOERROR" + soa},
		{"_dns.resolver.arpa.", dns.TypeSVCB, "NOERROR" + soa},
		{"use-application-dns.net.", dns.TypeA, "NXDOMAIN" + soa},
		{"use-application-dns.net.", dns.TypeAAAA, "NXDOMAIN" + soa},

		// Types that are not served.
		{"leased.test.", dns.TypeAXFR, "REFUSED"},
		{"www.local.test.", dns.TypeIXFR, "REFUSED"},
		{"leased.test.", dns.TypeMAILB, "NOTIMP"},
		{"leased.test.", dns.TypeTSIG, "NOTIMP"},
		{"leased.test.", dns.TypeOPT, "FORMERR"},
		{"leased.test.", 0, "FORMERR"},
	} {
		t.Run(strings.Trim(tt.name, ".")+" "+dns.Type(tt.qtype).String(), func(t *testing.T) {
			m := ask(t, s, question(t, tt.name, tt.qtype))
			if got := text(m); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if m.Id != 0x1234 || !m.Response || !m.RecursionDesired || m.Truncated || len(m.Question) != 1 {
				t.Errorf("header %v", m.MsgHdr)
			}
		})
	}
}

func TestWithoutResolver(t *testing.T) {
	s := newServer(t, Options{Policy: policy(bySuffix, nil)})
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"www.local.test.", dns.TypeA, "REFUSED"},
		{"www.test.", dns.TypeTXT, "REFUSED"},
		{"www.test.", dns.TypeHTTPS, "NOERROR"},
		{"www.both.test.", dns.TypeA, "NOERROR; www.both.test. 1 IN A "},
	} {
		answer, done := s.AnswerNow(question(t, tt.name, tt.qtype))
		if !done {
			t.Errorf("%s %s waits for a resolver", tt.name, dns.Type(tt.qtype))
			continue
		}
		if got := text(unpack(t, answer)); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s %s: %s, want %s", tt.name, dns.Type(tt.qtype), got, tt.want)
		}
	}
}

func TestAnswerNowLeavesTheResolverToAnswer(t *testing.T) {
	s := newServer(t, Options{Policy: policy(bySuffix, exchangerFunc(func(context.Context, []byte, string) ([]byte, error) {
		t.Error("AnswerNow asked the resolver")
		return nil, errors.New("no")
	}))})
	for _, tt := range []struct {
		name  string
		qtype uint16
		done  bool
	}{
		{"www.test.", dns.TypeA, true},
		{"www.test.", dns.TypeTXT, false},
		{"www.local.test.", dns.TypeA, false},
		{"www.both.test.", dns.TypeA, false},
		{"www.both.test.", dns.TypeHTTPS, true},
		{"localhost.", dns.TypeA, true},
	} {
		answer, done := s.AnswerNow(question(t, tt.name, tt.qtype))
		if done != tt.done || done != (answer != nil) {
			t.Errorf("%s %s: done is %v, answer %x", tt.name, dns.Type(tt.qtype), done, answer)
		}
	}
}

func TestRefusals(t *testing.T) {
	s := newServer(t, Options{})
	a := func(edit ...func(*dns.Msg)) []byte { return question(t, "www.test.", dns.TypeA, edit...) }
	bytesOf := func(edit func(b []byte) []byte) []byte { return edit(a()) }
	for _, tt := range []struct {
		name     string
		msg      []byte
		want     string // "" for no answer
		question bool   // is repeated
	}{
		{"nothing", nil, "", false},
		{"eleven octets", a()[:11], "", false},
		{"an answer", a(func(m *dns.Msg) { m.Response = true }), "", false},
		{"header only", a()[:12], "FORMERR", false},
		{"half a name", a()[:16], "FORMERR", false},
		{"no type", a()[:len(a())-4], "FORMERR", false},
		{"half a class", a()[:len(a())-1], "FORMERR", false},
		{"no question", bytesOf(func(b []byte) []byte { b[5] = 0; return b }), "FORMERR", false},
		{"two questions", a(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR", false},
		{"one record too few", bytesOf(func(b []byte) []byte { b[11] = 1; return b }), "FORMERR", false},
		{"compressed question", bytesOf(func(b []byte) []byte { b[12] = 0xc0; return b }), "FORMERR", false},
		{"label of an unknown kind", bytesOf(func(b []byte) []byte { b[12] = 0x40; return b }), "FORMERR", false},
		{"notify", a(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), "NOTIMP", true},
		{"update", a(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP", true},
		{"unknown opcode", a(func(m *dns.Msg) { m.Opcode = 15 }), "NOTIMP", true},
		{"unknown opcode of another form", bytesOf(func(b []byte) []byte { b[2] |= 15 << 3; return b[:14] }), "NOTIMP", false},
		{"chaos", a(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED", true},
		{"any class", a(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), "REFUSED", true},
		{"two OPTs", a(edns(1232, false), edns(1232, false)), "FORMERR", false},
		{"OPT in the answer section", a(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.Answer, m.Extra = m.Extra, nil
		}), "FORMERR", false},
		{"OPT with a name", a(func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.Extra[0].Header().Name = "x."
		}), "FORMERR", false},
		{"EDNS version 1", a(func(m *dns.Msg) {
			m.SetEdns0(1232, true)
			m.IsEdns0().SetVersion(1)
		}), "BADVERS", true},
		{"octets after the end", append(a(), 1, 2, 3), "NOERROR", true},
		{"records beside OPT", a(func(m *dns.Msg) {
			m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "www.test.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"x"}})
			m.SetEdns0(1232, false)
		}), "NOERROR", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.Answer(t.Context(), tt.msg, "udp")
			if tt.want == "" {
				if got != nil {
					t.Errorf("answer %x, want none", got)
				}
				return
			}
			m := unpack(t, got)
			name := dns.RcodeToString[m.Rcode]
			if m.Rcode == dns.RcodeBadVers {
				name = "BADVERS" // which has the number of BADSIG
			}
			if name != tt.want || (len(m.Question) == 1) != tt.question {
				t.Errorf("%s with %d questions, want %s", name, len(m.Question), tt.want)
			}
			if m.Id != 0x1234 || !m.Response || m.Opcode != int(tt.msg[2]>>3&0xf) {
				t.Errorf("header %v", m.MsgHdr)
			}
		})
	}
}

func TestEDNS(t *testing.T) {
	s := newServer(t, Options{})
	for _, tt := range []struct {
		name string
		edit []func(*dns.Msg)
		opt  bool
		do   bool
	}{
		{"none", nil, false, false},
		{"plain", []func(*dns.Msg){edns(4096, false)}, true, false},
		{"do", []func(*dns.Msg){edns(4096, true)}, true, true},
		{"small", []func(*dns.Msg){edns(0, true)}, true, true},
		{"cookie", []func(*dns.Msg){edns(1232, false), func(m *dns.Msg) {
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
		}}, true, false},
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeHTTPS, dns.TypeANY, dns.TypeMAILA} {
			t.Run(tt.name+" "+dns.Type(qtype).String(), func(t *testing.T) {
				opt := ask(t, s, question(t, "www.test.", qtype, tt.edit...)).IsEdns0()
				if (opt != nil) != tt.opt {
					t.Fatalf("OPT is %v", opt)
				}
				if opt != nil && (opt.Do() != tt.do || opt.UDPSize() != maxUDP || opt.Version() != 0 || len(opt.Option) > 0) {
					t.Errorf("OPT is %v", opt)
				}
			})
		}
	}
}

func TestFlags(t *testing.T) {
	s := newServer(t, Options{})
	m := ask(t, s, question(t, "www.test.", dns.TypeA, func(m *dns.Msg) {
		m.RecursionDesired = false
		m.CheckingDisabled = true
		m.AuthenticatedData = true
		m.Zero = true
	}))
	if m.RecursionDesired || !m.CheckingDisabled || m.AuthenticatedData || m.Authoritative || !m.RecursionAvailable || m.Zero {
		t.Errorf("header %v", m.MsgHdr)
	}
}

func TestCaseOfTheQuestionIsKept(t *testing.T) {
	s := newServer(t, Options{})
	msg := question(t, "wWw.ExAmPlE.tEsT.", dns.TypeA)
	b := s.Answer(t.Context(), msg, "udp")
	if !bytes.Contains(b, msg[12:]) {
		t.Errorf("the question %x is not in the answer %x", msg[12:], b)
	}
	first := unpack(t, b)
	second := ask(t, s, question(t, "www.example.test.", dns.TypeA))
	if a, b := first.Answer[0].(*dns.A).A, second.Answer[0].(*dns.A).A; !a.Equal(b) {
		t.Errorf("the address depends on case: %v and %v", a, b)
	}
	if name := first.Answer[0].Header().Name; name != "wWw.ExAmPlE.tEsT." {
		t.Errorf("the record is about %s", name)
	}
}

func TestLongestName(t *testing.T) {
	pool := newPool(t, PoolOptions{})
	s := newServer(t, Options{Pool: pool})
	label := strings.Repeat("a", 63) + "."
	name := label + label + label + strings.Repeat("a", 61) + "."
	m := ask(t, s, question(t, name, dns.TypeA))
	if len(m.Answer) != 1 {
		t.Fatalf("name of 255 octets: %s", text(m))
	}
	addr, _ := netip.AddrFromSlice(m.Answer[0].(*dns.A).A)
	reverse, _ := dns.ReverseAddr(addr.Unmap().String())
	b := s.Answer(t.Context(), question(t, reverse, dns.TypePTR, edns(512, false)), "udp")
	if got := unpack(t, b).Answer[0].(*dns.PTR).Ptr; got != name || len(b) > 512 {
		t.Errorf("PTR of %d octets: %s", len(b), got)
	}

	// One octet more, which package dns does not pack.
	long := append(question(t, name, dns.TypeA)[:12+64*3], 62)
	long = append(long, strings.Repeat("a", 62)...)
	long = append(long, 0, 0, 1, 0, 1)
	if m := ask(t, s, long); m.Rcode != dns.RcodeFormatError {
		t.Errorf("name of 256 octets: %s", text(m))
	}
}

func TestModeSeesCanonicalNames(t *testing.T) {
	for name, want := range map[string]string{
		"WWW.Example.":     "www.example",
		".":                ".",
		`a\.B.test.`:       `a\.b.test`,
		`a\032\255.test.`:  `a\032` + "\xff" + `.test`,
		`\097\092x\0001.t`: `a\\x\0001.t`,
	} {
		var got string
		s := newServer(t, Options{Policy: policy(func(name string) Mode { got = strings.Clone(name); return Remote }, nil)})
		ask(t, s, question(t, dns.Fqdn(name), dns.TypeA))
		if got != want {
			t.Errorf("%s: mode was asked of %q, want %q", name, got, want)
		}
	}
}

func TestExhaustedPoolFails(t *testing.T) {
	var log bytes.Buffer
	var c clock
	pool := newPool(t, PoolOptions{Max: 1, Now: c.now})
	s := newServer(t, Options{Pool: pool, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if m := ask(t, s, question(t, "a.test.", dns.TypeA)); m.Rcode != dns.RcodeSuccess {
		t.Fatalf("first name: %s", text(m))
	}
	for range 10 {
		if m := ask(t, s, question(t, "b.test.", dns.TypeA)); text(m) != "SERVFAIL" {
			t.Errorf("second name: %s", text(m))
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings in a moment: %s", n, log.String())
	}
	c.advance(warnEvery)
	ask(t, s, question(t, "b.test.", dns.TypeA))
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings in two minutes: %s", n, log.String())
	}
	if got, want := s.Stats(), (Stats{Leased: 1, Failed: 11}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestQuestionsAreLoggedAtDebugOnly(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var log bytes.Buffer
		s := newServer(t, Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))})
		for _, qtype := range []uint16{dns.TypeA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeAXFR} {
			ask(t, s, question(t, "www.test.", qtype))
		}
		want := map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 4}[level]
		if n := strings.Count(log.String(), "\n"); n != want {
			t.Errorf("%d lines at %v, want %d: %s", n, level, want, log.String())
		}
	}
}

func TestStats(t *testing.T) {
	s := newServer(t, Options{Policy: policy(bySuffix, zone(t, "www.local.test. 300 IN A 192.0.2.1"))})
	for _, msg := range [][]byte{
		question(t, "www.test.", dns.TypeA), question(t, "www.test.", dns.TypeAAAA),
		question(t, "www.test.", dns.TypeHTTPS), question(t, "localhost.", dns.TypeA),
		question(t, "www.test.", dns.TypeANY),
		question(t, "www.local.test.", dns.TypeA),
		question(t, "fails.test.", dns.TypeA),
		question(t, "www.test.", dns.TypeAXFR),
		{1, 2, 3},
	} {
		s.Answer(t.Context(), msg, "udp")
	}
	if got, want := s.Stats(), (Stats{Leased: 2, Own: 3, Refused: 1, Forwarded: 1, Failed: 1}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

// wire.go counts on it.
func TestOwnAnswersFitIn512(t *testing.T) {
	s := newServer(t, Options{TTL: 24 * time.Hour, Pool: newPool(t, PoolOptions{Quarantine: 24 * time.Hour})})
	label := strings.Repeat("a", 63) + "."
	name := label + label + label + strings.Repeat("a", 61) + "."
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeANY} {
		if b := s.Answer(t.Context(), question(t, name, qtype, edns(0, true)), "udp"); len(b) > 512 || binary.BigEndian.Uint16(b[2:])&flagTC != 0 {
			t.Errorf("%s: %d octets", dns.Type(qtype), len(b))
		}
	}
}

func BenchmarkAnswerLeased(b *testing.B) {
	s := newServer(b, Options{})
	msg, buf := question(b, "www.example.org.", dns.TypeA, edns(1232, false)), make([]byte, minUDP)
	b.ReportAllocs()
	for b.Loop() {
		if _, done := s.AnswerInto(buf, msg); !done {
			b.Fatal("not answered")
		}
	}
}

// TestAnswerIntoDoesNotAllocate: it is what every new connection begins with.
func TestAnswerIntoDoesNotAllocate(t *testing.T) {
	resolver := zone(t)
	s := newServer(t, Options{Policy: func(name string) Policy { return Policy{Resolver: resolver, Services: len(name) > 3} }})
	buf := make([]byte, minUDP)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		msg := question(t, "wWw.example.org.", qtype, edns(1232, false))
		s.AnswerInto(buf, msg)
		if n := testing.AllocsPerRun(1000, func() { s.AnswerInto(buf, msg) }); n != 0 {
			t.Errorf("%s: %v allocations", dns.Type(qtype), n)
		}
	}
}

// TestAnswerIntoKeepsNothing: what a query was read into is used for the next.
func TestAnswerIntoKeepsNothing(t *testing.T) {
	s := newServer(t, Options{})
	buf := make([]byte, minUDP)
	addrs := make(map[string]netip.Addr)
	for i := range 50 {
		name := fmt.Sprintf("host%d.example.org", i)
		answer, _ := s.AnswerInto(buf, question(t, name+".", dns.TypeA))
		addrs[name], _ = netip.AddrFromSlice(unpack(t, answer).Answer[0].(*dns.A).A.To4())
	}
	for name, addr := range addrs {
		if got, _ := s.pool.Name(addr); got != name {
			t.Errorf("%s is %q, want %q", addr, got, name)
		}
	}
	// A buffer that is too small, or none, makes no difference but to the allocator.
	msg := question(t, "www.example.org.", dns.TypeA)
	want, _ := s.AnswerNow(msg)
	for _, buf := range [][]byte{nil, make([]byte, 3), make([]byte, 511), make([]byte, 4096)} {
		for i := range buf {
			buf[i] = 0xff
		}
		if got, done := s.AnswerInto(buf, msg); !done || !bytes.Equal(got, want) {
			t.Errorf("in %d octets: %x, want %x", len(buf), got, want)
		}
	}
}

// TestPolicies: what a name's policy makes of questions about it, and that the
// answer says why.
func TestPolicies(t *testing.T) {
	s := newServer(t, Options{Policy: func(name string) Policy {
		switch name {
		case "denied.test":
			return Policy{Denied: true, Resolver: zone(t, "denied.test. 300 IN TXT hello")}
		case "local4.test":
			return Policy{Mode: Local, NoIPv6: true, Resolver: zone(t, "local4.test. 300 IN A 192.0.2.1", "local4.test. 300 IN AAAA 2001:db8::1")}
		case "fake4.test":
			return Policy{NoIPv6: true}
		case "denied.local":
			return Policy{Denied: true, Mode: Local}
		}
		return Policy{}
	}})
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
		ede   uint16 // none where it is not said
	}{
		{"denied.test.", dns.TypeA, "NXDOMAIN" + soa, dns.ExtendedErrorCodeBlocked},
		{"denied.test.", dns.TypeAAAA, "NXDOMAIN" + soa, dns.ExtendedErrorCodeBlocked},
		{"denied.test.", dns.TypeTXT, "NXDOMAIN" + soa, dns.ExtendedErrorCodeBlocked},
		{"denied.local.", dns.TypeHTTPS, "NXDOMAIN" + soa, dns.ExtendedErrorCodeBlocked},
		{"local4.test.", dns.TypeA, "NOERROR; local4.test. 300 IN A 192.0.2.1", 0},
		{"local4.test.", dns.TypeAAAA, "NOERROR" + soa, 0},
		{"fake4.test.", dns.TypeAAAA, "NOERROR; fake4.test. 1 IN AAAA fd74:", 0},
		{"other.test.", dns.TypeMX, "REFUSED", dns.ExtendedErrorCodeProhibited},
	} {
		m := ask(t, s, question(t, tt.name, tt.qtype, edns(1232, false)))
		if got := text(m); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s %s: %s, want %s", tt.name, dns.Type(tt.qtype), got, tt.want)
		}
		var ede uint16
		for _, o := range m.IsEdns0().Option {
			ede = o.(*dns.EDNS0_EDE).InfoCode
		}
		if ede != tt.ede {
			t.Errorf("%s %s: extended error %d, want %d", tt.name, dns.Type(tt.qtype), ede, tt.ede)
		}
	}
}
