package resolve

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

var (
	serverA = netip.MustParseAddrPort("192.0.2.1:53")
	serverB = netip.MustParseAddrPort("[2001:db8::2]:5353")
)

// network is a network of DNS servers in memory. A server gets each connection's
// first message, in "tcp" all of them, and writes what it likes; in "udp" every write is
// a datagram. A server that is missing refuses connections.
type network struct {
	mu    sync.Mutex
	asked []string // "udp 192.0.2.1:53", in order
	serve map[string]func(conn net.Conn, query []byte)
}

func (n *network) dial(_ context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := network + " " + addr
	n.asked = append(n.asked, key)
	serve, ok := n.serve[key]
	if !ok {
		return nil, syscall.ECONNREFUSED
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		if network == "tcp" {
			for {
				msg, err := readMessage(server)
				if err != nil {
					return
				}
				serve(server, msg)
			}
		}
		buf := make([]byte, 1<<16)
		size, err := server.Read(buf)
		if err != nil {
			return
		}
		serve(server, buf[:size])
		_, _ = io.Copy(io.Discard, server) // until the client closes
	}()
	return client, nil
}

func (n *network) resolver(t testing.TB, servers ...netip.AddrPort) *Resolver {
	t.Helper()
	return start(t, Options{Servers: n.servers(servers...)})
}

// servers returns plain servers of the network.
func (n *network) servers(addrs ...netip.AddrPort) []Server {
	var list []Server
	for _, a := range addrs {
		list = append(list, Plain(a, n.dial))
	}
	return list
}

// start returns a Resolver that is closed with the test.
func start(t testing.TB, o Options) *Resolver {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// cacheOf returns a Cache of what one Resolver says, which is closed with the test.
func cacheOf(t testing.TB, r *Resolver) *Cache {
	t.Helper()
	c := NewCache(CacheOptions{Choose: func(string) *Resolver { return r }})
	t.Cleanup(c.Close)
	return c
}

// replies answers with what edit makes of an empty answer.
func replies(edit func(a *dns.Msg)) func(net.Conn, []byte) {
	return func(conn net.Conn, query []byte) {
		var q dns.Msg
		if q.Unpack(query) != nil {
			return
		}
		a := new(dns.Msg).SetReply(&q)
		edit(a)
		b, err := a.Pack()
		if err != nil {
			panic(err)
		}
		_, _ = conn.Write(b)
	}
}

// byTCP puts the length before what serve writes.
func byTCP(serve func(net.Conn, []byte)) func(net.Conn, []byte) {
	return func(conn net.Conn, query []byte) { serve(lengthConn{conn}, query) }
}

type lengthConn struct{ net.Conn }

func (c lengthConn) Write(b []byte) (int, error) {
	return c.Conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
}

func silence(net.Conn, []byte) {}

// rr adds records, in the form of a zone file.
func rr(records ...string) func(*dns.Msg) {
	return func(a *dns.Msg) {
		for _, r := range records {
			rr, err := dns.NewRR(r)
			if err != nil {
				panic(err)
			}
			a.Answer = append(a.Answer, rr)
		}
	}
}

func rcodeIs(code int) func(*dns.Msg) { return func(a *dns.Msg) { a.Rcode = code } }

func pack(t *testing.T, name string, qtype uint16) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	m.Id = 0x1234
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{
		{},
		{Servers: []Server{{}}},
		{Servers: []Server{{Addrs: []string{"192.0.2.1:0"}}}},
		{Servers: []Server{{Addrs: []string{"192.0.2.1"}}}},
		{Servers: []Server{{Addrs: []string{":53"}}}},
		{Servers: []Server{{Addrs: []string{"192.0.2.1:53"}, Transport: HTTPS + 1}}},
		{Servers: []Server{{Addrs: []string{"192.0.2.1:443"}, Transport: HTTPS}}},
		{Servers: []Server{{Addrs: []string{"192.0.2.1:443"}, Transport: HTTPS, URL: "http://dns.test/dns-query"}}},
		{Servers: []Server{Plain(serverA, nil)}, Timeout: -1},
		{Servers: []Server{Plain(serverA, nil)}, Attempts: -1},
		{Servers: []Server{Plain(serverA, nil)}, Deadline: -1},
		{Servers: []Server{Plain(serverA, nil)}, Strategy: Race + 1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

func TestExchange(t *testing.T) {
	ok := replies(rr("www.test. 60 IN A 192.0.2.80"))
	servFail := replies(rcodeIs(dns.RcodeServerFailure))
	truncated := replies(func(a *dns.Msg) { a.Truncated = true })
	udpA, udpB, tcpA, tcpB := "udp "+serverA.String(), "udp "+serverB.String(), "tcp "+serverA.String(), "tcp "+serverB.String()

	// forge sends something before the answer.
	forge := func(edit func(q *dns.Msg)) func(net.Conn, []byte) {
		return func(conn net.Conn, query []byte) {
			var q dns.Msg
			if q.Unpack(query) != nil {
				return
			}
			q.Response = true
			rr("www.test. 60 IN A 192.0.2.66")(&q)
			edit(&q)
			b, err := q.Pack()
			if err != nil {
				panic(err)
			}
			_, _ = conn.Write(b)
			ok(conn, query)
		}
	}
	const answered = "NOERROR 192.0.2.80"
	for _, tt := range []struct {
		name    string
		network string
		serve   map[string]func(net.Conn, []byte)
		want    string        // response code and address, or an error
		asked   []string      // in order
		took    time.Duration // exactly
	}{
		{"first server", "udp", map[string]func(net.Conn, []byte){udpA: ok, udpB: ok}, answered, []string{udpA}, 0},
		{"silent server", "udp", map[string]func(net.Conn, []byte){udpA: silence, udpB: ok}, answered, []string{udpA, udpB}, defaultTimeout},
		{"silent servers", "udp", map[string]func(net.Conn, []byte){udpA: silence, udpB: silence},
			"no answer in time", []string{udpA, udpB, udpA, udpB}, 4 * defaultTimeout},
		{"unreachable server", "udp", map[string]func(net.Conn, []byte){udpB: ok}, answered, []string{udpA, tcpA, udpB}, 0},
		{"unreachable servers", "udp", nil, "connection refused", []string{udpA, tcpA, udpB, tcpB, udpA, tcpA, udpB, tcpB}, 0},
		{"way without udp", "udp", map[string]func(net.Conn, []byte){tcpA: byTCP(ok)}, answered, []string{udpA, tcpA}, 0},
		{"failing server", "udp", map[string]func(net.Conn, []byte){udpA: servFail, udpB: ok}, answered, []string{udpA, udpB}, 0},
		{"refusing server", "udp", map[string]func(net.Conn, []byte){udpA: replies(rcodeIs(dns.RcodeRefused)), udpB: ok}, answered, []string{udpA, udpB}, 0},
		{"failing and silent server", "udp", map[string]func(net.Conn, []byte){udpA: servFail, udpB: silence}, "SERVFAIL", []string{udpA, udpB}, defaultTimeout},
		{"failing servers", "udp", map[string]func(net.Conn, []byte){udpA: servFail, udpB: replies(rcodeIs(dns.RcodeRefused))}, "SERVFAIL", []string{udpA, udpB}, 0},
		{"no such name", "udp", map[string]func(net.Conn, []byte){udpA: replies(rcodeIs(dns.RcodeNameError)), udpB: ok}, "NXDOMAIN", []string{udpA}, 0},
		{"truncated for udp", "udp", map[string]func(net.Conn, []byte){udpA: truncated, tcpA: byTCP(ok)}, answered, []string{udpA, tcpA}, 0},
		{"truncated for tcp", "tcp", map[string]func(net.Conn, []byte){udpA: truncated, tcpA: byTCP(ok)}, answered, []string{udpA, tcpA}, 0},
		{"truncated, tcp closed", "tcp", map[string]func(net.Conn, []byte){udpA: truncated, udpB: ok}, answered, []string{udpA, tcpA, udpB}, 0},
		{"truncated, tcp silent", "tcp", map[string]func(net.Conn, []byte){udpA: truncated, tcpA: silence, udpB: ok}, answered, []string{udpA, tcpA, udpB}, 2 * defaultTimeout},
		{"tcp ends early", "tcp", map[string]func(net.Conn, []byte){udpA: truncated, udpB: ok,
			tcpA: func(conn net.Conn, _ []byte) { _, _ = conn.Write([]byte{0, 50, 1, 2, 3}); conn.Close() }}, answered, []string{udpA, tcpA, tcpA, udpB}, 0},
		{"tcp answers something else", "tcp", map[string]func(net.Conn, []byte){udpA: truncated, udpB: ok,
			tcpA: byTCP(replies(func(a *dns.Msg) { a.Id++ }))}, answered, []string{udpA, tcpA, udpB}, 2 * defaultTimeout},
		{"forged id", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Id ^= 1 })}, answered, []string{udpA}, 0},
		{"forged name", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Question[0].Name = "vww.test." })}, answered, []string{udpA}, 0},
		{"forged type", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAAAA })}, answered, []string{udpA}, 0},
		{"forged class", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS })}, answered, []string{udpA}, 0},
		{"forged opcode", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify })}, answered, []string{udpA}, 0},
		{"the question back", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Response = false })}, answered, []string{udpA}, 0},
		{"no question", "udp", map[string]func(net.Conn, []byte){udpA: forge(func(q *dns.Msg) { q.Question = nil })}, answered, []string{udpA}, 0},
		{"too short", "udp", map[string]func(net.Conn, []byte){udpA: func(conn net.Conn, query []byte) {
			_, _ = conn.Write(query[:11])
			ok(conn, query)
		}}, answered, []string{udpA}, 0},
		{"refusal without question", "udp", map[string]func(net.Conn, []byte){
			udpA: replies(func(a *dns.Msg) { a.Question = nil; a.Rcode = dns.RcodeFormatError })}, "FORMERR", []string{udpA, udpA, udpB, tcpB}, 0},
		{"letters of another case", "udp", map[string]func(net.Conn, []byte){udpA: replies(func(a *dns.Msg) {
			a.Question[0].Name = strings.ToUpper(a.Question[0].Name)
			rr("www.test. 60 IN A 192.0.2.80")(a)
		})}, answered, []string{udpA}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{serve: tt.serve}
				r := n.resolver(t, serverA, serverB)
				query := pack(t, "wwW.test.", dns.TypeA)
				before := bytes.Clone(query)
				start := time.Now()
				answer, err := r.Exchange(t.Context(), query, tt.network)
				took := time.Since(start)
				var got string
				if err != nil {
					got = err.Error()
					if !strings.Contains(got, tt.want) || !strings.Contains(got, serverB.String()) {
						t.Errorf("error %q, want %q of %v", got, tt.want, serverB)
					}
				} else {
					var m dns.Msg
					if err := m.Unpack(answer); err != nil {
						t.Fatal(err)
					}
					got = dns.RcodeToString[m.Rcode]
					if m.Truncated {
						got += " TC"
					}
					for _, rr := range m.Answer {
						got += " " + rr.(*dns.A).A.String()
					}
					if got != tt.want || m.Id != 0x1234 {
						t.Errorf("answer %s with id %x, want %s", got, m.Id, tt.want)
					}
				}
				if !slices.Equal(n.asked, tt.asked) || took != tt.took {
					t.Errorf("asked %q in %v, want %q in %v", n.asked, took, tt.asked, tt.took)
				}
				if !bytes.Equal(query, before) {
					t.Errorf("the query %x became %x", before, query)
				}
			})
		})
	}
}

func TestExchangeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): silence}}
		r := n.resolver(t, serverA)
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		start := time.Now()
		_, err := r.Exchange(ctx, pack(t, "www.test.", dns.TypeA), "udp")
		if took := time.Since(start); !errors.Is(err, cause) || took != time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestExchangeRefusesWhatIsNoQuestion(t *testing.T) {
	n := &network{}
	r := n.resolver(t, serverA)
	good := pack(t, "www.test.", dns.TypeA)
	two := bytes.Clone(good)
	two[5] = 2
	answer, notify := bytes.Clone(good), bytes.Clone(good)
	answer[2] |= 0x80
	notify[2] |= dns.OpcodeNotify << 3
	for _, query := range [][]byte{nil, good[:11], good[:12], good[:len(good)-1], two, answer, notify} {
		if _, err := r.Exchange(t.Context(), query, "udp"); !errors.Is(err, errNotQuery) {
			t.Errorf("%x: %v", query, err)
		}
	}
	if len(n.asked) > 0 {
		t.Errorf("asked %q", n.asked)
	}
}

// The ids of questions cannot be told from those before (RFC 5452 §9.2).
func TestIDsAreFresh(t *testing.T) {
	seen := map[uint16]bool{}
	n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): func(conn net.Conn, query []byte) {
		seen[binary.BigEndian.Uint16(query)] = true // one at a time
		replies(func(*dns.Msg) {})(conn, query)
	}}}
	r := n.resolver(t, serverA)
	for range 64 {
		if _, err := r.Exchange(t.Context(), pack(t, "www.test.", dns.TypeA), "udp"); err != nil {
			t.Fatal(err)
		}
	}
	// Of 64 random ids one is met twice in 3 % of all runs, four in none.
	if len(seen) < 61 {
		t.Errorf("%d ids in 64 questions", len(seen))
	}
}
