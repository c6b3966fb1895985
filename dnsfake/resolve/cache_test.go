package resolve

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// server is one that can be told what to answer.
type server struct {
	*network
	cache *Cache
}

// newServer returns a server that answers so, and a Cache of what it says.
func newServer(t *testing.T, serve func(net.Conn, []byte)) *server {
	n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): serve}}
	return &server{n, cacheOf(t, n.resolver(t, serverA))}
}

// answer changes what the server answers.
func (s *server) answer(serve func(net.Conn, []byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serve["udp "+serverA.String()] = serve
}

// questions returns how many have been asked since the last time.
func (s *server) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.asked)
	s.asked = nil
	return n
}

// lookup looks up the IPv4 addresses of www.test and fails the test unless they are
// these, or "not found" or "temporary", and as many questions are asked.
func (s *server) lookup(t *testing.T, want string, questions int) {
	t.Helper()
	addrs, err := s.cache.LookupNetIP(t.Context(), "ip4", "www.test")
	if got := said(addrs, err); got != want {
		t.Errorf("%s, want %s; error %v", got, want, err)
	}
	clear(addrs) // they are the caller's own
	if n := s.questions(); n != questions {
		t.Errorf("%d questions, want %d", n, questions)
	}
}

func said(addrs []netip.Addr, err error) string {
	var e *net.DNSError
	switch {
	case err == nil:
		return fmt.Sprint(addrs)
	case errors.As(err, &e) && e.IsNotFound:
		return "not found"
	case errors.As(err, &e) && e.IsTemporary:
		return "temporary"
	}
	return err.Error()
}

// ns adds records to the authority section.
func ns(code int, records ...string) func(*dns.Msg) {
	return func(a *dns.Msg) {
		var m dns.Msg
		rr(records...)(&m)
		a.Ns, a.Rcode = m.Answer, code
	}
}

func both(edits ...func(*dns.Msg)) func(*dns.Msg) {
	return func(a *dns.Msg) {
		for _, edit := range edits {
			edit(a)
		}
	}
}

// TestCacheKeeps: an answer is good for as long as it says, to the nanosecond, within
// the bounds of this program, and asked for again after that.
func TestCacheKeeps(t *testing.T) {
	const (
		one  = "[192.0.2.1]"
		none = "not found"
		soa  = "ns.test. hostmaster.test. 1 7200 3600 86400 "
	)
	for _, tt := range []struct {
		name  string
		reply func(*dns.Msg)
		want  string
		keeps time.Duration
	}{
		{"address", rr("www.test. 60 IN A 192.0.2.1"), one, time.Minute},
		{"least of several", rr("www.test. 60 IN A 192.0.2.1", "www.test. 30 IN A 192.0.2.2", "www.test. 90 IN A 192.0.2.3"),
			"[192.0.2.1 192.0.2.2 192.0.2.3]", 30 * time.Second},
		{"not of others", rr("www.test. 60 IN A 192.0.2.1", "www.test. 1 IN AAAA ::1", "b.test. 1 IN A 192.0.2.2"), one, time.Minute},
		{"short alias", rr("www.test. 20 IN CNAME a.test.", "a.test. 40 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1"), one, 20 * time.Second},
		{"short alias of an alias", rr("www.test. 40 IN CNAME a.test.", "a.test. 20 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1"), one, 20 * time.Second},
		{"short address behind aliases", rr("www.test. 40 IN CNAME a.test.", "a.test. 60 IN CNAME b.test.", "b.test. 20 IN A 192.0.2.1"), one, 20 * time.Second},
		{"not longer than a day", rr("www.test. 86401 IN A 192.0.2.1"), one, 24 * time.Hour},
		{"a negative ttl is a great one", rr("www.test. 4294967295 IN A 192.0.2.1"), one, 24 * time.Hour},
		{"ttl 0", rr("www.test. 0 IN A 192.0.2.1"), one, 0},
		{"ttl 0 of an alias", rr("www.test. 0 IN CNAME a.test.", "a.test. 60 IN A 192.0.2.1"), one, 0},
		{"no such name, minimum", ns(dns.RcodeNameError, "test. 60 IN SOA "+soa+"20"), none, 20 * time.Second},
		{"no such name, ttl", ns(dns.RcodeNameError, "test. 20 IN SOA "+soa+"60"), none, 20 * time.Second},
		{"no address", ns(dns.RcodeSuccess, "test. 60 IN SOA "+soa+"20"), none, 20 * time.Second},
		{"none not longer than five minutes", ns(dns.RcodeSuccess, "test. 3600 IN SOA "+soa+"3600"), none, 5 * time.Minute},
		{"none for no time", ns(dns.RcodeSuccess, "test. 3600 IN SOA "+soa+"0"), none, 0},
		{"no such name without a zone", ns(dns.RcodeNameError), none, 0},
		{"no address without a zone", ns(dns.RcodeSuccess, "test. 60 IN NS ns.test."), none, 0},
		{"zone of another", ns(dns.RcodeNameError, "example. 60 IN SOA "+soa+"20"), none, 0},
		{"alias to nothing", both(rr("www.test. 10 IN CNAME a.example."), ns(dns.RcodeNameError, "example. 60 IN SOA "+soa+"20")), none, 10 * time.Second},
		{"alias to nothing for less", both(rr("www.test. 40 IN CNAME a.example."), ns(dns.RcodeSuccess, "example. 60 IN SOA "+soa+"20")), none, 20 * time.Second},
		{"failure", rcodeIs(dns.RcodeServerFailure), "temporary", failHold},
		{"refusal", both(rr("www.test. 60 IN A 192.0.2.1"), rcodeIs(dns.RcodeRefused)), "temporary", failHold},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, replies(tt.reply))
				s.lookup(t, tt.want, 1)
				if tt.keeps > 0 {
					s.lookup(t, tt.want, 0)
					time.Sleep(tt.keeps - time.Nanosecond)
					s.lookup(t, tt.want, 0)
					time.Sleep(time.Nanosecond)
				}
				s.answer(replies(rr("www.test. 60 IN A 192.0.2.99")))
				s.lookup(t, "[192.0.2.99]", 1)
			})
		})
	}
}

// TestCacheServesStale: what ran out stands in while servers fail, for a day.
func TestCacheServesStale(t *testing.T) {
	const was, is = "[192.0.2.1]", "[192.0.2.2]"
	fails := replies(rcodeIs(dns.RcodeServerFailure))
	begin := func(t *testing.T, then func(net.Conn, []byte)) *server {
		s := newServer(t, replies(rr("www.test. 60 IN A 192.0.2.1")))
		s.lookup(t, was, 1)
		s.answer(then)
		time.Sleep(time.Minute)
		return s
	}
	for name, test := range map[string]func(t *testing.T){
		"and asks again after thirty seconds": func(t *testing.T) {
			s := begin(t, fails)
			s.lookup(t, was, 1)
			for range 3 {
				time.Sleep(staleHold - time.Nanosecond)
				s.lookup(t, was, 0)
				time.Sleep(time.Nanosecond)
				s.lookup(t, was, 1)
			}
			s.answer(replies(rr("www.test. 60 IN A 192.0.2.2")))
			time.Sleep(staleHold)
			s.lookup(t, is, 1)
			s.answer(fails)
			time.Sleep(time.Minute)
			s.lookup(t, is, 1)
		},
		"for a day": func(t *testing.T) {
			s := begin(t, fails)
			time.Sleep(24*time.Hour - time.Nanosecond)
			s.lookup(t, was, 1)
			time.Sleep(staleHold)
			s.lookup(t, "temporary", 1)
			if n := s.cache.used.Len() + len(s.cache.entries); n != 0 {
				t.Error("what is too old is still there")
			}
		},
		"but not against what servers know": func(t *testing.T) {
			s := begin(t, replies(rcodeIs(dns.RcodeNameError)))
			s.lookup(t, "not found", 1)
			s.answer(fails)
			s.lookup(t, "temporary", 1)
		},
		"but not after an answer for once": func(t *testing.T) {
			s := begin(t, replies(rr("www.test. 0 IN A 192.0.2.2")))
			s.lookup(t, is, 1)
			s.answer(fails)
			s.lookup(t, "temporary", 1)
		},
		"that there is none, too": func(t *testing.T) {
			s := newServer(t, replies(ns(dns.RcodeSuccess, "test. 60 IN SOA ns.test. a.test. 1 1 1 1 60")))
			s.lookup(t, "not found", 1)
			s.answer(fails)
			time.Sleep(time.Minute)
			s.lookup(t, "not found", 1)
			s.lookup(t, "not found", 0)
		},
		"when servers are silent": func(t *testing.T) {
			n := &network{serve: make(map[string]func(net.Conn, []byte))}
			var servers []netip.AddrPort
			for i := range 4 {
				a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53)
				servers = append(servers, a)
				n.serve["udp "+a.String()] = silence
			}
			last := "udp " + servers[3].String()
			n.serve[last] = replies(rr("www.test. 60 IN A 192.0.2.1"))
			s := &server{n, cacheOf(t, n.resolver(t, servers...))}
			s.lookup(t, was, 4) // with nothing to stand in, all are waited for
			n.serve[last] = silence
			time.Sleep(time.Minute)
			start := time.Now()
			s.lookup(t, was, 1)
			if took := time.Since(start); took != stalePatience {
				t.Errorf("it took %v, want %v", took, stalePatience)
			}
			s.lookup(t, was, 0)
			s.mu.Lock()
			n.serve[last] = replies(rr("www.test. 60 IN A 192.0.2.2"))
			s.mu.Unlock()
			time.Sleep(6*time.Second - stalePatience)
			synctest.Wait()
			s.lookup(t, is, 3) // it was asked for meanwhile
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}

// TestCacheAsksOnce: who looks up what is asked for already waits for that, as long
// as he likes.
func TestCacheAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, gone := make(chan struct{}), make(chan struct{}, 1)
		s := newServer(t, func(conn net.Conn, query []byte) {
			closed := make(chan struct{})
			go func() {
				_, _ = conn.Read(make([]byte, 1)) // until the client closes
				close(closed)
			}()
			select {
			case <-release:
				replies(rr("www.test. 60 IN A 192.0.2.1"))(conn, query)
			case <-closed:
				gone <- struct{}{}
			}
		})
		type waiter struct {
			cancel context.CancelCauseFunc
			done   chan struct{}
			addrs  []netip.Addr
			err    error
		}
		wait := func(network, host string) *waiter {
			ctx, cancel := context.WithCancelCause(t.Context())
			w := &waiter{cancel: cancel, done: make(chan struct{})}
			go func() {
				defer close(w.done)
				w.addrs, w.err = s.cache.LookupNetIP(ctx, network, host)
			}()
			synctest.Wait() // it waits
			return w
		}
		stopped := errors.New("stopped")

		// All leave: the question ends, and the next one asks anew.
		first, second := wait("ip4", "www.test"), wait("ip4", "WWW.test.")
		if n := s.questions(); n != 1 {
			t.Fatalf("%d questions for two who wait, want 1", n)
		}
		first.cancel(stopped)
		<-first.done
		synctest.Wait()
		select {
		case <-second.done:
			t.Fatalf("the end of one ended the other: %v, %v", second.addrs, second.err)
		case <-gone:
			t.Fatal("the question ended, and somebody waits for it")
		default:
		}
		second.cancel(stopped)
		<-second.done
		<-gone
		for _, w := range []*waiter{first, second} {
			if !errors.Is(w.err, stopped) {
				t.Errorf("who left got %v, %v", w.addrs, w.err)
			}
		}
		if n := len(s.cache.asking) + len(s.cache.entries); n != 0 {
			t.Errorf("%d left of a question that ended", n)
		}

		// Who asked leaves, the others get the answer.
		first, second = wait("ip4", "www.test"), wait("ip4", "www.test")
		third := wait("ip4", "www.test")
		first.cancel(stopped)
		<-first.done
		close(release)
		<-second.done
		<-third.done
		if n := s.questions(); n != 1 {
			t.Errorf("%d questions, want 1", n)
		}
		second.addrs[0] = netip.Addr{} // it is its own
		if got := said(third.addrs, third.err); got != "[192.0.2.1]" {
			t.Errorf("the other got %s", got)
		}
		s.lookup(t, "[192.0.2.1]", 0)
	})
}

// TestCacheAsksAnewBesideAnEnd: who comes while a question that nobody waits for is
// still ending asks his own, and the end of the first does not end it.
func TestCacheAsksAnewBesideAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{serve: make(map[string]func(net.Conn, []byte))}
		slow, answer := make(chan struct{}), make(chan struct{})
		n.serve["udp "+serverA.String()] = func(conn net.Conn, query []byte) {
			<-answer
			replies(rr("www.test. 60 IN A 192.0.2.1"))(conn, query)
		}
		dials := 0
		c := cacheOf(t, start(t, Options{Servers: []Server{Plain(serverA, func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials++; dials == 1 {
				<-slow // whatever becomes of ctx
			}
			return n.dial(ctx, network, addr)
		})}, Timeout: time.Hour}))
		lookup := func(ctx context.Context) <-chan string {
			done := make(chan string, 1)
			go func() { done <- said(c.LookupNetIP(ctx, "ip4", "www.test")) }()
			synctest.Wait()
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := lookup(ctx)
		cancel()
		synctest.Wait() // it leaves
		second := lookup(t.Context())
		close(slow)
		if got := <-first; got != "temporary" {
			t.Errorf("who left got %s", got)
		}
		third := lookup(t.Context())
		if dials != 2 {
			t.Errorf("%d questions, want one and one that ended", dials)
		}
		close(answer)
		for _, done := range []<-chan string{second, third} {
			if got := <-done; got != "[192.0.2.1]" {
				t.Errorf("who stayed got %s", got)
			}
		}
	})
}

// TestCacheIsBounded: in octets, and in the addresses of a look-up.
func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, func(conn net.Conn, query []byte) {
			replies(func(a *dns.Msg) { rr(a.Question[0].Name + " 60 IN A 192.0.2.1")(a) })(conn, query)
		})
		s.cache.opts.MaxBytes = 100 << 10
		for i := range 1000 {
			if _, err := s.cache.LookupNetIP(t.Context(), "ip4", fmt.Sprintf("n%d.test", i)); err != nil {
				t.Fatal(err)
			}
		}
		var sum int
		for _, el := range s.cache.entries {
			sum += el.Value.(*entry).size()
		}
		if got := s.cache.Stats(); sum != got.Bytes || sum > 100<<10 || sum < 99<<10 || got.Entries != len(s.cache.entries) || got.Entries < 150 {
			t.Errorf("%+v, and %d octets in %d entries", got, sum, len(s.cache.entries))
		}
		s.answer(replies(func(a *dns.Msg) {
			for i := range maxAddrs + 6 {
				rr(fmt.Sprintf("www.test. 60 IN A 10.0.0.%d", i))(a)
			}
		}))
		for range 2 {
			addrs, err := s.cache.LookupNetIP(t.Context(), "ip4", "www.test")
			if err != nil || len(addrs) != maxAddrs || addrs[maxAddrs-1] != netip.MustParseAddr("10.0.0.63") {
				t.Errorf("%d addresses, %v, want the first %d", len(addrs), err, maxAddrs)
			}
		}
	})
}

// kept is an entry of the oracle.
type kept struct {
	name         string // and family
	want         string
	until, stale time.Time
	size         int
}

// TestCacheAgainstOracle: names that come, move, vanish and fail at random times,
// looked up at random times, in a cache with room for half of them.
func TestCacheAgainstOracle(t *testing.T) {
	const size, ops = 3000, 5000
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) {
		type truth struct {
			reply func(*dns.Msg)
			want  string
			keep  int // seconds
		}
		var now truth // of the name that is looked up next
		s := newServer(t, func(conn net.Conn, query []byte) { replies(now.reply)(conn, query) })
		s.cache.opts.MaxBytes = size
		s.cache.popular = ops // of which the oracle knows nothing
		var all []kept        // the last used last
		failed := make(map[string]time.Time)
		for op := range ops {
			name := string(rune('a'+rnd.IntN(6))) + ".test"
			family, rtype, addr := "ip4", "A", fmt.Sprintf("192.0.2.%d", rnd.IntN(256))
			if rnd.IntN(2) == 0 {
				family, rtype, addr = "ip6", "AAAA", "2001:db8::"+fmt.Sprint(1+rnd.IntN(9))
			}
			ttl := []int{0, 1, 30, 300, 301, 86400, 90000}[rnd.IntN(7)]
			switch rnd.IntN(4) {
			case 0:
				now = truth{rcodeIs(dns.RcodeServerFailure), "temporary", -1}
			case 1:
				soa := fmt.Sprintf("test. %d IN SOA ns.test. a.test. 1 1 1 1 300", ttl)
				now = truth{ns([]int{dns.RcodeNameError, dns.RcodeSuccess}[rnd.IntN(2)], soa), "not found", min(ttl, 300)}
			default:
				now = truth{rr(fmt.Sprintf("%s. %d IN %s %s", name, ttl, rtype, addr)), "[" + addr + "]", min(ttl, 86400)}
			}

			// What the oracle expects.
			k, want, questions := name+" "+family, now.want, 1
			i := slices.IndexFunc(all, func(e kept) bool { return e.name == k })
			var e kept
			if i >= 0 {
				e = all[i]
				all = slices.Delete(all, i, i+1)
			}
			t0 := time.Now()
			switch {
			case i >= 0 && t0.Before(e.until):
				want, questions = e.want, 0
				all = append(all, e)
			case t0.Before(failed[k]):
				want, questions = "temporary", 0
				if i >= 0 {
					all = slices.Insert(all, i, e) // which does not count as a use
				}
			case now.keep < 0 && i >= 0 && t0.Before(e.stale):
				want = e.want
				e.until = t0.Add(30 * time.Second)
				all = append(all, e)
			case now.keep > 0:
				until := t0.Add(time.Duration(now.keep) * time.Second)
				all = append(all, kept{k, want, until, until.Add(24 * time.Hour), 0})
			}

			switch {
			case questions == 1 && now.keep < 0:
				failed[k] = t0.Add(failHold)
			case questions == 1:
				delete(failed, k)
			}

			addrs, err := s.cache.LookupNetIP(t.Context(), family, name)
			if got, n := said(addrs, err), s.questions(); got != want || n != questions {
				t.Fatalf("seed %#x, operation %d, %s: %s with %d questions, want %s with %d", seed, op, k, got, n, want, questions)
			}
			qtype := map[string]uint16{"ip4": dns.TypeA, "ip6": dns.TypeAAAA}[family]
			if el := s.cache.entries[keyOf(name, qtype)]; el != nil && len(all) > 0 {
				all[len(all)-1].size = el.Value.(*entry).size()
			}
			total := 0
			for _, e := range all {
				total += e.size
			}
			for total > size {
				total -= all[0].size
				all = all[1:]
			}
			if s.cache.size != total || len(s.cache.entries) != len(all) || s.cache.used.Len() != len(all) || len(s.cache.asking) != 0 {
				t.Fatalf("seed %#x, operation %d: %d entries, want %d", seed, op, len(s.cache.entries), len(all))
			}
			time.Sleep(time.Duration([]int{0, 1, 10, 30, 300, 80000}[rnd.IntN(6)]) * time.Second)
		}
	})
}

// TestCacheOfManyAtOnce: under load everybody gets the truth; the race detector sees
// the rest.
func TestCacheOfManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, byType(
			replies(func(a *dns.Msg) { rr(a.Question[0].Name + " 1 IN A 192.0.2.1")(a) }),
			replies(func(a *dns.Msg) { rr(a.Question[0].Name + " 2 IN AAAA 2001:db8::1")(a) })))
		s.cache.opts.MaxBytes = 2000
		errs := make(chan error)
		for w := range 16 {
			go func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 0))
				for range 200 {
					ctx, cancel := context.WithCancel(t.Context())
					if rnd.IntN(4) == 0 {
						go cancel()
					}
					addrs, err := s.cache.LookupNetIP(ctx, "ip", fmt.Sprintf("n%d.test", rnd.IntN(4)))
					if got := said(addrs, err); ctx.Err() == nil && got != "[192.0.2.1 2001:db8::1]" {
						errs <- fmt.Errorf("%s, %w", got, err)
					}
					cancel()
					time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
				}
				errs <- nil
			}()
		}
		for range 16 {
			for err := <-errs; err != nil; err = <-errs {
				t.Error(err)
			}
		}
		if n := len(s.cache.asking); n != 0 {
			t.Errorf("%d questions left", n)
		}
	})
}

// TestCacheHitAllocates no more than the slice.
func TestCacheHitAllocates(t *testing.T) {
	c := cacheOf(t, filled(t))
	for _, network := range []string{"ip", "ip4"} {
		lookup := func() {
			if addrs, err := c.LookupNetIP(t.Context(), network, "www.test"); err != nil || len(addrs) != 1 {
				t.Fatal(addrs, err)
			}
		}
		lookup()
		if n := testing.AllocsPerRun(100, lookup); n > 1 {
			t.Errorf("%s: %v allocations", network, n)
		}
	}
}

func BenchmarkCacheHit(b *testing.B) {
	c := cacheOf(b, filled(b))
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.LookupNetIP(ctx, "ip", "www.test"); err != nil {
			b.Fatal(err)
		}
	}
}

// filled returns a Resolver of a name that has one address, for a day.
func filled(t testing.TB) *Resolver {
	t.Helper()
	n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): byType(
		replies(rr("www.test. 86400 IN A 192.0.2.1")),
		replies(ns(dns.RcodeSuccess, "test. 86400 IN SOA ns.test. a.test. 1 1 1 1 86400")),
	)}}
	return start(t, Options{Servers: n.servers(serverA), Timeout: time.Minute})
}
