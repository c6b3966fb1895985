package inbound_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/router/flow"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience ends a test that has failed; no test that passes waits for it.
const patience = 30 * time.Second

// asked is what a server was asked for.
type asked struct {
	flow.Flow
	call inbound.Call
}

// start runs a server on a port of its own, and returns where it is and what it is
// asked for.
func start(t *testing.T, o inbound.Options, methods ...inbound.Method) (addr string, requests <-chan asked, s *inbound.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan asked, 16)
	if o.Serve == nil {
		o.Serve = func(_ context.Context, f flow.Flow, c inbound.Call) { ch <- asked{f, c} }
	}
	if s, err = inbound.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := s.Run(ctx, []inbound.Listener{{Listener: l, Name: "lan", Methods: methods}}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); run.Wait() })
	return l.Addr().String(), ch, s
}

// dial connects to a server.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// users knows one.
type users struct{}

func (users) Check(_ context.Context, _ netip.Addr, user, password string) (inbound.Identity, error) {
	if user != "alice" || password != "secret" {
		return inbound.Identity{}, inbound.ErrDenied
	}
	return inbound.Identity{User: user, Groups: []string{"staff"}}, nil
}

// hello returns a SOCKS5 greeting with these methods.
func hello(methods ...byte) string { return "\x05" + string(rune(len(methods))) + string(methods) }

const (
	connect4   = "\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50"            // to 192.0.2.7:80
	connectDNS = "\x05\x01\x00\x03\x06a.test\x01\xbb"                  // to a.test:443
	login      = "\x01\x05alice\x06secret"                             // RFC 1929
	badLogin   = "\x01\x05alice\x05wrong"                              //
	granted    = "\x05\x00\x00\x01\xcb\x00\x71\x05\x04\xd2"            // from 203.0.113.5:1234
	granted4   = "\x00\x5a\x04\xd2\xcb\x00\x71\x05"                    //
	head       = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n" //
	granted200 = "HTTP/1.1 200 Connection established\r\n\r\n"
)

var basic = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("alice:secret")) + "\r\n"

// TestClientsAreConnected: whatever a client speaks, and in whatever pieces it comes,
// it is understood, and what follows its request is not lost.
func TestClientsAreConnected(t *testing.T) {
	none, password := inbound.None{}, inbound.Password{Checker: users{}}
	addr7, name := "192.0.2.7:80", "a.test:443"
	for _, tt := range []struct {
		name    string
		methods []inbound.Method
		say     string
		hear    string
		target  string
		user    string
	}{
		{"socks5", []inbound.Method{none}, hello(0) + connect4, "\x05\x00" + granted, addr7, ""},
		{"socks5 name", []inbound.Method{none}, hello(0) + connectDNS, "\x05\x00" + granted, name, ""},
		{"socks5 IPv6", []inbound.Method{none}, hello(0) + "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x00\x16", "\x05\x00" + granted, "[2001:db8::1]:22", ""},
		{"socks5 address as a name", []inbound.Method{none}, hello(0) + "\x05\x01\x00\x03\x09192.0.2.7\x00\x50", "\x05\x00" + granted, addr7, ""},
		{"socks5 name with a dot", []inbound.Method{none}, hello(0) + "\x05\x01\x00\x03\x07A.test.\x01\xbb", "\x05\x00" + granted, name, ""},
		{"socks5 RSV", []inbound.Method{none}, hello(0) + "\x05\x01\x07" + connect4[3:], "\x05\x00" + granted, addr7, ""},
		{"socks5 longest name", []inbound.Method{none}, hello(0) + "\x05\x01\x00\x03\xff" + strings.Repeat("a.", 127) + "a\x01\xbb", "\x05\x00" + granted, strings.Repeat("a.", 127) + "a:443", ""},
		{"socks5 password", []inbound.Method{password}, hello(0, 2) + login + connect4, "\x05\x02\x01\x00" + granted, addr7, "alice"},
		{"socks5 the server's order", []inbound.Method{password, none}, hello(0, 2) + login + connect4, "\x05\x02\x01\x00" + granted, addr7, "alice"},
		{"socks5 what is offered", []inbound.Method{password, none}, hello(0) + connect4, "\x05\x00" + granted, addr7, ""},
		{"socks5 all methods", []inbound.Method{none}, "\x05\xff" + strings.Repeat("\x80", 254) + "\x00" + connect4, "\x05\x00" + granted, addr7, ""},
		{"socks4", []inbound.Method{none}, "\x04\x01\x00\x50\xc0\x00\x02\x07somebody\x00", granted4, addr7, ""},
		{"socks4a", []inbound.Method{none}, "\x04\x01\x01\xbb\x00\x00\x00\x01\x00a.test\x00", granted4, name, ""},
		{"http", []inbound.Method{none}, head + "\r\n", granted200, name, ""},
		{"http 1.0", []inbound.Method{none}, "CONNECT 192.0.2.7:80 HTTP/1.0\r\n\r\n", granted200, addr7, ""},
		{"http password", []inbound.Method{password}, head + basic + "\r\n", granted200, name, "alice"},
		{"http credentials that nobody asks for", []inbound.Method{none}, head + "Proxy-Authorization: Negotiate x\r\n\r\n", granted200, name, ""},
		{"http password or not", []inbound.Method{password, none}, head + "\r\n", granted200, name, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, requests, _ := start(t, inbound.Options{}, tt.methods...)
			for _, size := range []int{1, 3, len(tt.say) + len("early")} {
				c := dial(t, addr)
				go func() {
					for b := []byte(tt.say + "early"); len(b) > 0; b = b[min(size, len(b)):] {
						c.Write(b[:min(size, len(b))])
						if size == 1 {
							time.Sleep(50 * time.Microsecond) // so that it comes so
						}
					}
				}()
				q := <-requests
				if got := q.Target.String(); got != tt.target || q.User != tt.user || q.Inbound != "lan" || q.Asks() != flow.Connect || q.Source.String() != c.LocalAddr().String() {
					t.Errorf("in pieces of %d: asked for %+v, want %s for %q", size, q.Flow, tt.target, tt.user)
				}
				if (len(q.Groups) == 1) != (tt.user != "") {
					t.Errorf("groups %q", q.Groups)
				}
				far, early, err := q.call.Accept(netip.MustParseAddrPort("203.0.113.5:1234"))
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(tt.hear))
				if _, err := io.ReadFull(c, got); err != nil || string(got) != tt.hear {
					t.Errorf("in pieces of %d: heard %q, %v, want %q", size, got, err, tt.hear)
				}
				rest := make([]byte, len("early")-len(early))
				if _, err := io.ReadFull(far, rest); err != nil || string(early)+string(rest) != "early" {
					t.Errorf("in pieces of %d: behind the request %q and %q, %v", size, early, rest, err)
				}
				far.Close()
				c.Close()
			}
		})
	}
}

// TestRefusals: every failure has its reply, in each protocol, and the client hears all
// of it although it has sent more.
func TestRefusals(t *testing.T) {
	last := func(err error) error {
		return &outbound.HopError{Hop: 2, Hops: 2, Upstream: "p1", Op: "request", Err: err}
	}
	sys := func(e syscall.Errno) error { return &net.OpError{Op: "dial", Err: e} }
	for _, tt := range []struct {
		err    error
		socks5 socks.ReplyError
		http   int
		cause  string
	}{
		{outbound.ErrRejected, socks.ReplyRuleset, 403, "http_request_denied"},
		{sys(syscall.ECONNREFUSED), socks.ReplyRefused, 502, "connection_refused"},
		{sys(syscall.ENETUNREACH), socks.ReplyNetUnreachable, 502, "destination_ip_unroutable"},
		{sys(syscall.EHOSTUNREACH), socks.ReplyHostUnreachable, 502, "destination_unavailable"},
		{sys(syscall.ETIMEDOUT), socks.ReplyTTL, 504, "connection_timeout"},
		{sys(syscall.EPERM), socks.ReplyRuleset, 403, "http_request_denied"},
		{sys(syscall.EAFNOSUPPORT), socks.ReplyAddressType, 502, "destination_ip_unroutable"},
		{context.DeadlineExceeded, socks.ReplyTTL, 504, "connection_timeout"},
		{&net.DNSError{Name: "x.test", IsNotFound: true}, socks.ReplyHostUnreachable, 502, "destination_unavailable"},
		{outbound.ErrNoName, socks.ReplyHostUnreachable, 502, "destination_unavailable"},
		{outbound.ErrDenied, socks.ReplyHostUnreachable, 502, "destination_unavailable"},
		{errors.New("too many"), socks.ReplyGeneral, 502, "proxy_internal_error"},
		{last(socks.ReplyRefused), socks.ReplyRefused, 502, "connection_refused"},
		{last(socks.ReplyRuleset), socks.ReplyRuleset, 403, "http_request_denied"},
		{last(socks.ReplyOnionNotFound), socks.ReplyOnionNotFound, 502, "proxy_internal_error"},
		{last(socks.Reply4Rejected), socks.ReplyGeneral, 502, "proxy_internal_error"},
		{last(io.EOF), socks.ReplyGeneral, 502, "proxy_internal_error"},
		// What is said on the way is not said of the target.
		{&outbound.HopError{Hop: 1, Hops: 2, Op: "request", Err: socks.ReplyRefused}, socks.ReplyGeneral, 502, "proxy_internal_error"},
		{&outbound.HopError{Hop: 1, Hops: 1, Op: "connect", Err: sys(syscall.ECONNREFUSED)}, socks.ReplyGeneral, 502, "proxy_internal_error"},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			addr, requests, _ := start(t, inbound.Options{}, inbound.None{})
			for say, want := range map[string]string{
				hello(0) + connect4:                    "\x05\x00\x05" + string([]byte{byte(tt.socks5)}) + "\x00\x01\x00\x00\x00\x00\x00\x00",
				"\x04\x01\x00\x50\xc0\x00\x02\x07\x00": "\x00\x5b\x00\x00\x00\x00\x00\x00",
				head + "\r\n":                          fmt.Sprintf("HTTP/1.1 %d ", tt.http),
			} {
				c := dial(t, addr)
				c.Write([]byte(say + "early"))
				q := <-requests
				go q.call.Refuse(tt.err)
				got, err := io.ReadAll(c)
				c.Close()
				if err != nil || !strings.HasPrefix(string(got), want) {
					t.Errorf("%q: heard %q, %v, want %q", say, got, err, want)
				}
				if strings.HasPrefix(say, "CONNECT") && !strings.Contains(string(got), "\r\nProxy-Status: tunroute; error="+tt.cause+"\r\n") {
					t.Errorf("heard %q, want the cause %s", got, tt.cause)
				}
			}
		})
	}
}

// TestBadClients: what is no request is answered as far as the protocol has an answer,
// and never handed on.
func TestBadClients(t *testing.T) {
	none, password := []inbound.Method{inbound.None{}}, []inbound.Method{inbound.Password{Checker: users{}}}
	refused := func(code byte) string {
		return "\x05\x00\x05" + string([]byte{code}) + "\x00\x01\x00\x00\x00\x00\x00\x00"
	}
	for _, tt := range []struct {
		name    string
		methods []inbound.Method
		say     string
		hear    string // its beginning; all of it for SOCKS
	}{
		{"nothing", none, "", ""},
		{"no method", none, "\x05\x00", "\x05\xff"},
		{"no method of ours", none, hello(1, 2), "\x05\xff"},
		{"no password", password, hello(0), "\x05\xff"},
		{"wrong password", password, hello(2) + badLogin + connect4, "\x05\x02\x01\x01"},
		{"broken password", password, hello(2) + "\x05\x05alice", "\x05\x02"},
		{"wrong version in the request", none, hello(0) + "\x04" + connect4[1:], "\x05\x00"},
		{"command", none, hello(0) + "\x05\x09" + connect4[2:], refused(7)},
		{"address type", none, hello(0) + "\x05\x01\x00\x02\xc0\x00\x02\x07\x00\x50", refused(8)},
		{"empty name", none, hello(0) + "\x05\x01\x00\x03\x00\x00\x50", refused(4)},
		{"NUL in the name", none, hello(0) + "\x05\x01\x00\x03\x03a\x00b\x00\x50", refused(4)},
		{"an address of old programs", none, hello(0) + "\x05\x01\x00\x03\x0a0x0a000001\x00\x50", refused(4)},
		{"half a request", none, hello(0) + connect4[:7], "\x05\x00"},
		{"socks4 wants a password", password, "\x04\x01\x00\x50\xc0\x00\x02\x07\x00", "\x00\x5b\x00\x00\x00\x00\x00\x00"},
		{"socks4 command", none, "\x04\x07\x00\x50\xc0\x00\x02\x07\x00", "\x00\x5b\x00\x00\x00\x00\x00\x00"},
		{"socks4 endless user", none, "\x04\x01\x00\x50\xc0\x00\x02\x07" + strings.Repeat("u", 300), ""},
		{"TLS", none, "\x16\x03\x01\x02\x00", ""},
		{"http no password", password, head + "\r\n", "HTTP/1.1 407 "},
		{"http wrong password", password, head + "Proxy-Authorization: Basic YWxpY2U6eA==\r\n\r\n", "HTTP/1.1 407 "},
		{"http other credentials", password, head + "Proxy-Authorization: Bearer x\r\n\r\n", "HTTP/1.1 407 "},
		{"http broken credentials", password, head + "Proxy-Authorization: Basic %\r\n\r\n", "HTTP/1.1 407 "},
		{"http GET", none, "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 405 "},
		{"http no port", none, "CONNECT a.test HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "},
		{"http broken line", none, "CONNECT\r\n\r\n", "HTTP/1.1 400 "},
		{"http broken header", none, head + "a b: c\r\n\r\n", "HTTP/1.1 400 "},
		{"http LF", none, "CONNECT a.test:443 HTTP/1.1\n\n", "HTTP/1.1 400 "},
		{"http endless", none, head + strings.Repeat("x: y\r\n", 1<<12), "HTTP/1.1 400 "},
		{"http half", none, head, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, requests, s := start(t, inbound.Options{}, tt.methods...)
			c := dial(t, addr)
			c.Write([]byte(tt.say))
			c.CloseWrite()
			got, err := io.ReadAll(c)
			// What is closed with something unread is reset, which is all the
			// same to who is told nothing.
			if err != nil && tt.hear != "" || !strings.HasPrefix(string(got), tt.hear) || len(got) != len(tt.hear) && !strings.HasPrefix(tt.hear, "HTTP") {
				t.Errorf("heard %q, %v, want %q", got, err, tt.hear)
			}
			if len(requests) > 0 {
				t.Errorf("handed on: %+v", <-requests)
			}
			if st := s.Stats(); st.Clients != 1 || st.Waiting != 0 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

// TestTimeLimit: however slowly a client speaks, its time ends.
func TestTimeLimit(t *testing.T) {
	addr, _, s := start(t, inbound.Options{Negotiate: 100 * time.Millisecond}, inbound.None{})
	silent, slow := dial(t, addr), dial(t, addr)
	stop := make(chan struct{})
	var writes sync.WaitGroup
	writes.Go(func() {
		for _, b := range []byte(hello(0) + strings.Repeat("\x05\x01\x00\x03\xff", 100)) {
			select {
			case <-time.After(10 * time.Millisecond):
				slow.Write([]byte{b})
			case <-stop:
				return
			}
		}
	})
	for _, c := range []net.Conn{silent, slow} {
		if got, _ := io.ReadAll(c); len(got) > 2 {
			t.Errorf("heard %q", got)
		}
	}
	close(stop)
	writes.Wait()
	if st := s.Stats(); st.Failed != 2 {
		t.Errorf("stats %+v, want two that failed", st)
	}
}

// TestLongestWaitingMakesRoom: at the limit a new client is taken in all the same.
func TestLongestWaitingMakesRoom(t *testing.T) {
	addr, requests, s := start(t, inbound.Options{MaxClients: 2}, inbound.None{})
	first, second := dial(t, addr), dial(t, addr)
	c := dial(t, addr)
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the first is still there")
	}
	for _, c := range []net.Conn{c, second} {
		c.Write([]byte(hello(0) + connect4))
		q := <-requests
		q.call.Refuse(outbound.ErrRejected)
	}
	if st := s.Stats(); st.Evicted != 1 || st.Clients != 3 {
		t.Errorf("stats %+v", st)
	}
}

// TestMadeRoomIsNotWaitedFor: what a client that made room was waited for ends with it.
func TestMadeRoomIsNotWaitedFor(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	ask := func(ctx context.Context, _, _ netip.AddrPort) (string, error) {
		close(asked)
		<-ctx.Done()
		close(over)
		return "", ctx.Err()
	}
	addr, _, _ := start(t, inbound.Options{MaxClients: 1}, inbound.Ident{Ask: ask})
	dial(t, addr).Write([]byte(hello(0)))
	<-asked
	began := time.Now()
	dial(t, addr)
	<-over
	if took := time.Since(began); took > 9*time.Second { // ident has 10
		t.Errorf("it was waited for %v more", took)
	}
}

// TestUnwantedAreHungUpOn: who could not be served anyway is not spoken with.
func TestUnwantedAreHungUpOn(t *testing.T) {
	addr, _, s := start(t, inbound.Options{
		Admits: func(source netip.AddrPort, in string) bool {
			return source.Addr() != netip.MustParseAddr("127.0.0.1") || in != "lan"
		},
	}, inbound.None{})
	c, err := net.Dial("tcp", addr)
	if err == nil { // which may be before the reset
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	if st := s.Stats(); st.Unwanted != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestEndsWithContext: clients that have not asked do not hold up the end.
func TestEndsWithContext(t *testing.T) {
	addr, _, _ := start(t, inbound.Options{}, inbound.None{})
	c := dial(t, addr)
	c.Write([]byte("\x05"))
	// The cleanup of start waits for Run, with the time of the test at most.
}

// TestIdent: the client's machine says who it is; what it does not say, and another user
// than a SOCKS4 request names, have their replies.
func TestIdent(t *testing.T) {
	refused := func(code byte) string {
		return "\x05\x00\x05" + string([]byte{code}) + "\x00\x01\x00\x00\x00\x00\x00\x00"
	}
	for _, tt := range []struct {
		name, user string // user: what is answered, "" for nothing
		say, hear  string
	}{
		{"socks5", "alice", hello(0) + connect4, "\x05\x00" + granted},
		{"socks5 silence", "", hello(0) + connect4, refused(2)},
		{"socks4", "alice", "\x04\x01\x00\x50\xc0\x00\x02\x07alice\x00", granted4},
		{"socks4 silence", "", "\x04\x01\x00\x50\xc0\x00\x02\x07alice\x00", "\x00\x5c\x00\x00\x00\x00\x00\x00"},
		{"socks4 another", "bob", "\x04\x01\x00\x50\xc0\x00\x02\x07alice\x00", "\x00\x5d\x00\x00\x00\x00\x00\x00"},
		{"http", "alice", head + "\r\n", granted200},
		{"http silence", "", head + "\r\n", "HTTP/1.1 403 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c *net.TCPConn
			ask := func(_ context.Context, here, there netip.AddrPort) (string, error) {
				if there.String() != c.LocalAddr().String() || here.String() != c.RemoteAddr().String() {
					t.Errorf("asked for %v and %v", here, there)
				}
				if tt.user == "" {
					return "", errors.New("nobody there")
				}
				return tt.user, nil
			}
			var log strings.Builder
			addr, requests, s := start(t, inbound.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, inbound.Ident{Ask: ask})
			if tt.user != "alice" { // the second time the log is not told
				c = dial(t, addr)
				c.Write([]byte(tt.say))
				io.ReadAll(c)
			}
			c = dial(t, addr)
			c.Write([]byte(tt.say))
			if tt.user == "alice" {
				q := <-requests
				if q.User != "alice" {
					t.Errorf("the user is %q", q.User)
				}
				far, _, err := q.call.Accept(netip.MustParseAddrPort("203.0.113.5:1234"))
				if err != nil {
					t.Fatal(err)
				}
				far.Close()
			}
			if got, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(got), tt.hear) {
				t.Errorf("heard %q, %v, want %q", got, err, tt.hear)
			}
			want := 0
			if tt.user != "alice" {
				want = 1
			}
			if s.Stats().Failed != uint64(2*want) {
				t.Errorf("stats %+v, want two that failed", s.Stats())
			}
			if n := strings.Count(log.String(), `level=WARN msg="a client is not let in" inbound=lan src=127.0.0.1:`); n != want || want == 1 && !strings.Contains(log.String(), "ident") {
				t.Errorf("the log is told %d times, want %d:\n%s", n, want, &log)
			}
		})
	}
}
