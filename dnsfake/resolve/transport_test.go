package resolve

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// honest answers questions about addresses with the same one.
func honest(w *writer, q *dns.Msg) {
	w.answer(q, func(m *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			rr(q.Question[0].Name + " 60 IN A 203.0.113.80")(m)
		}
	})
}

// ask asks r for the address of a name, and returns what it says or the error.
func ask(t *testing.T, r *Resolver, name string) string {
	t.Helper()
	answer, err := r.Exchange(t.Context(), pack(t, dns.Fqdn(name), dns.TypeA), "udp")
	if err != nil {
		return err.Error()
	}
	return textOf(t, answer)
}

// textOf returns the response code and the data of the answers of a message.
func textOf(t *testing.T, msg []byte) string {
	t.Helper()
	var m dns.Msg
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%x: %v", msg, err)
	}
	text := dns.RcodeToString[m.Rcode]
	for _, rr := range m.Answer {
		text += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
	}
	return text
}

const honestly = "NOERROR 203.0.113.80"

// TestTransports: each of them asks, and all but UDP keep their connection for the
// questions that follow, until nobody has used it for a time.
func TestTransports(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, honest)
				r := start(t, Options{Servers: []Server{p.server(tr)}})
				for i := range 3 {
					if got := ask(t, r, fmt.Sprintf("www%d.example.com", i)); got != honestly {
						t.Errorf("got %s", got)
					}
				}
				want := map[Transport]string{UDP: "[udp udp udp]"}
				if got := fmt.Sprint(p.dialled()); got != want[tr] && (tr == UDP || got != "[tcp]") {
					t.Errorf("dialled %s", got)
				}
				time.Sleep(streamIdle + time.Second)
				synctest.Wait()
				if tr != UDP {
					select {
					case <-p.conns[0].(*buffered).done:
					default:
						t.Error("the connection is open yet, and nobody uses it")
					}
				}
				if got := ask(t, r, "www.example.com"); got != honestly {
					t.Errorf("later: %s", got)
				}
				if n := len(p.dialled()); n != 1 {
					t.Errorf("%d dials for one question", n)
				}
			})
		})
	}
}

// TestManyQuestionsOnOneConnection: at once, and answered in another order.
func TestManyQuestionsOnOneConnection(t *testing.T) {
	for _, tr := range []Transport{TCP, TLS, HTTPS} {
		t.Run(tr.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 50
				var mu sync.Mutex
				var waiting []func()
				p := newPeer(t, func(w *writer, q *dns.Msg) {
					done := make(chan struct{})
					reply := func() {
						defer close(done)
						w.answer(q, rr(q.Question[0].Name+" 60 IN A 203.0.113."+strings.TrimPrefix(q.Question[0].Name, "n")[:strings.Index(q.Question[0].Name, ".")-1]))
					}
					mu.Lock()
					waiting = append(waiting, reply)
					all := waiting
					mu.Unlock()
					if len(all) == n {
						for i := range all {
							all[n-1-i]()
						}
					}
					if tr == HTTPS {
						<-done
					}
				})
				r := start(t, Options{Servers: []Server{p.server(tr)}})
				var wg sync.WaitGroup
				for i := range n {
					wg.Go(func() {
						if got, want := ask(t, r, fmt.Sprintf("n%d.example.com", i)), fmt.Sprintf("NOERROR 203.0.113.%d", i); got != want {
							t.Errorf("%s, want %s", got, want)
						}
					})
				}
				wg.Wait()
				if got := len(p.dialled()); got > 1 && (tr != HTTPS || got > httpsConns) {
					t.Errorf("%d connections", got)
				}
			})
		})
	}
}

// TestConnectionIsOpenedAnew: where a server has closed it, and where nothing comes
// any more; sooner where something did.
func TestConnectionIsOpenedAnew(t *testing.T) {
	for _, tr := range []Transport{TCP, TLS, HTTPS} {
		for used, want := range map[bool]time.Duration{false: 2 * defaultTimeout, true: defaultTimeout} {
			t.Run(fmt.Sprintf("%v, used before %v", tr, used), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					// Once it counts, what the connection of then asks is not answered.
					var counts atomic.Bool
					var mu sync.Mutex
					var silent any
					p := newPeer(t, func(w *writer, q *dns.Msg) {
						mu.Lock()
						conn := any(w.conn)
						if tr == HTTPS {
							conn = w.request.Context().Value(http.LocalAddrContextKey)
						}
						if counts.Load() && silent == nil {
							silent = conn
						}
						mine := counts.Load() && conn == silent
						mu.Unlock()
						if mine {
							w.hang()
							return
						}
						honest(w, q)
					})
					r := start(t, Options{Servers: []Server{p.server(tr)}})
					for range 2 {
						if got := ask(t, r, "www.example.com"); got != honestly {
							t.Errorf("got %s", got)
						}
						p.conns[len(p.conns)-1].Close()
						synctest.Wait()
					}
					if n := len(p.dialled()); n != 2 {
						t.Errorf("%d dials", n)
					}
					if used {
						ask(t, r, "www.example.com")
					}
					counts.Store(true)
					begin := time.Now()
					got := ask(t, r, "www.example.com")
					// net/http may take the connection once more before it sees that it is closed.
					late := tr == HTTPS && time.Since(begin) == 2*defaultTimeout
					if took := time.Since(begin); got != honestly || took != want && !late {
						t.Errorf("%s after %v, want %v", got, took, want)
					}
				})
			})
		}
	}
}

// TestCertificates: the server's has to be good for the name, or for the address where
// there is no name.
func TestCertificates(t *testing.T) {
	for _, tr := range []Transport{TLS, HTTPS} {
		for _, tt := range []struct {
			name string
			edit func(*Server)
			want string
		}{
			{"name", func(*Server) {}, honestly},
			{"address", func(s *Server) { s.Name = "" }, honestly},
			{"another name", func(s *Server) { s.Name = "dns.example.net" }, "certificate is valid for"},
			{"another authority", func(s *Server) { _, s.Roots = certificate(t) }, "certificate signed by unknown authority"},
		} {
			t.Run(tr.String()+"/"+tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPeer(t, honest)
					s := p.server(tr)
					tt.edit(&s)
					got := ask(t, start(t, Options{Servers: []Server{s}}), "www.example.com")
					if !strings.Contains(got, tt.want) {
						t.Errorf("got %s, want %s", got, tt.want)
					}
					if tt.want != honestly && len(p.questions()) > 0 {
						t.Error("it was asked")
					}
				})
			})
		}
	}
}

// TestWayWithoutUDP: then TCP it is, and UDP is not tried again for a time.
func TestWayWithoutUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, honest)
		p.noUDP = true
		r := start(t, Options{Servers: []Server{p.server(UDP)}})
		asks := func(want string) {
			t.Helper()
			for range 3 {
				if got := ask(t, r, "www.example.com"); got != honestly {
					t.Errorf("got %s", got)
				}
			}
			if got := fmt.Sprint(p.dialled()); got != want {
				t.Errorf("dialled %s, want %s", got, want)
			}
		}
		asks("[udp tcp]")
		time.Sleep(lapseTime)
		asks("[udp tcp]")
		p.noUDP = false
		time.Sleep(lapseTime)
		asks("[udp udp udp]")
	})
}

// TestAddressesInOrder: the next one is tried where nobody is.
func TestAddressesInOrder(t *testing.T) {
	for _, tr := range transports {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, honest)
			s := p.server(tr)
			s.Addrs = []string{"192.0.2.1:53", s.Addrs[0]}
			if got := ask(t, start(t, Options{Servers: []Server{s}}), "www.example.com"); got != honestly {
				t.Errorf("%v: %s", tr, got)
			}
		})
	}
}

// TestWhatIsSent: over TLS the length says nothing, over HTTPS the id neither; what
// EDNS offers passes every path.
func TestWhatIsSent(t *testing.T) {
	for _, tr := range transports {
		synctest.Test(t, func(t *testing.T) {
			var lengths []int
			p := newPeer(t, func(w *writer, q *dns.Msg) {
				opt := q.IsEdns0()
				q.Compress = false
				lengths = append(lengths, q.Len())
				if opt == nil || opt.UDPSize() != offerUDP || !q.RecursionDesired || !q.AuthenticatedData || canonical(q.Question[0].Name) != "www.example.com" ||
					tr == HTTPS && q.Id != 0 || opt.Do() != q.CheckingDisabled {
					t.Errorf("%v sends %v", tr, q)
				}
				honest(w, q)
			})
			r := start(t, Options{Servers: []Server{p.server(tr)}})
			m := new(dns.Msg).SetQuestion("WWW.example.com.", dns.TypeA)
			for _, do := range []bool{false, true} {
				m.Extra, m.CheckingDisabled = nil, do
				m.SetEdns0(4096, do)
				b, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				answer, err := r.Exchange(t.Context(), b, "tcp")
				if err != nil || !isAnswer(answer, m.Id, b[headerSize:headerSize+21]) || !strings.Contains(string(answer), "\x03WWW") {
					t.Errorf("%v: %x, %v", tr, answer, err)
				}
			}
			for _, n := range lengths {
				if padded := n%padTo == 0; padded != tr.encrypted() {
					t.Errorf("%v sends %d octets", tr, n)
				}
			}
		})
	}
}

// TestServerWithoutEDNS is asked without (RFC 6891 §7), for a time.
func TestServerWithoutEDNS(t *testing.T) {
	for _, tr := range transports {
		synctest.Test(t, func(t *testing.T) {
			var mended atomic.Bool
			p := newPeer(t, func(w *writer, q *dns.Msg) {
				if q.IsEdns0() != nil && !mended.Load() {
					w.answer(q, rcodeIs(dns.RcodeFormatError))
					return
				}
				honest(w, q)
			})
			r := start(t, Options{Servers: []Server{p.server(tr)}})
			for range 2 {
				if got := ask(t, r, "www.example.com"); got != honestly {
					t.Errorf("%v: %s", tr, got)
				}
			}
			if n := len(p.questions()); n != 3 {
				t.Errorf("%v: %d questions", tr, n)
			}
			mended.Store(true)
			time.Sleep(lapseTime)
			if got := ask(t, r, "www.example.com"); got != honestly || len(p.questions()) != 1 {
				t.Errorf("%v: later: %s", tr, got)
			}
		})
	}
}

// TestHTTPAnswers: what is no DNS message over HTTP is none.
func TestHTTPAnswers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		serve func(w *writer, q *dns.Msg)
		want  string
	}{
		{"redirect", func(w *writer, _ *dns.Msg) {
			http.Redirect(w.http, w.request, "https://elsewhere.example.com/dns-query", http.StatusTemporaryRedirect)
		}, "the server says 307 Temporary Redirect"},
		{"not found", func(w *writer, _ *dns.Msg) { http.NotFound(w.http, w.request) }, "the server says 404 Not Found"},
		{"unknown status", func(w *writer, _ *dns.Msg) { w.http.WriteHeader(599) }, "the server says 599"},
		{"a page", func(w *writer, _ *dns.Msg) { _, _ = w.http.Write([]byte("<html>" + strings.Repeat("x", 1000))) }, `no dns message but "text/html"`},
		{"parameters of the type", func(w *writer, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			rr(q.Question[0].Name + " 60 IN A 203.0.113.80")(m)
			b, _ := m.Pack()
			w.http.Header().Set("Content-Type", "Application/DNS-Message ; x=y")
			_, _ = w.http.Write(b)
		}, honestly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, tt.serve)
				got := ask(t, start(t, Options{Servers: []Server{p.server(HTTPS)}}), "www.example.com")
				if !strings.Contains(got, tt.want) {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// TestAgeOfHTTPAnswers: what has passed in a cache of HTTP is no time of an answer any
// more (RFC 8484 §5.1).
func TestAgeOfHTTPAnswers(t *testing.T) {
	for age, want := range map[string]string{
		"": "60", "0": "60", "17": "43", "60": "0", "4000000000": "60", "250": "0", "-5": "60", "1.5": "60",
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, func(w *writer, q *dns.Msg) {
				w.http.Header().Set("Age", age)
				w.answer(q, func(m *dns.Msg) {
					rr(q.Question[0].Name + " 60 IN A 203.0.113.80")(m)
					m.SetEdns0(1232, false)
				})
			})
			c := cacheOf(t, start(t, Options{Servers: []Server{p.server(HTTPS)}}))
			_, got := exchange(t, c, new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA))
			if want := honestly + "(" + want + ")"; got != want {
				t.Errorf("age %q: %s, want %s", age, got, want)
			}
		})
	}
}

// TestCloseEndsQuestions: they fail at once, and nothing is open then.
func TestCloseEndsQuestions(t *testing.T) {
	for _, tr := range transports {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, func(w *writer, _ *dns.Msg) { w.hang() })
			r := start(t, Options{Servers: []Server{p.server(tr)}, Attempts: 1})
			done := make(chan string)
			begin := time.Now()
			go func() { done <- ask(t, r, "www.example.com") }()
			synctest.Wait()
			r.Close()
			got := <-done
			if took := time.Since(begin); tr != UDP && took > 0 || took > defaultTimeout {
				t.Errorf("%v: after %v: %s", tr, took, got)
			}
			if tr == UDP {
				return
			}
			if got := ask(t, r, "www.example.com"); !strings.Contains(got, "closed") && tr != HTTPS {
				t.Errorf("%v: after its end: %s", tr, got)
			}
		})
	}
}

func TestServerNames(t *testing.T) {
	for want, s := range map[string]Server{
		"192.0.2.1:53":                 Plain(serverA, nil),
		"tcp://192.0.2.1:53":           {Transport: TCP, Addrs: []string{"192.0.2.1:53"}},
		"tls://192.0.2.1:853#dns.test": {Transport: TLS, Addrs: []string{"192.0.2.1:853"}, Name: "dns.test"},
		"tls://192.0.2.1:853":          {Transport: TLS, Addrs: []string{"192.0.2.1:853"}, Name: "192.0.2.1"},
		"https://192.0.2.1/dns-query":  {Transport: HTTPS, Addrs: []string{"192.0.2.1:443"}, URL: "https://192.0.2.1/dns-query"},
		"system":                       {System: NewSystem("")},
		"tls://":                       {Transport: TLS},
	} {
		if got := s.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
