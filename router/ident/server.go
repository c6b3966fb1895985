package ident

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// maxConns is how many may ask at once; one more is hung up on, which servers
	// take for no answer. A connection costs a goroutine and 4 KiB.
	maxConns = 64

	// maxWait is how long one may take to ask and to be answered. Servers wait for
	// less: danted for 5 s.
	maxWait = 10 * time.Second

	// acceptDelay is how long to wait where a connection cannot be accepted, for
	// want of file descriptors for example.
	acceptDelay = 100 * time.Millisecond
)

// Server knows the connections that may be asked for, and answers. It is safe for
// concurrent use.
type Server struct {
	wait time.Duration // maxWait, but in tests

	mu      sync.Mutex             // guards what follows
	open    map[pair]string        // whose a connection is
	opening map[netip.AddrPort]int // how many are being opened to there
	changed chan struct{}          // closed at the next change of either; nil where nobody waits
}

// pair is a connection.
type pair struct{ here, there netip.AddrPort }

// New returns a Server that knows no connection.
func New() *Server {
	return &Server{wait: maxWait, open: make(map[pair]string), opening: make(map[netip.AddrPort]int)}
}

// Conn is a connection that may be asked for.
type Conn struct {
	s     *Server
	there netip.AddrPort
	user  string

	// The owner's.
	here   netip.AddrPort // zero until it is open
	closed bool
}

// Opening tells of a connection before it is opened, of its other end and whose it is
// to be. The caller has to end what it gets by Close, whether the connection comes
// about or not.
func (s *Server) Opening(there netip.AddrPort, user string) *Conn {
	there = plain(there)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening[there]++
	return &Conn{s: s, there: there, user: user}
}

// Opened tells that the connection is open, and of its own end. Opened and Close may
// not be called at the same time.
func (c *Conn) Opened(here netip.AddrPort) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.here = plain(here)
	c.s.open[pair{c.here, c.there}] = c.user
	c.s.endOpeningLocked(c.there)
}

// Close tells that there is no connection any more, or that none has come about. A
// second call does nothing.
func (c *Conn) Close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	if !c.here.IsValid() {
		c.s.endOpeningLocked(c.there)
		return
	}
	delete(c.s.open, pair{c.here, c.there})
}

func (s *Server) endOpeningLocked(there netip.AddrPort) {
	if s.opening[there]--; s.opening[there] == 0 {
		delete(s.opening, there)
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// find returns whose a connection is. It waits for one that is being opened, until
// then or until ctx ends.
func (s *Server) find(ctx context.Context, p pair) (user string, ok bool) {
	for {
		s.mu.Lock()
		user, ok = s.open[p]
		if ok || s.opening[p.there] == 0 {
			s.mu.Unlock()
			return user, ok
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return "", false
		}
	}
}

// Serve answers at listeners, which it closes, until ctx ends or one of them fails. It
// returns when all that it has started has stopped; the error is nil where ctx ended it.
func (s *Server) Serve(ctx context.Context, listeners []net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, maxConns)
	var running sync.WaitGroup
	for _, l := range listeners {
		running.Go(func() {
			defer context.AfterFunc(ctx, func() { l.Close() })()
			if err := s.accept(ctx, l, slots, &running); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	for _, l := range listeners {
		l.Close()
	}
	running.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// accept serves one listener until ctx ends; the error is nil then.
func (s *Server) accept(ctx context.Context, l net.Listener, slots chan struct{}, running *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			select {
			case <-time.After(acceptDelay):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		running.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, conn)
		})
	}
}

// serve answers one query, and closes the connection.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	here, ok1 := conn.LocalAddr().(*net.TCPAddr)
	there, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return
	}
	line, err := bufio.NewReaderSize(io.LimitReader(conn, maxLine+2), maxLine+2).ReadString('\n')
	if err != nil {
		return
	}
	if reply, err := s.answer(ctx, strings.TrimRight(line, "\r\n"), here.AddrPort().Addr(), there.AddrPort().Addr()); err == nil {
		_, _ = io.WriteString(conn, reply)
	}
}

// answer returns the reply to a query that has come to here from there.
func (s *Server) answer(ctx context.Context, line string, here, there netip.Addr) (string, error) {
	q, err := parseQuery(line)
	if err != nil {
		return "", err
	}
	h, t, ok := q.ports()
	if !ok {
		return q.failure(invalidPort), nil
	}
	user, ok := s.find(ctx, pair{plain(netip.AddrPortFrom(here, h)), plain(netip.AddrPortFrom(there, t))})
	if !ok {
		return q.failure(noUser), nil
	}
	return q.success(user), nil
}
