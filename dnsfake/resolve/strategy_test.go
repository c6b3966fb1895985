package resolve

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// TestDeadServerCostsTwoQuestions: after that others are asked first, and it is seen
// behind the askers' backs that it is well again.
func TestDeadServerCostsTwoQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		udpA, udpB := "udp "+serverA.String(), "udp "+serverB.String()
		var well atomic.Bool
		n := &network{serve: map[string]func(net.Conn, []byte){
			udpA: func(conn net.Conn, query []byte) {
				if well.Load() {
					replies(rr("www.test. 60 IN A 192.0.2.1"))(conn, query)
				}
			},
			udpB: replies(rr("www.test. 60 IN A 192.0.2.2")),
		}}
		r := n.resolver(t, serverA, serverB)
		expect := func(want string, took time.Duration, asked ...string) {
			t.Helper()
			begin := time.Now()
			if got := ask(t, r, "www.test"); got != "NOERROR "+want {
				t.Errorf("got %s, want %s", got, want)
			}
			if got := time.Since(begin); got != took {
				t.Errorf("it took %v, want %v", got, took)
			}
			synctest.Wait()
			n.mu.Lock()
			defer n.mu.Unlock()
			slices.Sort(n.asked)
			if !slices.Equal(n.asked, asked) {
				t.Errorf("asked %v, want %v", n.asked, asked)
			}
			n.asked = nil
		}
		expect("192.0.2.2", defaultTimeout, udpA, udpB)
		expect("192.0.2.2", defaultTimeout, udpA, udpB)
		for range 5 {
			expect("192.0.2.2", 0, udpB)
		}
		time.Sleep(badRest)
		expect("192.0.2.2", 0, udpA, udpB) // and it is still dead
		time.Sleep(defaultTimeout)
		expect("192.0.2.2", 0, udpB)
		well.Store(true)
		time.Sleep(badRest)
		expect("192.0.2.2", 0, udpA, udpB)
		expect("192.0.2.1", 0, udpA)
	})
}

// TestAllServersDead: each question tries all the same, for the time may have come.
func TestAllServersDead(t *testing.T) {
	for _, strategy := range []Strategy{Failover, Race} {
		synctest.Test(t, func(t *testing.T) {
			var well atomic.Bool
			p := newPeer(t, func(w *writer, q *dns.Msg) {
				if well.Load() {
					honest(w, q)
				}
			})
			r := start(t, Options{Servers: []Server{p.server(UDP), p.server(TCP)}, Strategy: strategy})
			begin := time.Now()
			for range 3 {
				if got := ask(t, r, "www.example.com"); got == honestly {
					t.Errorf("got %s", got)
				}
			}
			if took := time.Since(begin); took > 3*defaultDeadline {
				t.Errorf("it took %v", took)
			}
			well.Store(true)
			if got := ask(t, r, "www.example.com"); got != honestly {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestRace: the first good answer counts, wherever it comes from.
func TestRace(t *testing.T) {
	slow := func(d time.Duration, serve func(net.Conn, []byte)) func(net.Conn, []byte) {
		return func(conn net.Conn, query []byte) {
			time.Sleep(d)
			serve(conn, query)
		}
	}
	one, two := replies(rr("www.test. 60 IN A 192.0.2.1")), replies(rr("www.test. 60 IN A 192.0.2.2"))
	fails := replies(rcodeIs(dns.RcodeServerFailure))
	for _, tt := range []struct {
		name string
		a, b func(net.Conn, []byte)
		want string
		took time.Duration
	}{
		{"first", slow(time.Millisecond, one), slow(time.Second, two), "NOERROR 192.0.2.1", time.Millisecond},
		{"second", slow(time.Second, one), slow(time.Millisecond, two), "NOERROR 192.0.2.2", time.Millisecond},
		{"one is dead", silence, slow(time.Millisecond, two), "NOERROR 192.0.2.2", time.Millisecond},
		{"one fails", fails, slow(time.Second, two), "NOERROR 192.0.2.2", time.Second},
		{"no such name", replies(rcodeIs(dns.RcodeNameError)), slow(time.Second, two), "NXDOMAIN", 0},
		{"one fails and one is dead", fails, silence, "SERVFAIL", defaultTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{serve: map[string]func(net.Conn, []byte){"udp " + serverA.String(): tt.a, "udp " + serverB.String(): tt.b}}
				r := start(t, Options{Servers: n.servers(serverA, serverB), Strategy: Race})
				begin := time.Now()
				if got := ask(t, r, "www.test"); got != tt.want || time.Since(begin) != tt.took {
					t.Errorf("%s after %v, want %s after %v", got, time.Since(begin), tt.want, tt.took)
				}
				time.Sleep(time.Second) // until the slow server is done
			})
		})
	}
}

// TestRaceKeepsConnections: that of a server that was slower is good for the next
// question.
func TestRaceKeepsConnections(t *testing.T) {
	for _, tr := range []Transport{TCP, TLS, HTTPS} {
		synctest.Test(t, func(t *testing.T) {
			slow := newPeer(t, func(w *writer, q *dns.Msg) {
				time.Sleep(time.Second)
				honest(w, q)
			})
			slow.roomy = true
			fast := newPeer(t, honest)
			r := start(t, Options{Servers: []Server{slow.server(tr), fast.server(tr)}, Strategy: Race})
			for range 5 {
				if got := ask(t, r, "www.example.com"); got != honestly {
					t.Errorf("%v: %s", tr, got)
				}
				time.Sleep(2 * time.Second)
			}
			if a, b := len(slow.dialled()), len(fast.dialled()); a != 1 || b != 1 {
				t.Errorf("%v: %d and %d connections", tr, a, b)
			}
		})
	}
}

// TestDeadline: however many servers there are that say nothing.
func TestDeadline(t *testing.T) {
	for _, strategy := range []Strategy{Failover, Race} {
		synctest.Test(t, func(t *testing.T) {
			n := &network{serve: make(map[string]func(net.Conn, []byte))}
			var list []netip.AddrPort
			for i := range 20 {
				list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 53))
				n.serve["udp "+list[i].String()] = silence
			}
			r := start(t, Options{Servers: n.servers(list...), Strategy: strategy})
			begin := time.Now()
			got := ask(t, r, "www.test")
			if took := time.Since(begin); took > defaultDeadline {
				t.Errorf("it took %v: %s", took, got)
			}
		})
	}
}

// TestSystemServersChange: those that are asked are those that the file has now.
func TestSystemServersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/resolv.conf"
		n := &network{serve: map[string]func(net.Conn, []byte){}}
		for i := range 3 {
			n.serve[fmt.Sprintf("udp 192.0.2.%d:53", i)] = replies(rr(fmt.Sprintf("www.test. 60 IN A 192.0.2.%d", i)))
		}
		r := start(t, Options{Servers: []Server{{System: NewSystem(path), Dial: n.dial}}})
		if got := ask(t, r, "www.test"); got == "" || got[:4] != "stat" {
			t.Errorf("without a file: %s", got)
		}
		for i := range 3 {
			writeFile(t, path, fmt.Sprintf("nameserver 192.0.2.%d\n", i), i)
			time.Sleep(recheck)
			if got, want := ask(t, r, "www.test"), fmt.Sprintf("NOERROR 192.0.2.%d", i); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if len(r.system) != 1 {
				t.Errorf("%d servers are known", len(r.system))
			}
		}
	})
}
