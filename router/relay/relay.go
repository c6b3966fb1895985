package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"tunroute/router/pace"
)

// Conn is one end of a flow. Where it has a method Reset(), SetLinger(int) as
// [net.TCPConn] has, or NetConn() as [tls.Conn] has, a flow that breaks is ended by a
// RST on it.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Counters are the payload bytes of a flow, readable while it runs.
type Counters struct {
	Up   atomic.Int64 // from the client
	Down atomic.Int64 // to the client

	OneWay atomic.Bool // one direction has ended in order

	// What bounds how fast bytes go up and down, others' beside this flow's; nil:
	// nothing. Set before the flow is relayed.
	UpLimit, DownLimit *pace.Bucket
}

// End says how a flow ended.
type End uint8

// The ends of a flow.
const (
	EOF      End = iota // both directions ended in order
	Client              // the client's connection broke
	Upstream            // the upstream's connection broke
	Canceled            // ctx ended
)

// String returns "eof", "client", "upstream" or "canceled".
func (e End) String() string {
	switch e {
	case EOF:
		return "eof"
	case Client:
		return "client"
	case Upstream:
		return "upstream"
	default:
		return "canceled"
	}
}

var _ interface {
	Conn
	NetConn() net.Conn
} = (*tls.Conn)(nil)

// bufferSize of a direction. Larger ones gain nothing: each byte is copied
// twice whatever the size, and 32 KiB still fit the caches of both cores.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Relay copies both ways until both directions have ended, one has broken or
// ctx has ended; then it closes both connections. It blocks until all of that
// is done and leaves no goroutine.
//
// The end of one direction is passed on as a FIN while the other goes on. A
// connection that breaks (a RST, a time-out) is passed on as a RST, behind what it has
// sent before. A side that does not read holds up the other: nothing is buffered but bufferSize bytes.
//
// The error is what broke, nil for EOF.
func Relay(ctx context.Context, client, upstream Conn, n *Counters) (End, error) {
	r := &relay{client: client, upstream: upstream, n: n, over: make(chan struct{})}
	upEnded, downEnded := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() { r.fail(Canceled, context.Cause(ctx)) })
	defer stop()

	var up sync.WaitGroup
	up.Go(func() { r.half(upstream, client, &n.Up, n.UpLimit, Upstream, Client, upEnded, downEnded) })
	r.half(client, upstream, &n.Down, n.DownLimit, Client, Upstream, downEnded, upEnded)
	up.Wait()

	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.failed {
		client.Close()
		upstream.Close()
		r.failed = true // a ctx that ends now is too late
		return EOF, nil
	}
	return r.end, r.err
}

type relay struct {
	client, upstream Conn
	n                *Counters
	over             chan struct{} // is closed when the flow has failed

	mu     sync.Mutex
	failed bool // both connections are closed
	end    End
	err    error
}

// lastWords is how long what a side has sent before it went may take to get to the
// other one. It is there already; only a reader that is slow takes time.
const lastWords = time.Second

// half copies one direction. to and from name the sides of dst and src. It closes ended,
// and back is closed by the other direction.
func (r *relay) half(dst, src Conn, n *atomic.Int64, limit *pace.Bucket, to, from End, ended chan<- struct{}, back <-chan struct{}) {
	write := func(b []byte) (int, error) {
		put, err := dst.Write(b)
		n.Add(int64(put))
		return put, err
	}
	if limit != nil {
		s := newShaper(limit, write, r.over)
		defer s.share.Leave()
		write = s.write
	}
	side, err := pump(write, src, to, from)
	close(ended)
	if err == nil {
		r.n.OneWay.Store(true)
		// The other side may have gone already; its direction says so.
		_ = dst.CloseWrite()
		return
	}
	if side == to {
		// It may have said why it takes no more.
		late := time.NewTimer(lastWords)
		defer late.Stop()
		select {
		case <-back:
		case <-r.over:
		case <-late.C:
		}
	}
	r.fail(side, err)
}

// shaper writes no faster than its share of a bandwidth.
type shaper struct {
	next  func([]byte) (int, error)
	share *pace.Share
	woken chan struct{}
	over  <-chan struct{} // it need not be written any more
}

func newShaper(limit *pace.Bucket, next func([]byte) (int, error), over <-chan struct{}) *shaper {
	s := &shaper{next: next, woken: make(chan struct{}, 1), over: over}
	s.share = limit.Join(func() { s.woken <- struct{}{} })
	return s
}

func (s *shaper) write(b []byte) (int, error) {
	for done := 0; ; {
		n := s.share.Take(len(b) - done)
		if n == 0 {
			select {
			case <-s.woken:
				continue
			case <-s.over:
				return done, net.ErrClosed
			}
		}
		put, err := s.next(b[done : done+n])
		if done += put; err != nil || done == len(b) {
			return done, err
		}
	}
}

func pump(write func([]byte) (int, error), src Conn, to, from End) (End, error) {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	for {
		got, err := src.Read(b[:])
		if got > 0 {
			if _, err := write(b[:got]); err != nil {
				return to, err
			}
		}
		if errors.Is(err, io.EOF) {
			return EOF, nil
		}
		if err != nil {
			return from, err
		}
	}
}

// fail breaks both connections; the first reason is kept.
func (r *relay) fail(end End, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed {
		return
	}
	r.failed, r.end, r.err = true, end, err
	close(r.over)
	Reset(r.client)
	Reset(r.upstream)
}

// Reset closes c by a RST where c can, so that its other end sees that the flow
// broke and does not take it for complete.
func Reset(c net.Conn) {
	switch c := c.(type) {
	case interface{ Reset() }:
		c.Reset()
		return
	case interface{ NetConn() net.Conn }:
		Reset(c.NetConn()) // Close would send a close_notify, which is an end in order
		return
	case interface{ SetLinger(sec int) error }:
		_ = c.SetLinger(0)
	}
	c.Close()
}
