package ident

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	us     = netip.MustParseAddr("192.0.2.1")
	them   = netip.MustParseAddr("192.0.2.9")
	server = netip.MustParseAddrPort("192.0.2.9:1080")
)

// opened is a Server with one connection, from our port 6193.
func opened(user string) (*Server, *Conn) {
	s := New()
	c := s.Opening(server, user)
	c.Opened(netip.AddrPortFrom(us, 6193))
	return s, c
}

func TestAnswers(t *testing.T) {
	six := netip.AddrFrom16(us.As16())
	for _, tt := range []struct {
		query string
		here  netip.Addr
		from  netip.Addr
		want  string // "" for none
	}{
		{"6193, 1080", us, them, "6193 , 1080 : USERID : UNIX : joe\r\n"},
		{"6193,1080", us, them, "6193 , 1080 : USERID : UNIX : joe\r\n"},
		{" \t6193 \t, 1080 ", us, them, "6193 , 1080 : USERID : UNIX : joe\r\n"},
		{"06193, 1080", us, them, "06193 , 1080 : USERID : UNIX : joe\r\n"},
		{"6193, 1080", six, netip.AddrFrom16(them.As16()), "6193 , 1080 : USERID : UNIX : joe\r\n"},
		{"6193, 1080", us, us, "6193 , 1080 : ERROR : NO-USER\r\n"},     // not the other end
		{"6193, 1080", them, them, "6193 , 1080 : ERROR : NO-USER\r\n"}, // not our end
		{"1080, 6193", us, them, "1080 , 6193 : ERROR : NO-USER\r\n"},
		{"6194, 1080", us, them, "6194 , 1080 : ERROR : NO-USER\r\n"},
		{"0, 1080", us, them, "0 , 1080 : ERROR : INVALID-PORT\r\n"},
		{"6193, 65536", us, them, "6193 , 65536 : ERROR : INVALID-PORT\r\n"},
		{"", us, them, ""},
		{"6193", us, them, ""},
		{"6193 1080", us, them, ""},
		{"6193, 1080, 1", us, them, ""},
		{"-1, 1080", us, them, ""},
		{"6193, 108000", us, them, ""},
		{"GET / HTTP/1.1", us, them, ""},
	} {
		s, _ := opened("joe")
		got, err := s.answer(t.Context(), tt.query, tt.here, tt.from)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%q to %v from %v: %q, %v, want %q", tt.query, tt.here, tt.from, got, err, tt.want)
		}
	}
}

func TestUserIsOneLine(t *testing.T) {
	s, _ := opened("jo\r\ne\x00 : x" + strings.Repeat("y", 1000))
	got, err := s.answer(t.Context(), "6193, 1080", us, them)
	if want := "6193 , 1080 : USERID : UNIX : " + ("joe : x" + strings.Repeat("y", 1000))[:512] + "\r\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestClosedConnectionIsForgotten(t *testing.T) {
	s, c := opened("joe")
	failed := s.Opening(server, "jim")
	failed.Close()
	c.Close()
	c.Close()
	if got, _ := s.answer(t.Context(), "6193, 1080", us, them); !strings.HasSuffix(got, "ERROR : NO-USER\r\n") {
		t.Errorf("got %q", got)
	}
	if len(s.open) != 0 || len(s.opening) != 0 {
		t.Errorf("left: %v, %v", s.open, s.opening)
	}
}

// A query comes in while our connect has not returned.
func TestQueryWaitsForTheConnect(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*Conn)
		want string
	}{
		{"it opens", func(c *Conn) { c.Opened(netip.AddrPortFrom(us, 6193)) }, "USERID : UNIX : joe\r\n"},
		{"it opens at another port", func(c *Conn) { c.Opened(netip.AddrPortFrom(us, 1)) }, "ERROR : NO-USER\r\n"},
		{"it fails", (*Conn).Close, "ERROR : NO-USER\r\n"},
		{"it takes too long", func(*Conn) { time.Sleep(time.Minute) }, "ERROR : NO-USER\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New()
				c := s.Opening(server, "joe")
				got := make(chan string, 1)
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), maxWait)
					defer cancel()
					reply, _ := s.answer(ctx, "6193, 1080", us, them)
					got <- reply
				}()
				synctest.Wait()
				if len(got) != 0 {
					t.Fatalf("answered before: %q", <-got)
				}
				tt.end(c)
				if reply := <-got; !strings.HasSuffix(reply, tt.want) {
					t.Errorf("got %q, want %q", reply, tt.want)
				}
			})
		})
	}
}

// serve runs a Server at a socket of this machine until the end of the test.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, []net.Listener{l}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// ask sends a query in full and returns what comes back.
func ask(t *testing.T, at, query string) string {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, query)
	b, _ := io.ReadAll(c) // what is not read there may come as a reset
	return string(b)
}

func TestServe(t *testing.T) {
	s := New()
	at := serve(t, s)
	here := netip.MustParseAddrPort("127.0.0.1:6193")
	s.Opening(netip.MustParseAddrPort("127.0.0.1:1080"), "joe").Opened(here)
	for query, want := range map[string]string{
		"6193, 1080\r\n":                      "6193 , 1080 : USERID : UNIX : joe\r\n",
		"6193, 1080\n":                        "6193 , 1080 : USERID : UNIX : joe\r\n",
		"6193, 1080\r\n6193, 1080\r\n":        "6193 , 1080 : USERID : UNIX : joe\r\n", // one is enough
		"6193, 1" + strings.Repeat(" ", 2000): "",
		"hello\r\n":                           "",
	} {
		if got := ask(t, at, query); got != want && (want != "" || got != "") {
			t.Errorf("%.40q: %q, want %q", query, got, want)
		}
	}
}

// So many that say nothing are all there can be; one that goes away makes room.
func TestServeHoldsSoManyOnly(t *testing.T) {
	s := New()
	s.wait = time.Hour
	at := serve(t, s)
	conns := make([]net.Conn, maxConns)
	for i := range conns {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	if got := ask(t, at, "1, 2\r\n"); got != "" {
		t.Fatalf("one more was answered %q", got)
	}
	// The answer to one of them shows that it is being served, and makes room.
	io.WriteString(conns[0], "1, 2\r\n")
	if b, _ := io.ReadAll(conns[0]); string(b) != "1 , 2 : ERROR : NO-USER\r\n" {
		t.Fatalf("the first was answered %q", b)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		if got := ask(t, at, "1, 2\r\n"); got != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nobody is answered any more")
		}
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New().Serve(t.Context(), []net.Listener{l}); err == nil {
		t.Error("Serve has ended without an error")
	}
}

// FuzzAnswer checks answers against the grammar of RFC 1413 §4, and that none names the
// user but to a query for the connection.
func FuzzAnswer(f *testing.F) {
	for _, q := range []string{"6193, 1080", "06193 ,\t1080 ", "0,0", "70000,1", "1,2,3", "", "6193,1080\x00", "６１９３,1080"} {
		f.Add(q)
	}
	query := regexp.MustCompile(`^[ \t]*0*6193[ \t]*,[ \t]*0*1080[ \t]*$`)
	reply := regexp.MustCompile(`^[0-9]{1,5} , [0-9]{1,5} : (USERID : UNIX : joe|ERROR : (NO-USER|INVALID-PORT))\r\n$`)
	s, _ := opened("joe")
	f.Fuzz(func(t *testing.T, line string) {
		got, err := s.answer(t.Context(), line, us, them)
		if err != nil {
			if got != "" {
				t.Errorf("%q: %q with %v", line, got, err)
			}
			return
		}
		if !reply.MatchString(got) {
			t.Errorf("%q is answered %q", line, got)
		}
		if strings.Contains(got, "joe") != query.MatchString(line) {
			t.Errorf("%q is answered %q", line, got)
		}
		var a, b int
		if _, err := fmt.Sscanf(got, "%d , %d :", &a, &b); err != nil {
			t.Errorf("%q: %v", got, err)
		}
	})
}
