package relay

import (
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// memStream is a Stream in memory, and memPeer its client.
type memStream struct {
	mu       sync.Mutex
	changed  sync.Cond
	in, out  [][]byte // from and to the client, in slices as they were written
	inSize   int
	outSize  int
	inEOF    bool
	outEOF   bool
	broken   error // what the Stream's methods return
	peerErr  error // what the client's methods return
	wake     func(readable, writable, stop bool)
	stopping bool
	inFlight bool // in one of the methods that must not meet
}

// memRoom is what a direction holds before its writer has to wait.
const memRoom = 64 << 10

func newMemStream() (*memStream, *memPeer) {
	s := new(memStream)
	s.changed.L = &s.mu
	return s, &memPeer{s}
}

// enter panics where two methods meet that must not: the race detector does not
// see it, since the Stream has a lock of its own.
func (s *memStream) enter() func() {
	s.mu.Lock()
	if s.inFlight {
		panic("two methods of a Stream at the same time")
	}
	s.inFlight = true
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.inFlight = false
		s.mu.Unlock()
	}
}

func (s *memStream) Wake(f func(readable, writable, stop bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake = f
	if s.stopping {
		f(false, false, true)
	}
}

// stop is where the streams come from coming to its end.
func (s *memStream) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
	if s.wake != nil {
		s.wake(false, false, true)
	}
}

// tell is called with the lock held, as netstack calls its listeners.
func (s *memStream) tell(readable, writable bool) {
	if s.wake != nil {
		s.wake(readable, writable, false)
	}
	s.changed.Broadcast()
}

func (s *memStream) Forward(write func([][]byte) (int, error)) (int, error) {
	defer s.enter()()
	s.mu.Lock()
	switch {
	case s.broken != nil:
		defer s.mu.Unlock()
		return 0, s.broken
	case len(s.in) == 0 && s.inEOF:
		defer s.mu.Unlock()
		return 0, io.EOF
	case len(s.in) == 0:
		defer s.mu.Unlock()
		return 0, syscall.EAGAIN
	}
	bufs := append([][]byte(nil), s.in...)
	s.mu.Unlock() // the client goes on meanwhile
	n, err := write(bufs)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inSize -= n
	for rest := n; rest > 0; {
		k := min(rest, len(s.in[0]))
		if s.in[0] = s.in[0][k:]; len(s.in[0]) == 0 {
			s.in = s.in[1:]
		}
		rest -= k
	}
	s.changed.Broadcast()
	return n, err
}

func (s *memStream) Fill(n int, read func([]byte) (int, error)) (int, error) {
	defer s.enter()()
	s.mu.Lock()
	room := memRoom - s.outSize
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return 0, broken
	}
	if room == 0 {
		return 0, syscall.EAGAIN
	}
	// In two pieces, as netstack may.
	done := 0
	for _, size := range []int{min(n, room) / 2, min(n, room) - min(n, room)/2} {
		if size == 0 {
			continue
		}
		b := make([]byte, size)
		if _, err := read(b); err != nil {
			return 0, err
		}
		s.mu.Lock()
		s.out = append(s.out, b)
		s.outSize += size
		s.changed.Broadcast()
		s.mu.Unlock()
		done += size
	}
	return done, nil
}

func (s *memStream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outEOF = true
	s.changed.Broadcast()
	return nil
}

func (s *memStream) Close() error {
	defer s.enter()()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outEOF, s.broken = true, net.ErrClosed
	s.changed.Broadcast()
	return nil
}

func (s *memStream) Reset() {
	defer s.enter()()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken, s.peerErr = net.ErrClosed, syscall.ECONNRESET
	s.changed.Broadcast()
}

func (s *memStream) Read([]byte) (int, error)         { panic("a Stream is not read") }
func (s *memStream) Write([]byte) (int, error)        { panic("a Stream is not written") }
func (s *memStream) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *memStream) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *memStream) SetDeadline(time.Time) error      { return nil }
func (s *memStream) SetReadDeadline(time.Time) error  { return nil }
func (s *memStream) SetWriteDeadline(time.Time) error { return nil }

// memPeer is the client's end.
type memPeer struct{ s *memStream }

func (p *memPeer) Write(b []byte) (int, error) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	done := 0
	for done < len(b) {
		for s.inSize >= memRoom && s.peerErr == nil {
			s.changed.Wait()
		}
		if s.peerErr != nil {
			return done, s.peerErr
		}
		n := min(len(b)-done, memRoom-s.inSize, 1460)
		s.in = append(s.in, append([]byte(nil), b[done:done+n]...))
		s.inSize += n
		done += n
		s.tell(true, false)
	}
	return done, nil
}

func (p *memPeer) Read(b []byte) (int, error) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.out) == 0 && !s.outEOF && s.peerErr == nil {
		s.changed.Wait()
	}
	switch {
	case s.peerErr != nil:
		return 0, s.peerErr
	case len(s.out) == 0:
		return 0, io.EOF
	}
	n := copy(b, s.out[0])
	if s.out[0] = s.out[0][n:]; len(s.out[0]) == 0 {
		s.out = s.out[1:]
	}
	s.outSize -= n
	s.tell(false, true)
	return n, nil
}

func (p *memPeer) CloseWrite() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.inEOF = true
	p.s.tell(true, false)
	return nil
}

// Break sends a RST.
func (p *memPeer) Break() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.broken = syscall.ECONNRESET
	p.s.tell(true, true)
}
