package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a TCP connection over loopback: real FINs and RSTs.
func pair(t testing.TB) (far, near *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

type result struct {
	end End
	err error
}

// start relays between two new connections and returns their far ends.
func start(t testing.TB, ctx context.Context) (client, upstream *net.TCPConn, n *Counters, done chan result) {
	t.Helper()
	client, c := pair(t)
	upstream, u := pair(t)
	n = new(Counters)
	done = make(chan result, 1)
	go func() {
		end, err := Relay(ctx, c, u, n)
		done <- result{end, err}
	}()
	return client, upstream, n, done
}

func wait(t testing.TB, done chan result) result {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("Relay did not return")
		panic("unreachable")
	}
}

func TestHalfCloseIsPassedOnEitherWay(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		client, upstream, n, done := start(t, t.Context())
		first, second := client, upstream
		if !clientFirst {
			first, second = upstream, client
		}
		first.Write([]byte("question"))
		first.CloseWrite()
		if got, err := io.ReadAll(second); err != nil || string(got) != "question" {
			t.Fatalf("client first %v: far end read %q, %v; want the question and EOF", clientFirst, got, err)
		}
		second.Write([]byte("the answer"))
		second.CloseWrite()
		if got, err := io.ReadAll(first); err != nil || string(got) != "the answer" {
			t.Fatalf("client first %v: asker read %q, %v; want the answer and EOF", clientFirst, got, err)
		}
		if r := wait(t, done); r != (result{EOF, nil}) {
			t.Errorf("client first %v: Relay = %v, %v, want eof", clientFirst, r.end, r.err)
		}
		up, down := int64(8), int64(10)
		if !clientFirst {
			up, down = down, up
		}
		if n.Up.Load() != up || n.Down.Load() != down {
			t.Errorf("client first %v: counted %d up, %d down; want %d, %d", clientFirst, n.Up.Load(), n.Down.Load(), up, down)
		}
	}
}

func TestResetIsPassedOn(t *testing.T) {
	for _, side := range []End{Client, Upstream} {
		client, upstream, _, done := start(t, t.Context())
		breaks, sees := client, upstream
		if side == Upstream {
			breaks, sees = upstream, client
		}
		// Both directions have carried something, so that this is not a
		// matter of connecting.
		breaks.Write([]byte("x"))
		if _, err := io.ReadFull(sees, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		breaks.SetLinger(0)
		breaks.Close()
		if _, err := sees.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v reset: the other side read %v, want ECONNRESET", side, err)
		}
		if r := wait(t, done); r.end != side || !errors.Is(r.err, syscall.ECONNRESET) {
			t.Errorf("%v reset: Relay = %v, %v", side, r.end, r.err)
		}
	}
}

func TestCancelResetsBothSides(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	client, upstream, _, done := start(t, ctx)
	why := errors.New("told to stop")
	cancel(why)
	if r := wait(t, done); r.end != Canceled || r.err != why {
		t.Errorf("Relay = %v, %v; want canceled with its cause", r.end, r.err)
	}
	for name, c := range map[string]net.Conn{"client": client, "upstream": upstream} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s read %v, want ECONNRESET", name, err)
		}
	}
}

func TestEveryByteArrivesBothWaysAtOnce(t *testing.T) {
	client, upstream, n, done := start(t, t.Context())
	const size = 64 << 20
	var all sync.WaitGroup
	for _, way := range []struct {
		name     string
		from, to *net.TCPConn
	}{{"up", client, upstream}, {"down", upstream, client}} {
		sent, got := sha256.New(), sha256.New()
		var both sync.WaitGroup
		both.Go(func() {
			defer way.from.CloseWrite()
			if _, err := io.CopyN(io.MultiWriter(way.from, sent), rand.Reader, size); err != nil {
				t.Errorf("%s: send: %v", way.name, err)
			}
		})
		both.Go(func() {
			if _, err := io.Copy(got, way.to); err != nil {
				t.Errorf("%s: receive: %v", way.name, err)
			}
		})
		all.Go(func() {
			both.Wait()
			if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("%s: what arrived is not what was sent", way.name)
			}
		})
	}
	all.Wait()
	wait(t, done)
	if n.Up.Load() != size || n.Down.Load() != size {
		t.Errorf("counted %d up, %d down; want %d each", n.Up.Load(), n.Down.Load(), size)
	}
}

// pipeConn is an unbuffered connection: a write blocks until it is read.
type pipeConn struct{ net.Conn }

func (c pipeConn) CloseWrite() error { return c.Close() }

func TestSlowReaderHoldsUpTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, c := net.Pipe()
		upstream, u := net.Pipe()
		done := make(chan result, 1)
		go func() {
			end, err := Relay(t.Context(), pipeConn{c}, pipeConn{u}, new(Counters))
			done <- result{end, err}
		}()
		written := 0
		go func() {
			for {
				n, err := client.Write(make([]byte, 1024))
				if err != nil {
					return
				}
				written += n
			}
		}()
		synctest.Wait() // all that can move has moved
		if written > bufferSize {
			t.Errorf("%d bytes were taken from the client though nobody read; at most %d may wait", written, bufferSize)
		}
		client.Close()
		upstream.Close()
		<-done
	})
}

func BenchmarkRelay(b *testing.B) {
	for _, size := range []int{64, 1500, 32 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			client, upstream, _, done := start(b, b.Context())
			go io.Copy(io.Discard, upstream)
			buf := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			client.CloseWrite()
			upstream.CloseWrite()
			wait(b, done)
		})
	}
}
