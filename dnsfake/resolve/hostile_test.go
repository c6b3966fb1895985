package resolve

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// What hostile servers would have us believe: 203.0.113.66 for whatever they are asked
// for or not, and the truth that they may say too.
const (
	evil  = "203.0.113.66"
	truth = "203.0.113.80"
)

// hostility is something that a server does instead of answering.
type hostility struct {
	name  string
	serve func(w *writer, q *dns.Msg)
	// truthful says that the truth is among what comes, and is to be heard.
	truthful bool
}

// forged answers with evil, as edit has it.
func forged(edit func(*dns.Msg)) func(w *writer, q *dns.Msg) {
	return func(w *writer, q *dns.Msg) {
		w.answer(q, func(m *dns.Msg) {
			rr(q.Question[0].Name + " 86400 IN A " + evil)(m)
			edit(m)
		})
	}
}

// packed returns the answer that edit makes, for those who break it.
func packed(q *dns.Msg, edit func(*dns.Msg)) []byte {
	m := new(dns.Msg).SetReply(q)
	edit(m)
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// chain has n aliases that lead from the question to evil.
func aliasesTo(n int, last string) func(*dns.Msg) {
	return func(m *dns.Msg) {
		name := m.Question[0].Name
		m.Answer = nil
		for i := range n {
			next := fmt.Sprintf("n%d.example.net.", i)
			rr(name + " 86400 IN CNAME " + next)(m)
			name = next
		}
		rr(name + last)(m)
		m.Compress = true
	}
}

var hostilities = []hostility{
	// Answers to what was not asked. What UDP brings is waited past.
	{"wrong ids", forged(func(m *dns.Msg) { m.Id ^= 1 }), false},
	{"wrong names", forged(func(m *dns.Msg) { m.Question[0].Name = "bank.example.net." }), false},
	{"wrong types", forged(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), false},
	{"wrong classes", forged(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), false},
	{"two questions", forged(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), false},
	{"no question", forged(func(m *dns.Msg) { m.Question = nil }), false},
	{"another opcode", forged(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), false},
	{"questions", forged(func(m *dns.Msg) { m.Response = false }), false},
	{"the question back", func(w *writer, q *dns.Msg) { w.send(packed(q, func(m *dns.Msg) { m.Response = false })) }, false},
	{"a flood of wrong ids, then the truth", func(w *writer, q *dns.Msg) {
		if w.transport != HTTPS { // where there is one answer
			b := packed(q, rr(q.Question[0].Name+" 86400 IN A "+evil))
			for i := range 1000 {
				binary.BigEndian.PutUint16(b, q.Id+1+uint16(i))
				w.send(b)
			}
		}
		honest(w, q)
	}, true},

	// Answers that say more than they were asked for.
	{"other names beside the truth", func(w *writer, q *dns.Msg) {
		w.answer(q, sections(
			[]string{q.Question[0].Name + " 60 IN A " + truth, "bank.example.net. 86400 IN A " + evil, "good.example.com. 86400 IN A " + evil},
			[]string{"example.com. 86400 IN NS ns.evil.example.", "com. 86400 IN NS ns.evil.example.", ". 86400 IN NS ns.evil.example."},
			[]string{"ns.evil.example. 86400 IN A " + evil, "bank.example.net. 86400 IN A " + evil, "good.example.com. 86400 IN A " + evil}))
	}, true},
	{"other names alone", func(w *writer, q *dns.Msg) {
		w.answer(q, sections([]string{"bank.example.net. 86400 IN A " + evil}, nil, []string{q.Question[0].Name + " 86400 IN A " + evil}))
	}, false},
	{"the names of another", func(w *writer, q *dns.Msg) {
		w.answer(q, sections([]string{"bank.example.net. 86400 IN CNAME " + q.Question[0].Name, "bank.example.net. 86400 IN A " + evil}, nil, nil))
	}, false},
	{"that another zone has nothing, for ever", func(w *writer, q *dns.Msg) {
		w.answer(q, ns(dns.RcodeNameError, "example.net. 2147483647 IN SOA a. b. 1 1 1 1 2147483647"))
	}, false},
	{"another class", func(w *writer, q *dns.Msg) { w.answer(q, rr(q.Question[0].Name+" 86400 CH A "+evil)) }, false},

	// Addresses of the network that we are in.
	{"private addresses", func(w *writer, q *dns.Msg) {
		w.answer(q, rr(q.Question[0].Name+" 86400 IN A 127.0.0.1", q.Question[0].Name+" 86400 IN A 10.0.0.1", q.Question[0].Name+" 86400 IN A 192.168.1.1",
			q.Question[0].Name+" 86400 IN A 169.254.169.254", q.Question[0].Name+" 86400 IN A 0.0.0.0"))
	}, false},
	{"private addresses behind an alias", forged(aliasesTo(1, " 86400 IN A 10.0.0.1")), false},

	// Answers without an end.
	{"a circle of aliases", forged(aliasesTo(3, " 86400 IN CNAME n0.example.net.")), false},
	{"aliases of itself", func(w *writer, q *dns.Msg) {
		w.answer(q, rr(q.Question[0].Name+" 86400 IN CNAME "+q.Question[0].Name, q.Question[0].Name+" 86400 IN A "+evil))
	}, false},
	{"a thousand aliases", forged(aliasesTo(1000, " 86400 IN A "+evil)), false},

	// Huge answers.
	{"64 KB of addresses of others", func(w *writer, q *dns.Msg) {
		w.answer(q, func(m *dns.Msg) {
			m.Truncated = w.transport == UDP
			for i := range 3000 {
				if w.transport != UDP {
					rr(fmt.Sprintf("n%d.example.net. 86400 IN A %s", i, evil))(m)
				}
			}
			m.Compress = true
		})
	}, false},
	{"64 KB of nothing", func(w *writer, q *dns.Msg) {
		w.send(append(packed(q, func(*dns.Msg) {}), make([]byte, 1<<16-1-40)...)[:1<<16-1])
	}, false},
	{"no end of it", func(w *writer, q *dns.Msg) {
		if w.transport == HTTPS {
			w.http.Header().Set("Content-Type", messageType)
			for w.request.Context().Err() == nil {
				if _, err := w.http.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
			return
		}
		for range 200 {
			w.raw(bytes.Repeat([]byte{0xff}, 1<<15))
		}
	}, false},

	// Answers that are cut, or no answers.
	{"truncated, always", forged(func(m *dns.Msg) { m.Truncated = true }), false},
	{"cut in the middle", func(w *writer, q *dns.Msg) {
		b := packed(q, rr(q.Question[0].Name+" 86400 IN A "+evil))
		w.send(b[:len(b)-2])
	}, false},
	{"counts that are not true", func(w *writer, q *dns.Msg) {
		b := packed(q, rr(q.Question[0].Name+" 86400 IN A "+evil))
		binary.BigEndian.PutUint16(b[6:], 1000)
		w.send(b)
	}, false},
	{"pointers in a circle", func(w *writer, q *dns.Msg) {
		b := packed(q, rr(q.Question[0].Name+" 86400 IN A "+evil))
		question, _ := questionOf(b)
		at := headerSize + len(question)
		b[at], b[at+1] = 0xc0, byte(at)
		w.send(b)
	}, false},
	{"noise", func(w *writer, q *dns.Msg) { w.raw(bytes.Repeat([]byte{0x17}, 1000)) }, false},
	{"nothing in it", func(w *writer, q *dns.Msg) { w.send(nil) }, false},
	{"the header alone", func(w *writer, q *dns.Msg) { w.send(packed(q, func(*dns.Msg) {})[:headerSize]) }, false},
	{"a length and no more", func(w *writer, q *dns.Msg) { w.raw([]byte{0xff}) }, false},
	{"failure", forged(rcodeIs(dns.RcodeServerFailure)), false},
	{"refusal", forged(rcodeIs(dns.RcodeRefused)), false},
	{"format error", forged(rcodeIs(dns.RcodeFormatError)), false},
	{"a code that there is not", forged(func(m *dns.Msg) { m.SetEdns0(1232, false); m.Rcode = 4000 }), false},
	{"the end", func(w *writer, _ *dns.Msg) { w.end() }, false},
	{"an answer and the end", func(w *writer, q *dns.Msg) {
		w.answer(q, rr(q.Question[0].Name+" 60 IN A "+truth))
		if w.transport != HTTPS {
			w.end()
		}
	}, true},

	// No answers, ever.
	{"nothing", func(w *writer, _ *dns.Msg) { w.hang() }, false},
	{"an octet now and then", func(w *writer, q *dns.Msg) {
		if w.transport == HTTPS {
			w.http.Header().Set("Content-Type", messageType)
		}
		for i, b := range packed(q, rr(q.Question[0].Name+" 86400 IN A "+evil)) {
			if i == 0 && w.transport != HTTPS {
				w.raw([]byte{0})
			}
			if w.transport == HTTPS {
				if _, err := w.http.Write([]byte{b}); err != nil || http.NewResponseController(w.http).Flush() != nil {
					return
				}
			} else {
				w.raw([]byte{b})
			}
			time.Sleep(time.Second)
		}
	}, false},
	{"headers and no body", func(w *writer, _ *dns.Msg) {
		if w.transport == HTTPS {
			w.http.Header().Set("Content-Type", messageType)
			_ = http.NewResponseController(w.http).Flush()
		}
		w.hang()
	}, false},
	{"the truth, late", func(w *writer, q *dns.Msg) {
		time.Sleep(time.Minute)
		honest(w, q)
	}, false},
}

// TestHostileServers: whatever a server does with the question about a victim, over
// whatever transport: nothing untrue is believed or kept, every question ends in time,
// and others are answered meanwhile, by this server and by the next.
func TestHostileServers(t *testing.T) {
	for _, tr := range transports {
		for _, h := range hostilities {
			t.Run(tr.String()+"/"+h.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testHostile(t, tr, h) })
			})
		}
	}
}

const victim = "victim.example.com"

var address = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)

func testHostile(t *testing.T, tr Transport, h hostility) {
	p := newPeer(t, func(w *writer, q *dns.Msg) {
		if canonical(q.Question[0].Name) == victim {
			h.serve(w, q)
			return
		}
		honest(w, q)
	})
	alone := start(t, Options{Servers: []Server{p.server(tr)}})
	c := cacheOf(t, alone)

	// The victim and others, by question and by look-up, at once.
	var wg sync.WaitGroup
	begin := time.Now()
	wg.Go(func() {
		m, got := exchange(t, c, new(dns.Msg).SetQuestion("VICTIM.example.com.", dns.TypeA))
		if m != nil && len(m.Ns)+len(m.Extra) > 0 && m.Rcode != dns.RcodeNameError {
			t.Errorf("the victim has more than an answer: %s", got)
		}
		checkVictim(t, h, got, time.Since(begin))
	})
	wg.Go(func() {
		addrs, err := c.LookupNetIP(t.Context(), "ip4", victim)
		checkVictim(t, h, said(addrs, err), time.Since(begin))
	})
	for i := range 5 {
		wg.Go(func() {
			if got := said(c.LookupNetIP(t.Context(), "ip4", fmt.Sprintf("good%d.example.com", i))); got != "["+truth+"]" {
				t.Errorf("a name beside the victim: %s", got)
			}
			if took := time.Since(begin); took > defaultDeadline {
				t.Errorf("a name beside the victim took %v", took)
			}
		})
	}
	wg.Wait()

	// Nothing of it is kept.
	c.mu.Lock()
	for k, el := range c.entries {
		e := el.Value.(*entry)
		if k.name != victim && !strings.HasPrefix(k.name, "good") {
			t.Errorf("%s was never asked for, and is kept", k.name)
		}
		for _, bad := range []string{evil, "127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254"} {
			if a := netip.MustParseAddr(bad).As4(); bytes.Contains(e.answer.msg, a[:]) {
				t.Errorf("%s is kept for %s: %x", bad, k.name, e.answer.msg)
			}
		}
		if e.answer.ttl > 5*time.Minute {
			t.Errorf("%s is kept for %v", k.name, e.answer.ttl)
		}
	}
	c.mu.Unlock()

	// Names that the server has spoken of and was not asked for are asked for.
	for _, name := range []string{"good.example.com", "bank.example.net", "n0.example.net"} {
		if got := said(c.LookupNetIP(t.Context(), "ip4", name)); got != "["+truth+"]" {
			t.Errorf("%s: %s", name, got)
		}
	}

	// A server that is honest is heard behind it, in either strategy.
	q := newPeer(t, honest)
	if tr == HTTPS {
		q.addr = netip.MustParseAddrPort("192.0.2.54:443")
	}
	for _, strategy := range []Strategy{Failover, Race} {
		two := start(t, Options{Servers: []Server{p.server(tr), q.server(tr)}, Strategy: strategy})
		ctx, cancel := context.WithTimeout(t.Context(), defaultDeadline)
		addrs, err := cacheOf(t, two).LookupNetIP(ctx, "ip4", victim)
		cancel()
		// To say that there is nothing is an answer like others.
		if got := said(addrs, err); got != "["+truth+"]" && got != "not found" {
			t.Errorf("with another server behind it: %s", got)
		}
	}
	time.Sleep(2 * time.Minute) // until the server has given up too
}

// checkVictim fails the test unless what was found out about the victim is the truth,
// or that it cannot be found out.
func checkVictim(t *testing.T, h hostility, got string, took time.Duration) {
	t.Helper()
	// All that may be said is an address that is true.
	if m := address.FindAllString(strings.ReplaceAll(got, "192.0.2.53", "the server"), -1); h.truthful && len(m) == 0 ||
		slices.ContainsFunc(m, func(a string) bool { return a != truth }) {
		t.Errorf("the victim: %s", got)
	}
	if took > defaultDeadline {
		t.Errorf("the victim took %v", took)
	}
}
