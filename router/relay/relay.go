package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Conn is one end of a flow. Where it has a method Reset(), or SetLinger(int)
// as [net.TCPConn] has, a flow that breaks is ended by a RST on it.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Counters are the payload bytes of a flow, readable while it runs.
type Counters struct {
	Up   atomic.Int64 // from the client
	Down atomic.Int64 // to the client

	OneWay atomic.Bool // one direction has ended in order
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

// bufferSize of a direction. Larger ones gain nothing: each byte is copied
// twice whatever the size, and 32 KiB still fit the caches of both cores.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Relay copies both ways until both directions have ended, one has broken or
// ctx has ended; then it closes both connections. It blocks until all of that
// is done and leaves no goroutine.
//
// The end of one direction is passed on as a FIN while the other goes on. A
// connection that breaks (a RST, a time-out) is passed on as a RST. A side that
// does not read holds up the other: nothing is buffered but bufferSize bytes.
//
// The error is what broke, nil for EOF.
func Relay(ctx context.Context, client, upstream Conn, n *Counters) (End, error) {
	r := &relay{client: client, upstream: upstream, n: n}
	stop := context.AfterFunc(ctx, func() { r.fail(Canceled, context.Cause(ctx)) })
	defer stop()

	var up sync.WaitGroup
	up.Go(func() { r.half(upstream, client, &n.Up, Upstream, Client) })
	r.half(client, upstream, &n.Down, Client, Upstream)
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

	mu     sync.Mutex
	failed bool // both connections are closed
	end    End
	err    error
}

// half copies one direction. to and from name the sides of dst and src.
func (r *relay) half(dst, src Conn, n *atomic.Int64, to, from End) {
	side, err := pump(dst, src, n, to, from)
	if err == nil {
		r.n.OneWay.Store(true)
		// The other side may have gone already; its direction says so.
		_ = dst.CloseWrite()
		return
	}
	r.fail(side, err)
}

func pump(dst, src Conn, n *atomic.Int64, to, from End) (End, error) {
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	for {
		got, err := src.Read(b[:])
		if got > 0 {
			put, err := dst.Write(b[:got])
			n.Add(int64(put))
			if err != nil {
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
	case interface{ SetLinger(sec int) error }:
		_ = c.SetLinger(0)
	}
	c.Close()
}
