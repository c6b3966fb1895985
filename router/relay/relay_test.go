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
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tunroute/router/pace"
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

// peer is the far end of one side of a flow.
type peer interface {
	io.ReadWriter
	CloseWrite() error
	Break() // ends it by a RST
}

// tcpPeer is a peer with a socket.
type tcpPeer struct{ *net.TCPConn }

func (p tcpPeer) Break() {
	p.SetLinger(0)
	p.Close()
}

// A relayer is a relay under test: it starts one between two new connections and
// returns their far ends.
type relayer func(t testing.TB, ctx context.Context) (client, upstream peer, n *Counters, done chan result)

// limits are the bandwidths of the flows that a context is for.
type limits struct{ up, down *pace.Bucket }

type limitsKey struct{}

// counters returns the Counters of a flow.
func counters(ctx context.Context) *Counters {
	n := new(Counters)
	if l, ok := ctx.Value(limitsKey{}).(limits); ok {
		n.UpLimit, n.DownLimit = l.up, l.down
	}
	return n
}

// portable relays between two sockets with the function Relay.
func portable(t testing.TB, ctx context.Context) (client, upstream peer, n *Counters, done chan result) {
	t.Helper()
	cl, c := pair(t)
	up, u := pair(t)
	n = counters(ctx)
	done = make(chan result, 1)
	go func() {
		end, err := Relay(ctx, c, u, n)
		done <- result{end, err}
	}()
	return tcpPeer{cl}, tcpPeer{up}, n, done
}

// onLoop returns the relayer of a Loop that runs until the test ends; nil where
// this system has none.
func onLoop(t testing.TB) relayer {
	l, err := NewLoop()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { l.Run(ctx); close(ran) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		if n := l.Flows(); n != 0 {
			t.Errorf("%d flows are left in the loop", n)
		}
	})
	return func(t testing.TB, ctx context.Context) (peer, peer, *Counters, chan result) {
		t.Helper()
		s, client := newMemStream()
		up, u := pair(t)
		n, done := counters(ctx), make(chan result, 1)
		f, err := l.Relay(s, u, n, owner(func(end End, err error) { done <- result{end, err} }))
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { f.Cancel(context.Cause(ctx)) })
		return client, tcpPeer{up}, n, done
	}
}

// betweenSockets is onLoop for a client with a socket. Without pipes it copies.
func betweenSockets(t testing.TB) relayer {
	l, err := NewLoop()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { l.Run(ctx); close(ran) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		if n := l.Flows(); n != 0 {
			t.Errorf("%d flows are left in the loop", n)
		}
	})
	return func(t testing.TB, ctx context.Context) (peer, peer, *Counters, chan result) {
		t.Helper()
		cl, c := pair(t)
		up, u := pair(t)
		n, done := new(Counters), make(chan result, 1)
		f, err := l.RelaySockets(c, u, n, owner(func(end End, err error) { done <- result{end, err} }))
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { f.Cancel(context.Cause(ctx)) })
		return tcpPeer{cl}, tcpPeer{up}, n, done
	}
}

// skipWithoutLoop skips a test where there is no Loop, which Linux always has.
func skipWithoutLoop(t testing.TB) {
	t.Helper()
	if runtime.GOOS == "linux" {
		t.Fatal("no loop on this system")
	}
	t.Skip("no loop on this system")
}

// owner is an Owner.
type owner func(End, error)

func (o owner) Ended(end End, err error) { o(end, err) }
func (o owner) Tell()                    {}

// each runs f with every relay that this system has: they are to be the same.
func each(t *testing.T, f func(t *testing.T, start relayer)) {
	t.Run("portable", func(t *testing.T) { f(t, portable) })
	t.Run("loop", func(t *testing.T) {
		start := onLoop(t)
		if start == nil {
			skipWithoutLoop(t)
		}
		f(t, start)
	})
	t.Run("sockets", func(t *testing.T) {
		start := betweenSockets(t)
		if start == nil {
			skipWithoutLoop(t)
		}
		f(t, start)
	})
}

func wait(t testing.TB, done chan result) result {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(time.Minute):
		t.Fatal("Relay did not return")
		panic("unreachable")
	}
}

func TestHalfCloseIsPassedOnEitherWay(t *testing.T) { each(t, halfCloseIsPassedOnEitherWay) }

func halfCloseIsPassedOnEitherWay(t *testing.T, start relayer) {
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
		if !n.OneWay.Load() {
			t.Errorf("client first %v: it is not noted that one direction has ended", clientFirst)
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

func TestResetIsPassedOn(t *testing.T) { each(t, resetIsPassedOn) }

func resetIsPassedOn(t *testing.T, start relayer) {
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
		breaks.Break()
		if _, err := sees.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v reset: the other side read %v, want ECONNRESET", side, err)
		}
		if r := wait(t, done); r.end != side || !errors.Is(r.err, syscall.ECONNRESET) {
			t.Errorf("%v reset: Relay = %v, %v", side, r.end, r.err)
		}
	}
}

func TestCancelResetsBothSides(t *testing.T) { each(t, cancelResetsBothSides) }

func cancelResetsBothSides(t *testing.T, start relayer) {
	ctx, cancel := context.WithCancelCause(t.Context())
	client, upstream, _, done := start(t, ctx)
	why := errors.New("told to stop")
	cancel(why)
	if r := wait(t, done); r.end != Canceled || r.err != why {
		t.Errorf("Relay = %v, %v; want canceled with its cause", r.end, r.err)
	}
	for name, c := range map[string]peer{"client": client, "upstream": upstream} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s read %v, want ECONNRESET", name, err)
		}
	}
}

func TestEveryByteArrivesBothWaysAtOnce(t *testing.T) { each(t, everyByteArrivesBothWaysAtOnce) }

func everyByteArrivesBothWaysAtOnce(t *testing.T, start relayer) {
	client, upstream, n, done := start(t, t.Context())
	const size = 64 << 20
	var all sync.WaitGroup
	for _, way := range []struct {
		name     string
		from, to peer
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

// goneConn is a connection whose far end has said something and gone: a write tells that
// before what it has said is read.
type goneConn struct {
	net.Conn
	said   io.Reader
	failed chan struct{} // closed by the first write
}

func (c *goneConn) CloseWrite() error { return nil }
func (c *goneConn) Close() error      { return nil }

func (c *goneConn) Write([]byte) (int, error) {
	close(c.failed)
	return 0, syscall.EPIPE
}

func (c *goneConn) Read(b []byte) (int, error) {
	<-c.failed
	return c.said.Read(b)
}

// TestRelayPassesTheLastWords: what a side has said before it took no more gets to the
// other one; a reader that does not read is not waited for.
func TestRelayPassesTheLastWords(t *testing.T) {
	for _, reads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			client, c := net.Pipe()
			gone := &goneConn{said: strings.NewReader("413"), failed: make(chan struct{})}
			done := make(chan result, 1)
			go func() {
				end, err := Relay(t.Context(), pipeConn{c}, gone, new(Counters))
				done <- result{end, err}
			}()
			client.Write([]byte("more"))
			if reads {
				if got, err := io.ReadAll(client); string(got) != "413" {
					t.Errorf("the client reads %q, %v", got, err)
				}
			}
			began := time.Now()
			if r := <-done; r.end != Upstream || r.err != syscall.EPIPE {
				t.Errorf("Relay = %v, %v, want upstream and EPIPE", r.end, r.err)
			}
			if took := time.Since(began); !reads && took != lastWords {
				t.Errorf("a client that does not read is waited for %v, want %v", took, lastWords)
			}
			client.Close()
		})
	}
}

// TestLoopIsQuietWhenIdle: a flow without traffic has no goroutine.
func TestLoopIsQuietWhenIdle(t *testing.T) {
	start := onLoop(t)
	if start == nil {
		skipWithoutLoop(t)
	}
	const flows = 200
	before := runtime.NumGoroutine()
	clients := make([]peer, flows)
	for i := range clients {
		client, upstream, _, _ := start(t, t.Context())
		client.Write([]byte("x"))
		if _, err := io.ReadFull(upstream, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		clients[i] = client
	}
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before+10; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) { // they end by themselves, but say nothing
			t.Fatalf("%d goroutines for %d idle flows, %d before", runtime.NumGoroutine(), flows, before)
		}
	}
}

// TestLoopTakesWhatIsOver: connections that have ended or broken before they are
// relayed, and those that are canceled or stop.
func TestLoopTakesWhatIsOver(t *testing.T) {
	l, err := NewLoop()
	if errors.Is(err, errors.ErrUnsupported) {
		skipWithoutLoop(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { l.Run(ctx); close(ran) }()
	defer func() { cancel(); <-ran }()
	for i := range 400 {
		s, client := newMemStream()
		up, u := pair(t)
		want := EOF
		switch i % 4 {
		case 0:
			up.Close()
			client.CloseWrite()
		case 1:
			tcpPeer{up}.Break()
			want = Upstream
		case 2:
			s.stop()
			want = Canceled
		case 3:
			want = Canceled // below
		}
		done := make(chan result, 1)
		f, err := l.Relay(s, u, new(Counters), owner(func(end End, err error) { done <- result{end, err} }))
		if err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			f.Cancel(errors.New("first"))
			f.Cancel(errors.New("second"))
		}
		got := wait(t, done)
		if got.end != want {
			t.Errorf("flow %d ended as %v, %v, want %v", i, got.end, got.err, want)
		}
		if i%4 == 3 && got.err.Error() != "first" {
			t.Errorf("flow %d was canceled by %v, want the first", i, got.err)
		}
		f.Cancel(errors.New("too late"))
	}
}

func TestLoopEndsItsFlows(t *testing.T) {
	l, err := NewLoop()
	if errors.Is(err, errors.ErrUnsupported) {
		skipWithoutLoop(t)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { l.Run(ctx); close(ran) }()
	s, client := newMemStream()
	_, u := pair(t)
	ended := false
	if _, err := l.Relay(s, u, new(Counters), owner(func(end End, err error) { ended = end == Canceled })); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ran // which waits for done
	if !ended {
		t.Error("the flow was not ended as canceled when Run returned")
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client read %v, want ECONNRESET", err)
	}
	_, u = pair(t)
	s, _ = newMemStream()
	if _, err := l.Relay(s, u, new(Counters), nil); err == nil {
		t.Error("a Loop that has ended took a flow")
	}
}

// TestLoopHoldsUpTheFasterSide: a client that does not read, and an upstream that
// does not.
func TestLoopHoldsUpTheFasterSide(t *testing.T) {
	start := onLoop(t)
	if start == nil {
		skipWithoutLoop(t)
	}
	for _, side := range []string{"client", "upstream"} {
		client, upstream, n, done := start(t, t.Context())
		from, to, moved := upstream, client, &n.Down
		if side == "upstream" {
			from, to, moved = client, upstream, &n.Up
		}
		const size = 32 << 20 // more than all socket buffers
		sent, got := sha256.New(), sha256.New()
		go func() {
			io.CopyN(io.MultiWriter(from, sent), rand.Reader, size)
			from.CloseWrite()
			to.CloseWrite()
		}()
		// Until nothing moves any more.
		for last := int64(-1); moved.Load() == 0 || moved.Load() != last; time.Sleep(50 * time.Millisecond) {
			last = moved.Load()
		}
		if moved.Load() >= size {
			t.Fatalf("%s does not read: all of %d bytes moved", side, size)
		}
		if _, err := io.Copy(got, to); err != nil {
			t.Fatal(err)
		}
		wait(t, done)
		if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Errorf("%s was slow: what arrived is not what was sent", side)
		}
	}
}

func BenchmarkRelay(b *testing.B) {
	for _, r := range []struct {
		name  string
		start relayer
	}{{"portable", portable}, {"loop", onLoop(b)}} {
		if r.start == nil {
			continue
		}
		for _, size := range []int{64, 1500, 32 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%s/down/%dB", r.name, size), func(b *testing.B) {
				client, upstream, _, done := r.start(b, b.Context())
				go io.Copy(io.Discard, client)
				buf := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := upstream.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				client.CloseWrite()
				upstream.CloseWrite()
				wait(b, done)
			})
		}
	}
}
