package stack

import (
	"io"
	"net"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/waiter"
)

// The non-blocking face of a Conn, for a relay that has no goroutine per flow and
// copies nothing. Its methods must not run at the same time as one another, nor
// as Close or Reset: Forward lends out slices of the receive queue, which an end
// of the connection from this side would give to another.

// Wake has f called whenever it may be worth trying Forward (readable) or Fill
// (writable) again, and when the stack ends (stop): then the Conn has to be ended,
// for which the stack waits. f is called with locks held and from any goroutine:
// it must neither block nor use the Conn. Wake may be called once, before anything
// is read or written; Read and Write may not be used any more.
func (c *Conn) Wake(f func(readable, writable, stop bool)) {
	const broken = waiter.EventHUp | waiter.EventErr
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isClosed() {
		return
	}
	w := &wakeUp{f: f}
	w.entry.Init(w, waiter.ReadableEvents|waiter.WritableEvents|broken)
	c.stream = w
	c.wq.EventRegister(&w.entry)
	c.s.streams.add(c.ep, w)
}

// wakeUp is a waiter.EventListener.
type wakeUp struct {
	f     func(readable, writable, stop bool)
	entry waiter.Entry
}

// NotifyEvent implements waiter.EventListener.
func (w *wakeUp) NotifyEvent(mask waiter.EventMask) {
	const broken = waiter.EventHUp | waiter.EventErr
	w.f(mask&(waiter.ReadableEvents|broken) != 0, mask&(waiter.WritableEvents|broken) != 0, false)
}

// slices collects what a peek sees.
type slices [][]byte

func (s *slices) Write(b []byte) (int, error) {
	*s = append(*s, b)
	return len(b), nil
}

// Forward calls write, at most once, with what the client has sent and nobody has
// read yet, and consumes as much as write returns. The slices are valid until
// write returns. It returns what write does; without calling it, EAGAIN where
// there is nothing, io.EOF behind the client's FIN, net.ErrClosed after Close,
// and an errno of the connection else.
func (c *Conn) Forward(write func(bufs [][]byte) (int, error)) (int, error) {
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	var room [8][]byte // most queues have few segments
	seen := slices(room[:0])
	if _, err := c.ep.Read(&seen, tcpip.ReadOptions{Peek: true}); err != nil {
		return 0, c.again("read", err)
	}
	n, err := write(seen)
	if n > 0 {
		// It returns an error at its limit, which ends the reading there.
		read := tcpip.LimitedWriter{W: io.Discard, N: int64(n)}
		res, rerr := c.ep.Read(&read, tcpip.ReadOptions{})
		if rerr != nil || res.Count != n {
			panic("stack: what was peeked at is not in the receive queue any more")
		}
		c.moderate(n)
	}
	return n, err
}

// filler is a tcpip.Payloader of n bytes.
type filler struct {
	read func([]byte) (int, error)
	n    int
}

func (f *filler) Len() int { return f.n }

func (f *filler) Read(b []byte) (int, error) {
	if len(b) == 0 { // netstack asks for nothing to see whether it is the end
		return 0, nil
	}
	n, err := f.read(b)
	f.n -= n
	return n, err
}

// Fill sends the client up to n bytes, n > 0, which it has read by read: each call
// must fill its slice. It returns how many bytes that were; EAGAIN where the send
// queue is full. Any other error ends the connection, with what was read lost.
func (c *Conn) Fill(n int, read func(b []byte) (int, error)) (int, error) {
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	w, err := c.ep.Write(&filler{read, n}, tcpip.WriteOptions{})
	if err != nil {
		return int(w), c.again("write", err)
	}
	return int(w), nil
}

// again is what Forward and Fill report for err.
func (c *Conn) again(op string, err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrWouldBlock:
		return syscall.EAGAIN
	}
	if err := c.failed(err); err != io.EOF {
		return c.opError(op, err)
	}
	return io.EOF
}

// streams are the endpoints that nobody may abort but the owner of their Conn.
type streams struct {
	ended sync.WaitGroup

	mu       sync.Mutex
	stopping bool
	all      map[tcpip.Endpoint]*wakeUp
}

func (s *streams) add(ep tcpip.Endpoint, w *wakeUp) {
	s.ended.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[tcpip.Endpoint]*wakeUp)
	}
	s.all[ep] = w
	if s.stopping {
		w.f(false, false, true)
	}
}

func (s *streams) remove(ep tcpip.Endpoint) {
	s.mu.Lock()
	delete(s.all, ep)
	if len(s.all) == 0 {
		s.all = nil // a map keeps its size for ever
	}
	s.mu.Unlock()
	s.ended.Done()
}

// stop tells the owners, those of now and those to come.
func (s *streams) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	for _, w := range s.all {
		w.f(false, false, true)
	}
}

// abort aborts an endpoint, unless it is one of them.
func (s *streams) abort(e gstack.TransportEndpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ep, ok := e.(tcpip.Endpoint); ok {
		if _, owned := s.all[ep]; owned {
			return
		}
	}
	e.Abort()
}
