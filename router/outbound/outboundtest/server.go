package outboundtest

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/gssapi"
	"tunroute/router/gssapi/gssapitest"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// ServerOptions describe a [Server]. The zero value is a server for anybody.
type ServerOptions struct {
	// Listen is the address to listen at; the zero Addr is 127.0.0.1. Unix
	// says to listen at a unix socket instead.
	Listen netip.Addr
	Unix   bool
	// TLS, if not nil, has clients speak TLS: see [Certificate].
	TLS *tls.Config
	// HTTP makes it an HTTP proxy, which has CONNECT and Basic credentials.
	HTTP bool
	// User and Password, if either is not empty, are wanted from everybody:
	// by RFC 1929, or User as the user ID of SOCKS4.
	User, Password string
	// GSSAPI, if not nil, has clients authenticate by RFC 1961, with a
	// gssapitest.Toy, and is what the server answers to any protection.
	GSSAPI *gssapi.Protection
	// Resolver resolves names. If it is nil, there are none: host
	// unreachable.
	Resolver outbound.Resolver
	// NoUDP says that UDP ASSOCIATE is a command not supported, NoBind that
	// BIND is one.
	NoUDP, NoBind bool
	// Bound, if not nil, returns the BND that the server gives for a relay
	// or a BIND at the address.
	Bound func(at netip.AddrPort) socks.Addr
}

// Server is a SOCKS4, 4a and 5 server, or an HTTP proxy: CONNECT, BIND, which lets in
// the address that it was asked for, and UDP ASSOCIATE with a relay for each
// association, which takes datagrams from whoever sent the first. It keeps half-closed connections and ends a connect when its client goes away.
type Server struct {
	opts ServerOptions
	addr netip.AddrPort
	path string // of the unix socket

	mu       sync.Mutex
	asked    []socks.Request
	controls []net.Conn // of all associations, ended ones too
}

// halves is a connection whose halves end apart: TCP, unix or TLS.
type halves interface {
	net.Conn
	CloseWrite() error
}

// StartServer starts a server that stops at the end of the test.
func StartServer(t testing.TB, o ServerOptions) *Server {
	t.Helper()
	if !o.Listen.IsValid() {
		o.Listen = loopback4
	}
	s := &Server{opts: o}
	if o.Unix {
		s.path = ServeUnix(t, func(c *net.UnixConn) { s.serve(c) })
		return s
	}
	s.addr = Serve(t, o.Listen, func(c *net.TCPConn) {
		if o.TLS != nil {
			s.serve(tls.Server(c, o.TLS))
			return
		}
		s.serve(c)
	})
	return s
}

// Path returns the path of the unix socket at which the server listens.
func (s *Server) Path() string { return s.path }

// Target returns where the server listens.
func (s *Server) Target() flow.Target { return flow.AddrTarget(s.addr) }

// Requests returns the requests so far.
func (s *Server) Requests() []socks.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// EndAssociations closes the control connections of all associations.
func (s *Server) EndAssociations() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.controls {
		c.Close()
	}
}

// serve speaks with one client. [Serve] closes the connection.
func (s *Server) serve(conn halves) {
	if s.opts.HTTP {
		s.serveHTTP(conn)
		return
	}
	r := bufio.NewReader(conn)
	v, err := socks.ReadVersion(r)
	if err != nil {
		return
	}
	switch v {
	case socks.Version4:
		req, err := socks.ReadRequest4(r)
		if err != nil {
			return
		}
		s.record(req)
		if req.User != s.opts.User {
			conn.Write(socks.AppendReply4(nil, socks.Reply4UserMismatch, netip.AddrPort{}))
			return
		}
		reply := func(code socks.ReplyError, bound socks.Addr) []byte {
			at := netip.AddrPortFrom(bound.IP, bound.Port)
			if code != socks.ReplySucceeded {
				return socks.AppendReply4(nil, socks.Reply4Rejected, at)
			}
			return socks.AppendReply4(nil, socks.Reply4Granted, at)
		}
		if req.Command == socks.Bind && !s.opts.NoBind {
			s.bind(conn, r, req, reply)
			return
		}
		s.connect(conn, r, req, reply)
	case socks.Version5:
		if !s.authenticate(conn, r) {
			return
		}
		var protect *gssapi.Datagrams
		if s.opts.GSSAPI != nil {
			if conn, protect, err = s.acceptGSSAPI(conn, r); err != nil {
				return
			}
			r = bufio.NewReader(conn)
		}
		req, err := socks.ReadRequest(r)
		var code socks.ReplyError
		if errors.As(err, &code) {
			conn.Write(socks.AppendReply(nil, code, netip.AddrPort{}))
		}
		if err != nil {
			return
		}
		s.record(req)
		switch {
		case req.Command == socks.Connect:
			s.connect(conn, r, req, reply)
		case req.Command == socks.Bind && !s.opts.NoBind:
			s.bind(conn, r, req, reply)
		case req.Command == socks.UDPAssociate && !s.opts.NoUDP:
			s.associate(conn, protect)
		default:
			conn.Write(reply(socks.ReplyCommand, socks.Addr{}))
		}
	}
}

// replier writes a reply of one of the versions.
type replier func(socks.ReplyError, socks.Addr) []byte

// reply is the replier of SOCKS5. A bound address may be a name, which AppendReply
// cannot write; after the third byte a request is the same.
func reply(code socks.ReplyError, bound socks.Addr) []byte {
	if bound.Name == "" {
		return socks.AppendReply(nil, code, netip.AddrPortFrom(bound.IP, bound.Port))
	}
	b, _ := socks.AppendRequest(nil, socks.Command(code), bound)
	return b
}

func addrOf(a net.Addr) socks.Addr {
	ap := a.(*net.TCPAddr).AddrPort()
	return socks.Addr{IP: ap.Addr().Unmap(), Port: ap.Port()}
}

func (s *Server) record(req socks.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req)
}

// authenticate takes exactly one method, the one that it wants.
func (s *Server) authenticate(conn net.Conn, r io.Reader) bool {
	want := socks.MethodNone
	if s.opts.GSSAPI != nil {
		want = socks.MethodGSSAPI
	}
	if s.opts.User != "" || s.opts.Password != "" {
		want = socks.MethodUserPass
	}
	offer, err := socks.ReadMethods(r)
	if err != nil {
		return false
	}
	if !slices.Contains(offer, want) {
		conn.Write(socks.AppendNoMethod(nil))
		return false
	}
	conn.Write(socks.AppendMethod(nil, want))
	if want != socks.MethodUserPass {
		return true
	}
	user, password, err := socks.ReadUserPass(r)
	if err != nil {
		return false
	}
	ok := user == s.opts.User && password == s.opts.Password
	conn.Write(socks.AppendAuthStatus(nil, ok))
	return ok
}

// acceptGSSAPI returns the connection as it is protected from then on, and what protects
// datagrams; nil for nothing.
func (s *Server) acceptGSSAPI(conn halves, r *bufio.Reader) (halves, *gssapi.Datagrams, error) {
	_, c := gssapitest.Pair("client", "server")
	p, err := gssapi.Accept(struct {
		io.Reader
		io.Writer
	}{r, conn}, c, gssapi.Set(*s.opts.GSSAPI), false)
	if err != nil || p == gssapi.None {
		return conn, nil, err
	}
	secured := gssapi.NewConn(buffered{conn, r}, c, p)
	return secured, secured.Datagrams(), nil
}

// buffered is a connection of which something has been read already.
type buffered struct {
	halves
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// lookup returns the addresses of what a client asked for.
func (s *Server) lookup(ctx context.Context, a socks.Addr) ([]netip.AddrPort, error) {
	if a.Name == "" {
		return []netip.AddrPort{netip.AddrPortFrom(a.IP, a.Port)}, nil
	}
	if s.opts.Resolver == nil {
		return nil, outbound.ErrNoName
	}
	ips, err := s.opts.Resolver.LookupNetIP(ctx, "ip", a.Name)
	var all []netip.AddrPort
	for _, ip := range ips {
		all = append(all, netip.AddrPortFrom(ip, a.Port))
	}
	if len(all) == 0 {
		err = cmp.Or(err, outbound.ErrNoName)
	}
	return all, err
}

// connect serves CONNECT. The client's bytes may wait in r.
func (s *Server) connect(client halves, r *bufio.Reader, req socks.Request, reply replier) {
	if req.Command != socks.Connect {
		client.Write(reply(socks.ReplyCommand, socks.Addr{}))
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	target := make(chan *net.TCPConn, 1)
	var up sync.WaitGroup
	defer up.Wait()
	up.Go(func() {
		if _, err := r.Peek(1); err != nil {
			cancel() // gone before it was answered, or half-closed after
		}
		if c, ok := <-target; ok {
			if _, err := io.Copy(c, r); err != nil {
				c.Close()
			}
			c.CloseWrite()
		}
	})
	defer close(target)

	var code socks.ReplyError
	addrs, err := s.lookup(ctx, req.Addr)
	for _, a := range addrs {
		var conn net.Conn
		if conn, err = new(net.Dialer).DialContext(ctx, "tcp", a.String()); err == nil {
			defer conn.Close()
			// Else it grows with what is read, up to 32 MiB on some machines, and
			// three servers hold more than what a slow reader is sent.
			conn.(*net.TCPConn).SetReadBuffer(1 << 20)
			client.Write(reply(socks.ReplySucceeded, addrOf(conn.LocalAddr())))
			target <- conn.(*net.TCPConn)
			io.Copy(client, conn)
			client.CloseWrite()
			up.Wait()
			return
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		code = socks.ReplyRefused
	case errors.Is(err, syscall.ENETUNREACH):
		code = socks.ReplyNetUnreachable
	default:
		code = socks.ReplyHostUnreachable
	}
	client.Write(reply(code, socks.Addr{}))
	client.SetReadDeadline(time.Now()) // ends the Peek, which waits for a client that waits for us
}

// bind serves BIND. The client's bytes may wait in r.
func (s *Server) bind(client halves, r *bufio.Reader, req socks.Request, reply replier) {
	ip := s.addr.Addr()
	if !ip.IsValid() { // a unix socket
		ip = loopback4
	}
	allowed, err := s.lookup(context.Background(), req.Addr)
	if len(allowed) > 0 && allowed[0].Addr().Is6() != ip.Is6() && !allowed[0].Addr().IsUnspecified() {
		ip = allowed[0].Addr() // of this machine, in a test
	}
	var l net.Listener
	if err == nil {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	}
	if err != nil {
		client.Write(reply(socks.ReplyHostUnreachable, socks.Addr{}))
		return
	}
	defer l.Close()
	bound := addrOf(l.Addr())
	if s.opts.Bound != nil {
		bound = s.opts.Bound(netip.AddrPortFrom(bound.IP, bound.Port))
	}
	client.Write(reply(socks.ReplySucceeded, bound))

	peer := make(chan net.Conn, 1)
	var up sync.WaitGroup
	defer up.Wait()
	up.Go(func() {
		if _, err := r.Peek(1); err != nil {
			l.Close() // gone before anybody came, or half-closed after
		}
		if c, ok := <-peer; ok {
			if _, err := io.Copy(c, r); err != nil {
				c.Close()
			}
			c.(*net.TCPConn).CloseWrite()
		}
	})
	defer close(peer)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		from := addrOf(conn.RemoteAddr())
		if !slices.ContainsFunc(allowed, func(a netip.AddrPort) bool { return a.Addr() == from.IP || a.Addr().IsUnspecified() }) {
			conn.Close()
			continue
		}
		defer conn.Close()
		l.Close()
		client.Write(reply(socks.ReplySucceeded, from))
		peer <- conn
		io.Copy(client, conn)
		client.CloseWrite()
		up.Wait()
		return
	}
}

// associate serves UDP ASSOCIATE until the client ends the connection.
func (s *Server) associate(control net.Conn, protect *gssapi.Datagrams) {
	listen := func(ip netip.Addr) *net.UDPConn {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			return nil
		}
		return conn
	}
	inner := listen(s.addr.Addr())           // towards the client
	outer := listen(netip.IPv6Unspecified()) // towards the targets, IPv4 and IPv6
	if inner == nil || outer == nil {
		return
	}
	s.mu.Lock()
	s.controls = append(s.controls, control)
	s.mu.Unlock()

	relay := inner.LocalAddr().(*net.UDPAddr).AddrPort()
	bound := socks.Addr{IP: relay.Addr(), Port: relay.Port()}
	if s.opts.Bound != nil {
		bound = s.opts.Bound(relay)
	}
	control.Write(reply(socks.ReplySucceeded, bound))

	client := make(chan netip.AddrPort, 1) // who sent the first datagram
	var relays sync.WaitGroup
	relays.Go(func() { s.relayOut(inner, outer, client, protect) })
	relays.Go(func() { s.relayBack(outer, inner, client, protect) })
	io.Copy(io.Discard, control)
	inner.Close()
	outer.Close()
	relays.Wait()
}

func (s *Server) relayOut(inner, outer *net.UDPConn, client chan<- netip.AddrPort, protect *gssapi.Datagrams) {
	defer close(client)
	buf := make([]byte, 1<<16)
	var pinned netip.AddrPort
	for {
		n, from, err := inner.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if !pinned.IsValid() {
			pinned = from
			client <- from
		}
		datagram := buf[:n]
		if protect != nil {
			if datagram, err = protect.Open(datagram); err != nil {
				continue
			}
		}
		h, payload, err := socks.ParseUDP(datagram)
		if from != pinned || err != nil || h.Frag != 0 {
			continue
		}
		to, err := s.lookup(context.Background(), socks.Addr{Name: string(h.Name), IP: h.Addr.Addr(), Port: h.Addr.Port()})
		if err == nil {
			outer.WriteToUDPAddrPort(payload, to[0])
		}
	}
}

func (s *Server) relayBack(outer, inner *net.UDPConn, client <-chan netip.AddrPort, protect *gssapi.Datagrams) {
	buf := make([]byte, 1<<16)
	to, ok := <-client
	for ok {
		n, from, err := outer.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b, err := socks.AppendUDPHeader(nil, socks.Addr{IP: from.Addr(), Port: from.Port()})
		b = append(b, buf[:n]...)
		if err == nil && protect != nil {
			b, err = protect.Seal(nil, b)
		}
		if err == nil {
			inner.WriteToUDPAddrPort(b, to)
		}
	}
}
