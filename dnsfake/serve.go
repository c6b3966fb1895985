package dnsfake

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// How long a TCP client may be silent, or take for one message. Stub
	// resolvers close after their answers; RFC 7766 §6.2.3 leaves the time to
	// the server and asks for seconds.
	tcpIdle = 30 * time.Second

	// How long a TCP client may take to make room for an answer.
	tcpWrite = 10 * time.Second

	// Questions of one TCP connection that wait for the resolver; the next
	// one is not read before one of them is answered.
	tcpPipeline = 32

	// Room for what clients ask by TCP that is kept for the next question, and
	// taken before anything of a message has come.
	tcpRoom = 4096

	// How long to leave a listener alone that is out of descriptors.
	acceptPause = 100 * time.Millisecond
)

// ServeTCP answers the messages of one TCP connection (RFC 1035 §4.2.2, RFC
// 7766) until its end, its silence or that of ctx, and closes it. Answers that
// wait for the resolver do not hold up those behind them. What was asked before
// the client closed its direction is still answered.
func (s *Server) ServeTCP(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(WithClient(ctx, clientOf(conn.RemoteAddr())))
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	var (
		w       = tcpWriter{conn: conn}
		r       = bufio.NewReaderSize(conn, minUDP)
		buf     []byte
		forward sync.WaitGroup
		slots   = make(chan struct{}, tcpPipeline)
	)
	defer forward.Wait()
	for {
		if err := conn.SetReadDeadline(time.Now().Add(tcpIdle)); err != nil {
			return
		}
		var err error
		if buf, err = readMessage(r, buf[:0]); err != nil {
			return
		}
		if answer, done := s.AnswerNow(buf); done {
			if w.write(answer) != nil {
				return
			}
			if cap(buf) > tcpRoom {
				buf = nil
			}
			continue
		}
		slots <- struct{}{} // Answer ends, so one becomes free
		msg := buf
		buf = nil
		forward.Go(func() {
			defer func() { <-slots }()
			if w.write(s.Answer(ctx, msg, "tcp")) != nil {
				conn.Close() // which ends the reader too
			}
		})
	}
}

// readMessage reads one message into buf, which it may replace. What it takes grows
// with what comes, not with what is said to come.
func readMessage(r *bufio.Reader, buf []byte) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(prefix[:]))
	buf = buf[:0]
	for len(buf) < n {
		have := len(buf)
		buf = slices.Grow(buf, min(n-have, max(have, tcpRoom)))
		buf = buf[:min(n, cap(buf))]
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// tcpWriter writes whole messages to a connection.
type tcpWriter struct {
	mu   sync.Mutex // held while a message is written, which has a deadline
	conn net.Conn
}

// write sends an answer; nil is none.
func (w *tcpWriter) write(answer []byte) error {
	if answer == nil {
		return nil
	}
	// One write: a client may not expect the prefix in a segment of its own
	// (RFC 7766 §8).
	frame := make([]byte, 2+len(answer))
	binary.BigEndian.PutUint16(frame, uint16(len(answer)))
	copy(frame[2:], answer)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(tcpWrite)); err != nil {
		return err
	}
	_, err := w.conn.Write(frame)
	return err
}

// Serve answers what comes in by open sockets, until ctx ends, and then returns
// nil; or until one of them breaks. It owns the sockets and closes them, and
// when it returns everything that it started has stopped. On Linux answers go out
// from the address that was asked; elsewhere from the one that a socket is bound to,
// which for the wildcard address may be another. Several sockets for one address
// share its questions if they are open that way (SO_REUSEPORT), each with a
// goroutine.
func (s *Server) Serve(ctx context.Context, packets []net.PacketConn, listeners []net.Listener) error {
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-gctx.Done()
		for _, c := range packets {
			c.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
		return gctx.Err()
	})
	for _, c := range packets {
		group.Go(func() error { return s.servePackets(gctx, c) })
	}
	for _, l := range listeners {
		group.Go(func() error { return s.serveListener(gctx, l) })
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// servePackets answers the datagrams of one socket.
func (s *Server) servePackets(ctx context.Context, conn net.PacketConn) error {
	if udp, ok := conn.(*net.UDPConn); ok {
		return s.serveUDP(ctx, udp)
	}
	return s.serveOneByOne(ctx, conn)
}

// serveOneByOne answers the datagrams of one socket.
func (s *Server) serveOneByOne(ctx context.Context, conn net.PacketConn) error {
	var forward sync.WaitGroup // bounded by Options.MaxForwards
	defer forward.Wait()
	buf := make([]byte, maxMessage)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read dns questions at %v: %w", conn.LocalAddr(), err)
		}
		answer, done := s.AnswerNow(buf[:n])
		if done {
			send(conn, answer, from)
			continue
		}
		msg := append([]byte(nil), buf[:n]...)
		forward.Go(func() { send(conn, s.Answer(WithClient(ctx, clientOf(from)), msg, "udp"), from) })
	}
}

// send sends an answer; nil is none. An answer that cannot be sent is lost, as
// any datagram may be.
func send(conn net.PacketConn, answer []byte, to net.Addr) {
	if answer != nil {
		_, _ = conn.WriteTo(answer, to)
	}
}

// serveListener answers the connections of one listener.
func (s *Server) serveListener(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	for ctx.Err() == nil {
		conn, err := l.Accept()
		if err != nil {
			if !passes(err) {
				return fmt.Errorf("accept dns connections at %v: %w", l.Addr(), err)
			}
			s.log.Warn("dns", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		leave, ok := s.AdmitTCP(clientOf(conn.RemoteAddr()))
		if !ok {
			conn.Close()
			continue
		}
		conns.Go(func() {
			defer leave()
			s.ServeTCP(ctx, conn)
		})
	}
	return ctx.Err()
}

// clientOf returns the address of a client without its port; the zero Addr where it is
// none of IP.
func clientOf(a net.Addr) netip.Addr {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// passes reports whether an error of Accept is about one connection or a
// shortage, and not about the listener.
func passes(err error) bool {
	for _, errno := range []error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
