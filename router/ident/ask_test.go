package ident

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestAskIsAnswered: what our own server says, Ask understands.
func TestAskIsAnswered(t *testing.T) {
	asked, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	s := New()
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { s.Serve(ctx, []net.Listener{asked}) })
	defer run.Wait()
	defer stop()

	to := target.Addr().(*net.TCPAddr).AddrPort()
	opening := s.Opening(to, "alice")
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from := c.LocalAddr().(*net.TCPAddr).AddrPort()
	opening.Opened(from)
	defer opening.Close()
	in, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	port := asked.Addr().(*net.TCPAddr).AddrPort().Port()
	controlled := 0
	d := net.Dialer{Control: func(string, string, syscall.RawConn) error { controlled++; return nil }}
	if user, err := askAt(in, d, to, from, port); user != "alice" || err != nil {
		t.Errorf("got %q, %v, want alice", user, err)
	}
	if user, err := askAt(in, d, to, netip.AddrPortFrom(from.Addr(), from.Port()^1), port); !errors.Is(err, ErrNoUser) {
		t.Errorf("of another connection: %q, %v", user, err)
	}
	if user, err := askAt(in, d, to, from, to.Port()^1); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("nobody there: %q, %v", user, err)
	}
	if controlled != 3 {
		t.Errorf("%d sockets are the dialer's, want 3", controlled)
	}
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{
		"6193, 23 : USERID : UNIX : stjohns\r\n", "6193 ,23:USERID:UNIX,US-ASCII:a:b", "6193,23:ERROR:NO-USER", "6195, 23 : USERID : OTHER :", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		user, err := parseReply(line, 6193, 23)
		if (user == "") != (err != nil) || err != nil && !errors.Is(err, ErrNoUser) {
			t.Fatalf("%q: %q, %v", line, user, err)
		}
	})
}
