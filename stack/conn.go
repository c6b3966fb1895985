package stack

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a client's connection. It is a [net.Conn] whose errors are errnos
// (ECONNRESET where the client sent a RST), with the two methods that a relay
// needs besides. One Read and one Write may run at a time; the others are safe
// at any time.
type Conn struct {
	s         *Stack
	ep        tcpip.Endpoint
	wq        *waiter.Queue
	src, dst  netip.AddrPort
	far       bool  // see moderate
	sent      int64 // the last moment in which it was counted
	ended     atomic.Bool
	died      atomic.Pointer[error] // what ended the connection before its time: see failed
	blockFace atomic.Pointer[blocking]

	mu     sync.Mutex // guards stream, and what is registered with wq
	stream *wakeUp    // of Wake
}

// blocking is what the methods of net.Conn need: most connections are relayed
// without them.
type blocking struct {
	closed chan struct{}
	rd, wr direction

	// What netstack reads from and writes to, here so that it allocates
	// nothing; guarded by rd.mu and wr.mu.
	into tcpip.SliceWriter
	from bytes.Reader
}

// direction is one half of a Conn: what wakes it, and its deadline.
type direction struct {
	mu       sync.Mutex // held by the Read or Write that runs
	mask     waiter.EventMask
	entry    waiter.Entry
	ready    chan struct{} // nil until somebody has had to wait
	deadline deadline
}

var _ net.Conn = (*Conn)(nil)

func newConn(s *Stack, ep tcpip.Endpoint, wq *waiter.Queue, src, dst netip.AddrPort, handshake time.Duration) *Conn {
	return &Conn{s: s, ep: ep, wq: wq, src: src, dst: dst, far: !s.neighbors.near(src.Addr(), handshake)}
}

// block returns the blocking face, which is made when it is first used.
func (c *Conn) block() *blocking {
	if b := c.blockFace.Load(); b != nil {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blockFace.Load(); b != nil {
		return b
	}
	b := &blocking{closed: make(chan struct{})}
	b.rd.mask = waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr
	b.wr.mask = waiter.WritableEvents | waiter.EventHUp | waiter.EventErr
	if c.isClosed() {
		close(b.closed)
	}
	c.blockFace.Store(b)
	return b
}

// wait blocks until it is worth trying the endpoint again.
func (c *Conn) wait(d *direction) error {
	if d.ready == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.isClosed() {
			return net.ErrClosed
		}
		d.entry, d.ready = waiter.NewChannelEntry(d.mask)
		c.wq.EventRegister(&d.entry)
		return nil // there may have been an event before
	}
	select {
	case <-d.ready:
		return nil
	case <-c.block().closed:
		return net.ErrClosed
	case <-d.deadline.done():
		return os.ErrDeadlineExceeded
	}
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	f := c.block()
	f.rd.mu.Lock()
	defer f.rd.mu.Unlock()
	if err := c.begin(&f.rd); err != nil {
		return 0, c.opError("read", err)
	}
	if len(b) == 0 {
		return 0, nil
	}
	defer func() { f.into = nil }()
	for {
		f.into = b
		res, err := c.ep.Read(&f.into, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.moderate(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			if err := c.wait(&f.rd); err != nil {
				return 0, c.opError("read", err)
			}
		default:
			if err := c.failed(err); err != io.EOF {
				return 0, c.opError("read", err)
			}
			return 0, io.EOF
		}
	}
}

// Write implements net.Conn. It blocks while the client does not read.
func (c *Conn) Write(b []byte) (int, error) {
	f := c.block()
	f.wr.mu.Lock()
	defer f.wr.mu.Unlock()
	if err := c.begin(&f.wr); err != nil {
		return 0, c.opError("write", err)
	}
	defer f.from.Reset(nil)
	written := 0
	for written < len(b) {
		f.from.Reset(b[written:])
		n, err := c.ep.Write(&f.from, tcpip.WriteOptions{})
		written += int(n)
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			if err := c.wait(&f.wr); err != nil {
				return written, c.opError("write", err)
			}
		default:
			return written, c.opError("write", c.failed(err))
		}
	}
	return written, nil
}

// failed returns what Read and Write report for err. netstack tells once why a
// connection has died, to the one that asks first, and the other is told that it
// is closed. Here both are told: a reset that Write has met must not look like an
// orderly end to Read.
func (c *Conn) failed(err tcpip.Error) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	_, noRead := err.(*tcpip.ErrClosedForReceive)
	_, noWrite := err.(*tcpip.ErrClosedForSend)
	switch {
	case !noRead && !noWrite:
		e := toError(err)
		c.died.CompareAndSwap(nil, &e)
		return e
	case tcp.EndpointState(c.ep.State()) == tcp.StateError:
		if e := c.died.Load(); e != nil {
			return *e
		}
		return syscall.ECONNRESET // the other is just being told
	case noRead:
		return io.EOF
	}
	return syscall.EPIPE
}

// begin says whether d may be used at all: not after Close, nor after its
// deadline.
func (c *Conn) begin(d *direction) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	select {
	case <-d.deadline.done():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

func (c *Conn) isClosed() bool { return c.ended.Load() }

// CloseWrite sends a FIN behind what was written. The client can still send.
func (c *Conn) CloseWrite() error {
	if c.isClosed() {
		return c.opError("close", net.ErrClosed)
	}
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.opError("close", toError(err))
	}
	return nil
}

// Close ends both directions in order: what was written is delivered, then a
// FIN; where the client does not take it for 60 s, the connection is given up.
// Where data of the client is left unread, it is a RST, as on Linux. Close does
// not block.
func (c *Conn) Close() error {
	c.end(func() {
		limit := tcpip.TCPUserTimeoutOption(closeTimeout)
		_ = c.ep.SetSockOpt(&limit) // cannot fail
		c.ep.Close()
	})
	return nil
}

// Reset ends the connection by a RST: the client reads ECONNRESET.
func (c *Conn) Reset() { c.end(c.ep.Abort) }

func (c *Conn) end(how func()) {
	c.mu.Lock()
	if c.ended.Swap(true) {
		c.mu.Unlock()
		return
	}
	f, stream := c.blockFace.Load(), c.stream
	if f != nil {
		close(f.closed)
		for _, d := range []*direction{&f.rd, &f.wr} {
			if d.ready != nil {
				c.wq.EventUnregister(&d.entry)
			}
		}
	}
	if stream != nil {
		c.wq.EventUnregister(&stream.entry)
	}
	c.mu.Unlock()
	how()
	if f != nil {
		f.rd.deadline.stop()
		f.wr.deadline.stop()
	}
	if stream != nil {
		c.s.streams.remove(c.ep)
	}
}

// LocalAddr returns the address that the client has connected to.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.dst) }

// RemoteAddr returns the client's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.src) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	f := c.block()
	return c.setDeadline(t, &f.rd, &f.wr)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, &c.block().rd) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.block().wr) }

func (c *Conn) setDeadline(t time.Time, of ...*direction) error {
	if c.isClosed() {
		return c.opError("set", net.ErrClosed)
	}
	for _, d := range of {
		d.deadline.set(t)
	}
	return nil
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// deadline is a channel that closes when a time has come; as in net.Pipe.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	ch    chan struct{}
}

func (d *deadline) done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.chanLocked()
}

func (d *deadline) chanLocked() chan struct{} {
	if d.ch == nil {
		d.ch = make(chan struct{})
	}
	return d.ch
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ch // as in set
	}
	d.timer = nil // set may come after it
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.chanLocked()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ch // the timer has fired or is about to
	}
	d.timer = nil
	expired := false
	select {
	case <-d.ch:
		expired = true
	default:
	}
	if t.IsZero() {
		if expired {
			d.ch = make(chan struct{})
		}
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		if !expired {
			close(d.ch)
		}
		return
	}
	if expired {
		d.ch = make(chan struct{})
	}
	ch := d.ch
	d.timer = time.AfterFunc(wait, func() { close(ch) })
}
