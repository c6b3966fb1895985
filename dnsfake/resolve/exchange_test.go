package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// exchange asks a cache and returns the answer, of which it says the data and the TTLs.
func exchange(t *testing.T, c *Cache, q *dns.Msg) (*dns.Msg, string) {
	t.Helper()
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := c.Exchange(t.Context(), b, "udp")
	if err != nil {
		return nil, err.Error()
	}
	m := new(dns.Msg)
	if err := m.Unpack(answer); err != nil {
		t.Fatal(err)
	}
	if m.Id != q.Id || m.Question[0] != q.Question[0] || m.RecursionDesired != q.RecursionDesired || m.CheckingDisabled != q.CheckingDisabled || m.IsEdns0() != nil {
		t.Errorf("%v\nis answered by\n%v", q, m)
	}
	text := dns.RcodeToString[m.Rcode]
	for _, rr := range append(m.Answer, m.Ns...) {
		if rr.Header().Name != q.Question[0].Name && rr.Header().Rrtype != dns.TypeSOA {
			t.Errorf("the owner is %s, not with the asker's letters", rr.Header().Name)
		}
		text += fmt.Sprintf(" %s(%d)", strings.TrimPrefix(rr.String(), rr.Header().String()), rr.Header().Ttl)
	}
	return m, text
}

// TestExchangeFromCache: what is kept is told with the time that is left, to everybody
// as he asked; look-ups have it too.
func TestExchangeFromCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, honest)
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		expect := func(q *dns.Msg, want string, asked int) {
			t.Helper()
			if _, got := exchange(t, c, q); got != want {
				t.Errorf("%s: %s, want %s", q.Question[0].Name, got, want)
			}
			synctest.Wait() // for what is asked in advance
			if n := len(p.questions()); n != asked {
				t.Errorf("%d questions, want %d", n, asked)
			}
		}
		expect(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), "NOERROR 203.0.113.80(60)", 1)
		time.Sleep(12500 * time.Millisecond)
		expect(new(dns.Msg).SetQuestion("WWW.Example.com.", dns.TypeA), "NOERROR 203.0.113.80(47)", 0)
		if addrs, err := c.LookupNetIP(t.Context(), "ip4", "www.example.com"); said(addrs, err) != "[203.0.113.80]" || len(p.questions()) != 0 {
			t.Errorf("look-up: %v, %v", addrs, err)
		}
		time.Sleep(47500*time.Millisecond - 1)
		expect(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), "NOERROR 203.0.113.80(0)", 1) // it is popular
		expect(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), "NOERROR 203.0.113.80(60)", 0)
		if s := c.Stats(); s.Prefetch != 1 || s.Misses != 1 || s.Hits != 4 || s.Entries != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestKeptApart: what depends on how it was asked.
func TestKeptApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			w.answer(q, func(m *dns.Msg) {
				last := 0
				if q.IsEdns0().Do() {
					last = 1
				}
				if q.CheckingDisabled {
					last += 2
				}
				if !q.RecursionDesired {
					last += 4
				}
				m.AuthenticatedData = true
				rr(fmt.Sprintf("%s 60 IN A 203.0.113.%d", q.Question[0].Name, last))(m)
				m.SetEdns0(1232, q.IsEdns0().Do())
			})
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		for round := range 3 {
			for i := range 16 {
				q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
				do, cd, norec, ad := i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0
				if do || round == 1 {
					q.SetEdns0(4096, do)
				}
				q.CheckingDisabled, q.RecursionDesired, q.AuthenticatedData = cd, !norec, ad
				m, got := exchange(t, c, q)
				if want := fmt.Sprintf("NOERROR 203.0.113.%d(60)", i&7); got != want {
					t.Errorf("%d: %s, want %s", i, got, want)
				}
				// Nobody is told that an answer is authentic who does not know what
				// that is (RFC 6840 §5.7).
				if m.AuthenticatedData != (do || ad) {
					t.Errorf("%d: AD is %v", i, m.AuthenticatedData)
				}
				asked := len(p.questions())
				if want := norec || round == 0 && !ad; asked != map[bool]int{true: 1}[want] {
					t.Errorf("%d, round %d: %d questions", i, round, asked)
				}
			}
		}
		if s := c.Stats(); s.Entries != 4 {
			t.Errorf("%+v", s)
		}
	})
}

// TestNegativeAndFailingAnswers: with the SOA record, which says for how long; and a
// failure as it is, each time.
func TestNegativeAndFailingAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			if q.Question[0].Name == "fails.example.com." {
				w.answer(q, rcodeIs(dns.RcodeServerFailure))
				return
			}
			w.answer(q, ns(dns.RcodeNameError, "example.com. 60 IN SOA ns.example.com. a.example.com. 1 1 1 1 30"))
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		for i := range 3 {
			_, got := exchange(t, c, new(dns.Msg).SetQuestion("no.example.com.", dns.TypeTXT))
			if want := fmt.Sprintf("NXDOMAIN ns.example.com. a.example.com. 1 1 1 1 30(%d)", 30-9*i); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			if _, got := exchange(t, c, new(dns.Msg).SetQuestion("fails.example.com.", dns.TypeTXT)); got != "SERVFAIL" {
				t.Errorf("%s", got)
			}
			time.Sleep(9 * time.Second)
		}
		if got := fmt.Sprint(p.questions()); got != "[no.example.com fails.example.com fails.example.com fails.example.com]" {
			t.Errorf("asked %s", got)
		}
	})
}

// TestFailuresAreKept: for a second, so that programs that ask again at once do no harm
// to a server that fails (RFC 9520).
func TestFailuresAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var works atomic.Bool
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			switch {
			case works.Load():
				honest(w, q)
			case q.Question[0].Name != "silent.example.com.":
				w.answer(q, rcodeIs(dns.RcodeServerFailure))
			}
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}, Attempts: 1}))
		asks := func(name string, want string, asked int) {
			t.Helper()
			if _, got := exchange(t, c, new(dns.Msg).SetQuestion(name, dns.TypeA)); !strings.HasSuffix(got, want) {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
			if n := len(p.questions()); n != asked {
				t.Errorf("%s: %d questions, want %d", name, n, asked)
			}
		}
		asks("www.example.com.", "SERVFAIL", 1)
		asks("www.example.com.", "SERVFAIL", 0)
		if addrs, err := c.LookupNetIP(t.Context(), "ip4", "www.example.com"); err == nil || len(p.questions()) != 0 {
			t.Errorf("a look-up: %v, %v", addrs, err)
		}
		asks("silent.example.com.", errTimeout.Error(), 1)
		asks("silent.example.com.", errTimeout.Error(), 0)
		works.Store(true)
		time.Sleep(failHold)
		for i := range 2 {
			asks("www.example.com.", "NOERROR 203.0.113.80(60)", 1-i)
			asks("silent.example.com.", "NOERROR 203.0.113.80(60)", 1-i)
		}
		works.Store(false)
		for i := range 2 * maxFailures {
			asks(fmt.Sprintf("n%d.example.com.", i), "SERVFAIL", 1)
		}
		if n := len(c.failed); n > maxFailures {
			t.Errorf("%d failures are kept", n)
		}
	})
}

// TestStaleAnswers say that they are good for half a minute.
func TestStaleAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			if !dead.Load() {
				honest(w, q)
			}
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
		exchange(t, c, q)
		dead.Store(true)
		time.Sleep(time.Hour)
		begin := time.Now()
		if _, got := exchange(t, c, q); got != "NOERROR 203.0.113.80(30)" || time.Since(begin) != stalePatience {
			t.Errorf("%s after %v", got, time.Since(begin))
		}
		begin = time.Now()
		if _, got := exchange(t, c, q); got != "NOERROR 203.0.113.80(30)" || time.Since(begin) != 0 {
			t.Errorf("%s after %v", got, time.Since(begin))
		}
		dead.Store(false)
		time.Sleep(10 * time.Second) // the question has gone on
		if _, got := exchange(t, c, q); got != "NOERROR 203.0.113.80(50)" && got != "NOERROR 203.0.113.80(51)" {
			t.Errorf("%s", got)
		}
	})
}

// TestManyAskOnce: forwarded questions and look-ups.
func TestManyAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			time.Sleep(time.Second)
			honest(w, q)
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if i%2 == 0 {
					if _, got := exchange(t, c, new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)); got != "NOERROR 203.0.113.80(60)" {
						t.Errorf("%s", got)
					}
					return
				}
				if addrs, err := c.LookupNetIP(t.Context(), "ip4", "www.example.com"); said(addrs, err) != "[203.0.113.80]" {
					t.Errorf("%v, %v", addrs, err)
				}
			})
		}
		wg.Wait()
		if got := p.questions(); len(got) != 1 {
			t.Errorf("asked %v", got)
		}
	})
}

// TestSplit: each name is asked of whom it is for.
func TestSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inside, outside := newPeer(t, honest), newPeer(t, honest)
		in, out := start(t, Options{Servers: []Server{inside.server(UDP)}}), start(t, Options{Servers: []Server{outside.server(UDP)}})
		c := NewCache(CacheOptions{Choose: func(name string) *Resolver {
			switch {
			case below(name, "corp.example.com"):
				return in
			case below(name, "example.com"):
				return out
			}
			return nil
		}})
		defer c.Close()
		for _, name := range []string{"corp.example.com.", "www.CORP.example.com.", "www.example.com."} {
			if _, got := exchange(t, c, new(dns.Msg).SetQuestion(name, dns.TypeA)); got != "NOERROR 203.0.113.80(60)" {
				t.Errorf("%s: %s", name, got)
			}
		}
		if in, out := fmt.Sprint(inside.questions()), fmt.Sprint(outside.questions()); in != "[corp.example.com www.corp.example.com]" || out != "[www.example.com]" {
			t.Errorf("asked inside %s, outside %s", in, out)
		}
		q := new(dns.Msg).SetQuestion("www.example.net.", dns.TypeA)
		for _, rd := range []bool{true, false} {
			q.RecursionDesired = rd
			if _, got := exchange(t, c, q); got != errNobody.Error() {
				t.Errorf("%s", got)
			}
		}
	})
}

// TestView: who asks one Resolver gets what that one says, and with his context where
// each question has a connection of its own.
func TestView(t *testing.T) {
	type mine struct{}
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, honest)
		s := p.server(TCP)
		s.Alone = true
		dial := s.Dial
		var seen []any
		s.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			seen = append(seen, ctx.Value(mine{}))
			return dial(ctx, network, addr)
		}
		other := newPeer(t, func(w *writer, q *dns.Msg) { w.answer(q, rcodeIs(dns.RcodeNameError)) })
		c := cacheOf(t, start(t, Options{Servers: []Server{other.server(UDP)}}))
		v := c.Of(start(t, Options{Servers: []Server{s}}))
		for i, name := range []string{"www.example.com.", "www.example.com.", "b.example.com."} {
			answer, err := v.Exchange(context.WithValue(t.Context(), mine{}, i), pack(t, name, dns.TypeA), "udp")
			if err != nil || textOf(t, answer) != honestly {
				t.Errorf("%s: %x, %v", name, answer, err)
			}
			if got := said(c.LookupNetIP(t.Context(), "ip4", name)); got != "not found" {
				t.Errorf("%s by the others: %s", name, got)
			}
		}
		if got := fmt.Sprint(seen); got != "[0 2]" {
			t.Errorf("dialled for %s", got)
		}
	})
}

// TestLongAnswersAreNotKept, and the others stay.
func TestLongAnswersAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, q *dns.Msg) {
			if w.transport == UDP && q.Question[0].Name == "long.example.com." {
				w.answer(q, func(m *dns.Msg) { m.Truncated = true })
				return
			}
			w.answer(q, func(m *dns.Msg) {
				n := 1
				if q.Question[0].Name == "long.example.com." {
					n = 2000
				}
				for i := range n {
					rr(fmt.Sprintf("%s 60 IN A 203.0.%d.%d", q.Question[0].Name, i/256, i%256))(m)
				}
				m.Compress = true
			})
		})
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		for _, name := range []string{"www.example.com.", "long.example.com.", "long.example.com.", "www.example.com."} {
			m, text := exchange(t, c, new(dns.Msg).SetQuestion(name, dns.TypeA))
			if m == nil || name[0] == 'l' && len(m.Answer) != 2000 {
				t.Errorf("%s: %.100s", name, text)
			}
		}
		if s := c.Stats(); s.Entries != 1 || s.Misses != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCacheClosed: questions end, and no more are asked.
func TestCacheClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, func(w *writer, _ *dns.Msg) { w.hang() })
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		done := make(chan error)
		go func() {
			_, err := c.LookupNetIP(t.Context(), "ip", "www.example.com")
			done <- err
		}()
		synctest.Wait()
		begin := time.Now()
		c.Close()
		if err := <-done; !errors.Is(err, ErrClosed) || time.Since(begin) > 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if _, err := c.LookupNetIP(t.Context(), "ip", "www.example.com"); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// TestQueries: what is read of a question.
func TestQueries(t *testing.T) {
	m := new(dns.Msg).SetQuestion(`a\.B.\200x.`, dns.TypeMX)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseQuery(b)
	if err != nil || q.name != `a\.b.\200x` || q.qtype != dns.TypeMX || q.do || q.cd || q.noRD || q.wantsAD {
		t.Errorf("%+v, %v", q, err)
	}
	again, ok := q.key.query()
	if !ok || string(again.wire) != lower(string(q.wire)) {
		t.Errorf("%x became %x", q.wire, again.wire)
	}
	root := new(dns.Msg).SetQuestion(".", dns.TypeNS)
	if b, err = root.Pack(); err != nil {
		t.Fatal(err)
	}
	if q, err = parseQuery(b); err != nil || q.name != "." {
		t.Errorf("%+v, %v", q, err)
	}
	if again, ok = q.key.query(); !ok || string(again.wire) != string(q.wire) {
		t.Errorf("%x became %x", q.wire, again.wire)
	}
	for _, name := range []string{"", "a..b", ".a", strings.Repeat("a", 64), strings.Repeat("a.", 128)} {
		if q, ok := keyOf(name, dns.TypeA).query(); ok {
			t.Errorf("%q can be asked for: %x", name, q.wire)
		}
	}
}

// FuzzQuery feeds what claims to be a question.
func FuzzQuery(f *testing.F) {
	m := new(dns.Msg).SetQuestion("www.Example.com.", dns.TypeA)
	for range 2 {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		m.SetEdns0(1232, true)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, err := parseQuery(msg)
		if err != nil {
			return
		}
		again, ok := q.key.query()
		if !ok || !sameName(again.wire, q.wire) {
			t.Fatalf("%x: %q is asked for as %x", msg, q.name, again.wire)
		}
		for _, edns := range []bool{false, true} {
			out, err := parseQuery(q.message(7, edns, edns))
			if err != nil || out.name != q.name || edns && out.key != q.key || out.id != 7 || out.noRD != q.noRD {
				t.Fatalf("%x became %+v, %v", msg, out, err)
			}
		}
	})
}

// TestSilentResolverTakesItsShare: what waits for it leaves the others alone, and what is
// known is told.
func TestSilentResolverTakesItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := start(t, Options{Servers: []Server{newPeer(t, func(*writer, *dns.Msg) {}).server(UDP)}})
		answers := start(t, Options{Servers: []Server{newPeer(t, honest).server(UDP)}})
		c := NewCache(CacheOptions{Choose: func(name string) *Resolver {
			if below(name, "silent.example.com") {
				return silent
			}
			return answers
		}})
		defer c.Close()
		known := new(dns.Msg).SetQuestion("known.example.com.", dns.TypeA)
		exchange(t, c, known)
		var waiting sync.WaitGroup
		for i := range maxWaiting {
			waiting.Go(func() {
				exchange(t, c, new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.silent.example.com.", i), dns.TypeA))
			})
		}
		synctest.Wait()
		begin := time.Now()
		for name, want := range map[string]string{
			"more.silent.example.com.": ErrBusy.Error(), "known.example.com.": "NOERROR 203.0.113.80(60)", "www.example.com.": "NOERROR 203.0.113.80(60)",
		} {
			if _, got := exchange(t, c, new(dns.Msg).SetQuestion(name, dns.TypeA)); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("after %v", took)
		}
		waiting.Wait()
		if _, got := exchange(t, c, new(dns.Msg).SetQuestion("more.silent.example.com.", dns.TypeA)); got == ErrBusy.Error() {
			t.Errorf("later: %s", got)
		}
	})
}

// TestRecall: what is known is told, and nobody is asked.
func TestRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, other := newPeer(t, honest), newPeer(t, honest)
		c := cacheOf(t, start(t, Options{Servers: []Server{p.server(UDP)}}))
		v := c.Of(start(t, Options{Servers: []Server{other.server(UDP)}}))
		msg := pack(t, "www.example.com.", dns.TypeA)
		recalls := func(want bool) {
			t.Helper()
			for _, recall := range []func(context.Context, []byte) ([]byte, bool){c.Recall, v.Recall} {
				answer, ok := recall(t.Context(), msg)
				if ok != want || ok && textOf(t, answer) != honestly {
					t.Errorf("%x, %v, want %v", answer, ok, want)
				}
			}
		}
		recalls(false)
		_, _ = c.Exchange(t.Context(), msg, "udp")
		_, _ = v.Exchange(t.Context(), msg, "udp")
		recalls(true)
		time.Sleep(61 * time.Second)
		recalls(false)
		if n := len(p.questions()) + len(other.questions()); n != 2 {
			t.Errorf("%d questions", n)
		}
	})
}
