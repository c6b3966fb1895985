package dnsfake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// upstream is a resolver that answers what edit makes of an empty answer.
func upstream(t testing.TB, edit func(query, answer *dns.Msg)) Exchanger {
	return exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
		q := unpack(t, query)
		a := new(dns.Msg).SetReply(q)
		edit(q, a)
		return a.Pack()
	})
}

func local(string) Mode { return Local }

// txts adds n TXT records of some 110 octets each.
func txts(a *dns.Msg, n int) {
	for i := range n {
		a.Answer = append(a.Answer, &dns.TXT{
			Hdr: dns.RR_Header{Name: a.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 77},
			Txt: []string{fmt.Sprintf("%03d %s", i, strings.Repeat("x", 90))},
		})
	}
}

func TestForwardedQuestion(t *testing.T) {
	var got *dns.Msg
	var gotNetwork string
	s := newServer(t, Options{Policy: policy(local, exchangerFunc(func(_ context.Context, query []byte, network string) ([]byte, error) {
		got, gotNetwork = unpack(t, query), network
		return new(dns.Msg).SetReply(got).Pack()
	}))})
	for _, network := range []string{"udp", "tcp"} {
		s.Answer(t.Context(), question(t, "WwW.test.", dns.TypeSRV, edns(4096, true), func(m *dns.Msg) {
			m.CheckingDisabled = true
			m.AuthenticatedData = true
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
		}), network)
		opt := got.IsEdns0()
		switch {
		case gotNetwork != network:
			t.Errorf("network %q, want %q", gotNetwork, network)
		case got.Response || !got.RecursionDesired || !got.CheckingDisabled || !got.AuthenticatedData:
			t.Errorf("header %v", got.MsgHdr)
		case got.Question[0] != dns.Question{Name: "WwW.test.", Qtype: dns.TypeSRV, Qclass: dns.ClassINET}:
			t.Errorf("question %v", got.Question[0])
		case opt == nil || opt.UDPSize() != maxUDP || !opt.Do() || len(opt.Option) > 0:
			t.Errorf("OPT %v", opt)
		}
		s.Answer(t.Context(), question(t, "www.test.", dns.TypeSRV, func(m *dns.Msg) { m.RecursionDesired = false }), network)
		if got.RecursionDesired || got.IsEdns0() != nil {
			t.Errorf("question %v", got)
		}
	}
}

func TestForwardedAnswerIsKept(t *testing.T) {
	s := newServer(t, Options{Policy: policy(local, upstream(t, func(q, a *dns.Msg) {
		a.Id++ // which an Exchanger should not, and no client must see
		a.Question[0].Name = strings.ToLower(q.Question[0].Name)
		a.Authoritative, a.AuthenticatedData, a.RecursionAvailable = true, true, true
		for _, rr := range []string{
			"www.test. 86400 IN CNAME a.test.",
			"a.test. 55 IN A 192.0.2.1",
			"a.test. 55 IN TYPE65400 \\# 3 abcdef",
		} {
			r, err := dns.NewRR(rr)
			if err != nil {
				t.Fatal(err)
			}
			a.Answer = append(a.Answer, r)
		}
		ede := &dns.EDNS0_EDE{InfoCode: 3}
		a.SetEdns0(4096, true)
		a.IsEdns0().Option = append(a.IsEdns0().Option, ede)
	}))})
	b := s.Answer(t.Context(), question(t, "wWw.TesT.", dns.TypeA, edns(1400, true)), "udp")
	m := unpack(t, b)
	if m.Id != 0x1234 || m.Question[0].Name != "wWw.TesT." {
		t.Errorf("id %x, question %v", m.Id, m.Question)
	}
	if !m.Authoritative || !m.AuthenticatedData || m.Truncated {
		t.Errorf("header %v", m.MsgHdr)
	}
	const want = `NOERROR; www.test. 86400 IN CNAME a.test.; a.test. 55 IN A 192.0.2.1; a.test. 55 CLASS1 TYPE65400 \# 3 abcdef`
	if got := text(m); !strings.EqualFold(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	opt := m.IsEdns0()
	if opt == nil || opt.UDPSize() != maxUDP || len(opt.Option) != 1 {
		t.Errorf("OPT %v", opt)
	}
}

func TestForwardedOPTIsAsTheClientWants(t *testing.T) {
	for _, client := range []bool{false, true} {
		for _, server := range []bool{false, true} {
			s := newServer(t, Options{Policy: policy(local, upstream(t, func(_, a *dns.Msg) {
				txts(a, 2)
				if server {
					a.SetEdns0(4096, false)
				}
			}))}) // whether asked or not
			var edit []func(*dns.Msg)
			if client {
				edit = append(edit, edns(1232, true))
			}
			m := ask(t, s, question(t, "www.test.", dns.TypeTXT, edit...))
			if got := m.IsEdns0() != nil; got != client || len(m.Answer) != 2 || m.Truncated {
				t.Errorf("client has EDNS %v, resolver %v: answer %v", client, server, m)
			}
		}
	}
}

func TestLongAnswersAreCut(t *testing.T) {
	const all = 500 // records, 55 KB
	s := newServer(t, Options{Policy: policy(local, upstream(t, func(_, a *dns.Msg) { txts(a, all) }))})
	for _, tt := range []struct {
		name    string
		network string
		edit    []func(*dns.Msg)
		limit   int
	}{
		{"no EDNS", "udp", nil, 512},
		{"EDNS below 512", "udp", []func(*dns.Msg){edns(100, false)}, 512},
		{"EDNS 900", "udp", []func(*dns.Msg){edns(900, true)}, 900},
		{"EDNS above ours", "udp", []func(*dns.Msg){edns(65000, true)}, 1232},
		{"TCP", "tcp", nil, 65535},
		{"TCP with EDNS", "tcp", []func(*dns.Msg){edns(900, false)}, 65535},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := s.Answer(t.Context(), question(t, "www.test.", dns.TypeTXT, tt.edit...), tt.network)
			m := unpack(t, b)
			whole := tt.network == "tcp"
			if len(b) > tt.limit || m.Truncated == whole || len(m.Answer) == 0 || (len(m.Answer) == all) != whole {
				t.Errorf("%d octets, %d records, TC %v, limit %d", len(b), len(m.Answer), m.Truncated, tt.limit)
			}
			if (m.IsEdns0() != nil) != (tt.edit != nil) || m.Id != 0x1234 {
				t.Errorf("id %x, OPT %v", m.Id, m.IsEdns0())
			}
		})
	}
}

// What package dns cannot read is cut to nothing rather than to something else.
func TestLongAnswerOfUnknownFormIsCutToNothing(t *testing.T) {
	s := newServer(t, Options{Policy: policy(local, exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
		a := bytes.Clone(query)
		a[2] |= 0x80
		a[7] = 1
		a = append(a, 0xc0, 12, 0, byte(dns.TypeNSEC), 0, 1, 0, 0, 0, 0)
		a = binary.BigEndian.AppendUint16(a, 700)
		return append(a, bytes.Repeat([]byte{0xff}, 700)...), nil
	}))})
	b := s.Answer(t.Context(), question(t, "www.test.", dns.TypeNSEC), "udp")
	if m := unpack(t, b); !m.Truncated || len(m.Answer) != 0 || len(m.Question) != 1 {
		t.Errorf("answer %v", m)
	}
}

func TestBadUpstreamAnswers(t *testing.T) {
	reply := func(edit func(b []byte) []byte) Exchanger {
		return exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
			a := unpack(t, query)
			a.Response = true
			rr, err := dns.NewRR(a.Question[0].Name + " 60 IN A 192.0.2.1")
			if err != nil {
				t.Error(err)
			}
			a.Answer = append(a.Answer, rr)
			b, err := a.Pack()
			if err != nil {
				t.Error(err)
			}
			return edit(b), nil
		})
	}
	for _, tt := range []struct {
		name string
		r    Exchanger
		want string
	}{
		{"as it should be", reply(func(b []byte) []byte { return b }), "NOERROR; www.test. 60 IN A 192.0.2.1"},
		{"octets after the end", reply(func(b []byte) []byte { return append(b, 1, 2, 3) }), "NOERROR; www.test. 60 IN A 192.0.2.1"},
		{"error", exchangerFunc(func(context.Context, []byte, string) ([]byte, error) { return nil, errors.New("no") }), "SERVFAIL"},
		{"nothing", reply(func([]byte) []byte { return nil }), "SERVFAIL"},
		{"eleven octets", reply(func(b []byte) []byte { return b[:11] }), "SERVFAIL"},
		{"a question", reply(func(b []byte) []byte { b[2] &^= 0x80; return b }), "SERVFAIL"},
		{"another opcode", reply(func(b []byte) []byte { b[2] |= 0x20; return b }), "SERVFAIL"},
		{"another name", reply(func(b []byte) []byte { b[13] = 'v'; return b }), "SERVFAIL"},
		{"another type", reply(func(b []byte) []byte { b[12+10+1] = 28; return b }), "SERVFAIL"},
		{"another class", reply(func(b []byte) []byte { b[12+10+3] = 3; return b }), "SERVFAIL"},
		{"no question", reply(func(b []byte) []byte { b[5] = 0; return b }), "SERVFAIL"},
		{"two questions", reply(func(b []byte) []byte { b[5] = 2; return b }), "SERVFAIL"},
		{"half a record", reply(func(b []byte) []byte { return b[:len(b)-1] }), "SERVFAIL"},
		{"one record too few", reply(func(b []byte) []byte { b[7]++; return b }), "SERVFAIL"},
		{"three octets of address", reply(func(b []byte) []byte { b[len(b)-5]--; return b }), "SERVFAIL"},
		{"refusal without question", reply(func(b []byte) []byte { b[3] |= 5; b[5] = 0; return b[:12] }), "REFUSED"},
		{"OPT in the answer section", reply(func(b []byte) []byte {
			b[7]++
			return append(b, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0)
		}), "SERVFAIL"},
		{"two OPTs", reply(func(b []byte) []byte {
			b[11] += 2
			return append(b, bytes.Repeat([]byte{0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0}, 2)...)
		}), "SERVFAIL"},
		{"fake address beside the answer", reply(func(b []byte) []byte {
			b[11]++
			return append(b, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 18, 0, 99)
		}), "SERVFAIL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, Options{Policy: policy(local, tt.r)})
			m := ask(t, s, question(t, "www.test.", dns.TypeA))
			if got := text(m); got != tt.want || m.Id != 0x1234 || len(m.Question) != 1 {
				t.Errorf("%s, want %s; header %v", got, tt.want, m.MsgHdr)
			}
		})
	}
}

// A truncated answer leads the client to TCP before it is taken for none.
func TestLocalThenRemoteWaitsForTheWholeAnswer(t *testing.T) {
	s := newServer(t, Options{
		Policy: policy(func(string) Mode { return LocalThenRemote }, exchangerFunc(func(_ context.Context, query []byte, network string) ([]byte, error) {
			a := new(dns.Msg).SetReply(unpack(t, query))
			if a.Truncated = network == "udp"; !a.Truncated {
				rr, err := dns.NewRR("www.test. 60 IN A 192.0.2.1")
				if err != nil {
					return nil, err
				}
				a.Answer = append(a.Answer, rr)
			}
			return a.Pack()
		})),
	})
	msg := question(t, "www.test.", dns.TypeA)
	if m := unpack(t, s.Answer(t.Context(), msg, "udp")); !m.Truncated || len(m.Answer) != 0 {
		t.Errorf("by UDP: %v", m)
	}
	if m := unpack(t, s.Answer(t.Context(), msg, "tcp")); text(m) != "NOERROR; www.test. 60 IN A 192.0.2.1" {
		t.Errorf("by TCP: %s", text(m))
	}
}

// A refusing or failing resolver does not hide that a remote end may know more.
func TestLocalThenRemoteLeasesWhenTheResolverFails(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNameError} {
		s := newServer(t, Options{
			Policy: policy(func(string) Mode { return LocalThenRemote }, upstream(t, func(_, a *dns.Msg) { a.Rcode = rcode })),
		})
		m := ask(t, s, question(t, "www.test.", dns.TypeAAAA))
		if len(m.Answer) != 1 || m.Rcode != dns.RcodeSuccess || s.Stats().Leased != 1 {
			t.Errorf("resolver says %s: %s", dns.RcodeToString[rcode], text(m))
		}
	}
}

// One that is not asked does not: the name is not on its way elsewhere for that.
func TestLocalThenRemoteWhereTooManyWait(t *testing.T) {
	s := newServer(t, Options{Policy: policy(func(string) Mode { return LocalThenRemote },
		exchangerFunc(func(context.Context, []byte, string) ([]byte, error) { return nil, fmt.Errorf("it: %w", ErrBusy) }))})
	if m := ask(t, s, question(t, "www.test.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure || s.Stats().Leased != 0 {
		t.Errorf("%s, %d leased", text(m), s.Stats().Leased)
	}
}

// The families of a name go one way, whatever the resolver says of the one that it has
// no address of.
func TestLocalThenRemoteDoesNotPartTheFamilies(t *testing.T) {
	const v4, v6 = "192.0.2.1", "2001:db8::1"
	for _, tt := range []struct {
		name     string
		a, aaaa  string // an address, a response code, or "error"
		noIPv6   bool
		wantA    string // an address, "lease", or a response code
		wantAAAA string
	}{
		{"both", v4, v6, false, v4, v6},
		{"IPv4", v4, "NOERROR", false, v4, "NOERROR"},
		{"IPv4, and no such name for IPv6", v4, "NXDOMAIN", false, v4, "NOERROR"},
		{"IPv4, and a failure for IPv6", v4, "SERVFAIL", false, v4, "NOERROR"},
		{"IPv4, and no kind for IPv6", v4, "NOTIMP", false, v4, "NOERROR"},
		{"IPv4, and silence for IPv6", v4, "error", false, v4, "SERVFAIL"},
		{"IPv6", "NOERROR", v6, false, "NOERROR", v6},
		{"IPv6, and no such name for IPv4", "NXDOMAIN", v6, false, "NOERROR", v6},
		{"IPv6, and silence for IPv4", "error", v6, false, "SERVFAIL", v6},
		{"neither", "NOERROR", "NOERROR", false, "lease", "lease"},
		{"no such name", "NXDOMAIN", "NXDOMAIN", false, "lease", "lease"},
		{"silence", "error", "error", false, "lease", "lease"},
		{"IPv6 that leads nowhere", "NOERROR", v6, true, "lease", "NOERROR"},
		{"both, and IPv6 leads nowhere", v4, v6, true, v4, "NOERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resolver := exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
				q := unpack(t, query)
				a := new(dns.Msg).SetReply(q)
				says := tt.a
				if q.Question[0].Qtype == dns.TypeAAAA {
					says = tt.aaaa
				}
				rcode, ok := dns.StringToRcode[says]
				switch {
				case says == "error":
					return nil, errors.New("no answer")
				case ok:
					a.Rcode = rcode
				default:
					rr, err := dns.NewRR("www.test. 60 IN " + dns.TypeToString[q.Question[0].Qtype] + " " + says)
					if err != nil {
						t.Fatal(err)
					}
					a.Answer = append(a.Answer, rr)
				}
				return a.Pack()
			})
			s := newServer(t, Options{Policy: func(string) Policy {
				return Policy{Mode: LocalThenRemote, Resolver: resolver, NoIPv6: tt.noIPv6}
			}})
			for qtype, want := range map[uint16]string{dns.TypeA: tt.wantA, dns.TypeAAAA: tt.wantAAAA} {
				m := ask(t, s, question(t, "www.test.", qtype))
				got := dns.RcodeToString[m.Rcode]
				if len(m.Answer) > 0 {
					rr := m.Answer[0].String()
					got = rr[strings.LastIndexByte(rr, '\t')+1:]
					if s.pool.Owns(netip.MustParseAddr(got)) {
						got = "lease"
					}
				}
				if got != want {
					t.Errorf("%s: %s, want %s", dns.TypeToString[qtype], got, want)
				}
			}
		})
	}
}

func TestForwardsAreBounded(t *testing.T) {
	const limit = 3
	entered := make(chan struct{})
	s := newServer(t, Options{MaxForwards: limit, Policy: policy(local, silent(entered))})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range limit {
		wg.Go(func() {
			if m := unpack(t, s.Answer(ctx, question(t, "www.test.", dns.TypeA), "udp")); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("cancelled: %v", m)
			}
		})
		<-entered
	}
	if n := s.Stats().Waiting; n != limit {
		t.Errorf("%d questions wait, want %d", n, limit)
	}
	if m := ask(t, s, question(t, "www.test.", dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("one too many: %v", m)
	}
	cancel()
	wg.Wait()
	if n := s.Stats().Waiting; n != 0 {
		t.Errorf("%d questions still wait", n)
	}
}

// silent is a resolver that says of each question that it has come, and answers none.
func silent(entered chan<- struct{}) Exchanger {
	return exchangerFunc(func(ctx context.Context, _ []byte, _ string) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
}

// One client does not take all the questions that may wait, and its own are told apart by
// its address alone.
func TestClientsShareOfWaiting(t *testing.T) {
	entered := make(chan struct{})
	s := newServer(t, Options{Policy: policy(local, silent(entered))})
	ctx, cancel := context.WithCancel(t.Context())
	var asked sync.WaitGroup
	waits := func(client string) bool {
		t.Helper()
		over := make(chan struct{})
		asked.Go(func() {
			defer close(over)
			s.Answer(WithClient(ctx, netip.MustParseAddr(client)), question(t, "www.test.", dns.TypeA), "udp")
		})
		select {
		case <-entered:
			return true
		case <-over:
			return false
		}
	}
	for i := range forwardsEach {
		if !waits("192.0.2.1") {
			t.Fatalf("question %d of one client does not wait", i)
		}
	}
	if waits("192.0.2.1") || waits("::ffff:192.0.2.1") {
		t.Error("one client has more than its share")
	}
	if !waits("192.0.2.2") {
		t.Error("a question of another client does not wait")
	}
	cancel()
	asked.Wait()
	if s.waiting.taken() != 0 || len(s.waiting.of) != 0 {
		t.Errorf("%d still wait, of %d clients", s.waiting.taken(), len(s.waiting.of))
	}
}

// recaller knows the answer about one name.
type recaller struct{ Exchanger }

func (recaller) Recall(_ context.Context, query []byte) ([]byte, bool) {
	var m dns.Msg
	if m.Unpack(query) != nil || m.Question[0].Name != "known.test." {
		return nil, false
	}
	b, err := new(dns.Msg).SetReply(&m).Pack()
	return b, err == nil
}

// What is known is told however many questions wait, and those that may not wait are no
// reason for a lease.
func TestKnownAnswersDoNotWait(t *testing.T) {
	entered := make(chan struct{})
	never := recaller{silent(entered)}
	s := newServer(t, Options{MaxForwards: 1, Policy: func(name string) Policy {
		if name == "both.test" {
			return Policy{Mode: LocalThenRemote, Resolver: never}
		}
		return Policy{Mode: Local, Resolver: never}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() { s.Answer(ctx, question(t, "www.test.", dns.TypeA), "udp") })
	<-entered
	for name, want := range map[string]string{"known.test.": "NOERROR", "unknown.test.": "SERVFAIL", "both.test.": "SERVFAIL"} {
		if got := text(ask(t, s, question(t, name, dns.TypeA))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	cancel()
	waiting.Wait()
}

// A question whose resolver a reload has closed is asked of the one that there is then.
func TestQuestionOutlivesItsResolver(t *testing.T) {
	closed := exchangerFunc(func(context.Context, []byte, string) ([]byte, error) {
		return nil, fmt.Errorf("the resolver is closed: %w", net.ErrClosed)
	})
	for _, tt := range []struct {
		name string
		then Exchanger
		want string
	}{
		{"another", zone(t, "www.test. 300 IN A 192.0.2.1"), "NOERROR; www.test. 300 IN A 192.0.2.1"},
		{"one that is closed too", closed, "SERVFAIL"},
		{"none", nil, "SERVFAIL"},
	} {
		asked := 0
		s := newServer(t, Options{Policy: func(string) Policy {
			if asked++; asked == 1 {
				return Policy{Mode: Local, Resolver: closed}
			}
			return Policy{Mode: Local, Resolver: tt.then}
		}})
		if got := text(ask(t, s, question(t, "www.test.", dns.TypeA))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
