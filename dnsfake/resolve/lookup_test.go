package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// byType answers A and AAAA questions apart.
func byType(a, aaaa func(net.Conn, []byte)) func(net.Conn, []byte) {
	return func(conn net.Conn, query []byte) {
		var q dns.Msg
		switch {
		case q.Unpack(query) != nil:
		case q.Question[0].Qtype == dns.TypeA:
			a(conn, query)
		case q.Question[0].Qtype == dns.TypeAAAA:
			aaaa(conn, query)
		}
	}
}

func TestLookupNetIP(t *testing.T) {
	none := replies(func(*dns.Msg) {})
	nx := replies(rcodeIs(dns.RcodeNameError))
	fail := replies(rcodeIs(dns.RcodeServerFailure))
	a := replies(rr("www.test. 60 IN A 192.0.2.2", "WWW.test. 60 IN A 192.0.2.1"))
	aaaa := replies(rr("www.test. 60 IN AAAA 2001:db8::1"))
	const both = "[192.0.2.2 192.0.2.1 2001:db8::1]"
	for _, tt := range []struct {
		name    string
		network string
		host    string
		serve   func(net.Conn, []byte)
		want    string // addresses, or "not found", "timeout", "temporary" or "other"
		took    time.Duration
	}{
		{"both families", "ip", "www.test", byType(a, aaaa), both, 0},
		{"trailing dot and case", "ip", "WWW.Test.", byType(a, aaaa), both, 0},
		{"ip4", "ip4", "www.test", byType(a, aaaa), "[192.0.2.2 192.0.2.1]", 0},
		{"ip6", "ip6", "www.test", byType(a, aaaa), "[2001:db8::1]", 0},
		{"tcp is no network here", "tcp", "www.test", byType(a, aaaa), "other", 0},
		{"one family", "ip", "www.test", byType(none, aaaa), "[2001:db8::1]", 0},
		{"other family missing", "ip4", "www.test", byType(none, aaaa), "not found", 0},
		{"one family fails", "ip", "www.test", byType(a, fail), "[192.0.2.2 192.0.2.1]", 0},
		{"one family is silent", "ip", "www.test", byType(a, silence), "[192.0.2.2 192.0.2.1]", 2 * defaultTimeout},
		{"none and silent", "ip", "www.test", byType(none, silence), "timeout", 2 * defaultTimeout},
		{"silent and none", "ip", "www.test", byType(silence, none), "timeout", 2 * defaultTimeout},
		{"failing and none", "ip", "www.test", byType(fail, none), "temporary", 0},
		{"no such name", "ip", "www.test", nx, "not found", 0},
		{"no addresses", "ip", "www.test", none, "not found", 0},
		{"failing", "ip", "www.test", fail, "temporary", 0},
		{"refusing", "ip", "www.test", replies(rcodeIs(dns.RcodeRefused)), "temporary", 0},
		{"alias", "ip4", "www.test", replies(rr(
			"b.test. 60 IN A 192.0.2.3",
			"A.test. 60 IN CNAME B.test.",
			"www.test. 60 IN CNAME a.test.",
			"a.test. 60 IN A 192.0.2.66", // beside an alias
			"c.test. 60 IN A 192.0.2.67",
		)), "[192.0.2.3]", 0},
		{"alias to nothing", "ip4", "www.test", replies(rr("www.test. 60 IN CNAME a.test.")), "not found", 0},
		{"circle of aliases", "ip4", "www.test", replies(rr("www.test. 60 IN CNAME a.test.", "a.test. 60 IN CNAME www.test.")), "temporary", 0},
		{"other types in the answer", "ip6", "www.test", replies(rr(
			"www.test. 60 IN A 192.0.2.66", `www.test. 60 IN TXT "x"`, "www.test. 60 IN AAAA 2001:db8::2")), "[2001:db8::2]", 0},
		{"malformed", "ip4", "www.test", func(conn net.Conn, query []byte) {
			replies(func(a *dns.Msg) { a.Answer = nil })(countsConn{conn}, query)
		}, "temporary", 0},
		{"address", "ip", "192.0.2.9", nil, "[192.0.2.9]", 0},
		{"address with a dot", "ip", "192.0.2.9.", nil, "[192.0.2.9]", 0},
		{"mapped address", "ip4", "::ffff:192.0.2.9", nil, "[192.0.2.9]", 0},
		{"scoped address", "ip6", "fe80::1%eth0", nil, "[fe80::1%eth0]", 0},
		{"address of the other family", "ip6", "192.0.2.9", nil, "not found", 0},
		{"localhost", "ip", "localhost", nil, "[127.0.0.1 ::1]", 0},
		{"below localhost", "ip6", "A.LocalHost.", nil, "[::1]", 0},
		{"nothing", "ip", "", nil, "not found", 0},
		{"empty label", "ip", "a..b", nil, "not found", 0},
		{"long label", "ip", strings.Repeat("a", 64) + ".test", nil, "not found", 0},
		{"escape", "ip", `a\.b`, nil, "not found", 0},
	} {
		t.Run(tt.name, func(t *testing.T) { testLookup(t, tt.network, tt.host, tt.serve, tt.want, tt.took) })
	}
}

// testLookup is a case of TestLookupNetIP.
func testLookup(t *testing.T, family, host string, serve func(net.Conn, []byte), want string, wantTook time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): serve}}
		lookup := cacheOf(t, n.resolver(t, serverA)).LookupNetIP
		start := time.Now()
		addrs, err := lookup(t.Context(), family, host)
		took := time.Since(start)
		got := fmt.Sprint(addrs)
		if err != nil {
			var e *net.DNSError
			if !errors.As(err, &e) || addrs != nil ||
				e.Name != host && e.Name != strings.ToLower(strings.TrimSuffix(host, ".")) {
				t.Fatalf("addresses %v, error %#v", addrs, err)
			}
			switch {
			case e.IsNotFound:
				got = "not found"
			case e.IsTimeout:
				got = "timeout"
			case e.IsTemporary:
				got = "temporary"
			default:
				got = "other"
			}
		}
		if got != want || took != wantTook {
			t.Errorf("%s in %v, want %s in %v; error %v", got, took, want, wantTook, err)
		}
		if serve == nil && len(n.asked) > 0 {
			t.Errorf("asked %q", n.asked)
		}
	})
}

// countsConn claims an answer record that is not there.
type countsConn struct{ net.Conn }

func (c countsConn) Write(b []byte) (int, error) {
	b = append(bytes.Clone(b), 0)
	b[7]++
	return c.Conn.Write(b)
}

func TestLookupTakesLongAnswersByTCP(t *testing.T) {
	many := func(a *dns.Msg) {
		for i := range 500 {
			rr(fmt.Sprintf("www.test. 60 IN A 10.0.%d.%d", i/256, i%256))(a)
		}
	}
	n := &network{serve: map[string]func(net.Conn, []byte){
		"udp " + serverA.String(): replies(func(a *dns.Msg) { many(a); a.Truncate(512) }),
		"tcp " + serverA.String(): byTCP(replies(many)),
	}}
	addrs, err := cacheOf(t, n.resolver(t, serverA)).LookupNetIP(t.Context(), "ip4", "www.test")
	if err != nil || len(addrs) != maxAddrs || addrs[63] != netip.MustParseAddr("10.0.0.63") {
		t.Errorf("%d addresses, %v", len(addrs), err)
	}
}

func TestLookupEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): silence}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := cacheOf(t, n.resolver(t, serverA)).LookupNetIP(ctx, "ip", "www.test")
		var e *net.DNSError
		if took := time.Since(start); took != time.Second || !errors.As(err, &e) || !e.IsTimeout || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// FuzzAnswer feeds what claims to be a server's answer.
func FuzzAnswer(f *testing.F) {
	question := new(dns.Msg).SetQuestion("www.test.", dns.TypeA)
	question.Id = 0x7e57 // the same in all processes of a run
	query, err := question.Pack()
	if err != nil {
		f.Fatal(err)
	}
	for _, records := range [][]string{
		nil,
		{"www.test. 60 IN A 192.0.2.1"},
		{"www.test. 60 IN CNAME a.test.", "a.test. 60 IN CNAME www.test."},
		{"www.test. 60 IN CNAME a.test.", "a.test. 60 IN A 192.0.2.1"},
		{"www.test. 4294967295 IN A 192.0.2.1"},
	} {
		var m dns.Msg
		if err := m.Unpack(query); err != nil {
			f.Fatal(err)
		}
		m.Response = true
		rr(records...)(&m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	q, err := parseQuery(query)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) < 12+len(q.wire) {
			return
		}
		// An answer to another question is nothing, and no way to the rest.
		copy(msg, query[:2])
		copy(msg[12:], q.wire)
		if !isAnswer(msg, q.id, q.wire) {
			return
		}
		a, err := clean(msg, &q, false)
		if err != nil {
			return
		}
		for _, addr := range a.addrs {
			if a.rcode != dns.RcodeSuccess || !addr.Is4() {
				t.Errorf("%x: address %v, code %d", msg, addr, a.rcode)
			}
		}
		if a.ttl < 0 || a.ttl > maxTTL || len(a.addrs) == 0 && a.ttl > maxNegativeTTL && !a.refused.IsValid() && len(a.ttls) == 0 {
			t.Errorf("%x: kept for %v with %d addresses", msg, a.ttl, len(a.addrs))
		}
		// What is passed on is an answer to the question, and clean already.
		out := a.to(&q, time.Second, maxTTL)
		if !isAnswer(out, q.id, q.wire) {
			t.Fatalf("%x became %x, which is no answer", msg, out)
		}
		again, err := clean(out, &q, false)
		if err != nil || again.rcode != a.rcode || !slices.Equal(again.addrs, a.addrs) || len(again.ttls) != len(a.ttls) {
			t.Fatalf("%x became %x, of which is left %+v, %v", msg, out, again, err)
		}
	})
}
