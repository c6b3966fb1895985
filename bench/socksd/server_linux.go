package socksd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// RFC 1928.
const (
	version    = 5
	noAuth     = 0
	noMethod   = 0xff
	connect    = 1
	associate  = 3
	typeIPv4   = 1
	typeIPv6   = 4
	maxRequest = 4 + 16 + 2

	granted        = 0
	failure        = 1
	netUnreach     = 3
	hostUnreach    = 4
	refused        = 5
	noSuchCommand  = 7
	noSuchAddrType = 8
)

// timeout is for each step until a connection is granted.
const timeout = 10 * time.Second

// Server is a SOCKS5 server.
type Server struct {
	pipes pipes
	conns sync.WaitGroup
	dial  net.Dialer
}

// New returns a server.
func New() *Server {
	s := &Server{dial: net.Dialer{Timeout: timeout, KeepAlive: -1}}
	s.dial.SetMultipathTCP(false)
	return s
}

// Run accepts connections from l until ctx ends, and closes l and whatever is
// still open then.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.pipes.close()
	defer s.conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				time.Sleep(10 * time.Millisecond) // the client waits in the backlog
				continue
			}
			return err
		}
		s.conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			s.serve(ctx, c.(*net.TCPConn))
		})
	}
}

// serve serves a connection. What is wrong with one, the client is told.
func (s *Server) serve(ctx context.Context, c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(timeout))
	in := &input{c: c}
	command, target, code, err := in.handshake()
	if err != nil {
		return
	}
	switch {
	case code != granted:
		c.Write(reply(code, netip.AddrPort{}))
	case command == connect:
		s.connect(ctx, c, target, in.rest)
	case command == associate:
		s.associate(ctx, c)
	default:
		c.Write(reply(noSuchCommand, netip.AddrPort{}))
	}
}

func (s *Server) connect(ctx context.Context, c *net.TCPConn, target netip.AddrPort, early []byte) {
	conn, err := s.dial.DialContext(ctx, "tcp", target.String())
	if err != nil {
		c.Write(reply(codeOf(err), netip.AddrPort{}))
		return
	}
	defer conn.Close()
	out := conn.(*net.TCPConn)
	defer context.AfterFunc(ctx, func() { out.Close() })()
	bound := out.LocalAddr().(*net.TCPAddr).AddrPort()
	if _, err := c.Write(reply(granted, bound)); err != nil {
		return
	}
	c.SetDeadline(time.Time{})
	if len(early) > 0 {
		if _, err := out.Write(early); err != nil {
			return
		}
	}
	s.relay(c, out)
}

func codeOf(err error) byte {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ENETUNREACH):
		return netUnreach
	case errors.Is(err, syscall.EHOSTUNREACH):
		return hostUnreach
	}
	return failure
}

// input is what the client says, read in as few pieces as it comes in.
type input struct {
	c    *net.TCPConn
	rest []byte // read, and not looked at yet
	buf  [2 + 255 + maxRequest]byte
	n    int
}

// need returns the next n bytes.
func (in *input) need(n int) ([]byte, error) {
	for len(in.rest) < n {
		if in.n == len(in.buf) {
			return nil, io.ErrShortBuffer
		}
		k, err := in.c.Read(in.buf[in.n:])
		if err != nil {
			return nil, err
		}
		in.rest = in.buf[in.n-len(in.rest) : in.n+k]
		in.n += k
	}
	p := in.rest[:n]
	in.rest = in.rest[n:]
	return p, nil
}

// handshake reads the greeting, answers it, and reads the request. A code other
// than granted is the answer to a request that cannot be served.
func (in *input) handshake() (command byte, target netip.AddrPort, code byte, err error) {
	p, err := in.need(2)
	if err != nil {
		return 0, target, 0, err
	}
	if p[0] != version {
		return 0, target, 0, fmt.Errorf("version %d", p[0])
	}
	if p, err = in.need(int(p[1])); err != nil {
		return 0, target, 0, err
	}
	method := byte(noMethod)
	for _, m := range p {
		if m == noAuth {
			method = noAuth
		}
	}
	if _, err := in.c.Write([]byte{version, method}); err != nil || method == noMethod {
		return 0, target, 0, errors.Join(err, errors.New("done"))
	}
	if p, err = in.need(4); err != nil {
		return 0, target, 0, err
	}
	command = p[1]
	size := 0
	switch p[3] {
	case typeIPv4:
		size = 4
	case typeIPv6:
		size = 16
	default:
		return command, target, noSuchAddrType, nil
	}
	if p, err = in.need(size + 2); err != nil {
		return 0, target, 0, err
	}
	addr, _ := netip.AddrFromSlice(p[:size])
	return command, netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(p[size:])), granted, nil
}

// reply returns the reply to a request.
func reply(code byte, bound netip.AddrPort) []byte {
	return appendAddr([]byte{version, code, 0}, bound)
}

// appendAddr appends an address with its type and port; one that is not valid is
// that of nobody.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	addr := a.Addr().Unmap()
	switch {
	case !addr.IsValid():
		b = append(b, typeIPv4, 0, 0, 0, 0)
	case addr.Is4():
		b = append(append(b, typeIPv4), addr.AsSlice()...)
	default:
		b = append(append(b, typeIPv6), addr.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}
