package outbound_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/relay"
	"tunroute/router/socks"
)

// A unix socket where nobody listens is a server that cannot be reached, and says
// nothing about the target.
func TestUnixWithoutAServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	o := v5
	o.Name, o.Via = "liar", newUnix(t, path)
	conn, err := newSocks(t, o).DialTCP(t.Context(), where)
	if conn != nil {
		t.Fatal("DialTCP succeeded")
	}
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "connect", Err: os.ErrNotExist})
	if got := outbound.Errno(err); got != syscall.EHOSTUNREACH {
		t.Errorf("Errno of %q is %v, want EHOSTUNREACH", err, got)
	}
	if _, err := outbound.NewUnix("", 0); err == nil {
		t.Error("NewUnix takes an empty path")
	}
	o.Server = flow.Target{Name: "p1.test", Port: 1080}
	if _, err := outbound.NewSocks(o); err == nil {
		t.Error("NewSocks takes a unix socket that has an address too")
	}
}

// Neither a unix socket nor TLS carries UDP, and no server is asked.
func TestNoUDPBesideTheTransport(t *testing.T) {
	config, trust := serverTLS(t)
	local := outboundtest.StartServer(t, outboundtest.ServerOptions{Unix: true})
	secure := outboundtest.StartServer(t, outboundtest.ServerOptions{TLS: config})
	plain := outboundtest.StartServer(t, outboundtest.ServerOptions{})

	unix := newSocks(t, outbound.SocksOptions{Name: "unix", Version: socks.Version5, Via: newUnix(t, local.Path())})
	overTLS := newSocks(t, outbound.SocksOptions{
		Name: "tls", Version: socks.Version5, Server: secure.Target(), Via: newDirect(t, nil), TLS: &tls.Config{RootCAs: trust},
	})
	for _, first := range []*outbound.Socks{unix, overTLS} {
		name := first.Hops()[0]
		behind := newSocks(t, link{scheme: "socks5"}.options("behind", plain.Target(), first, nil))
		for hops, d := range []*outbound.Socks{first, behind} {
			conn, err := d.OpenUDP(t.Context())
			if conn != nil {
				t.Fatalf("OpenUDP of %v succeeded", d.Hops())
			}
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: hops + 1, Upstream: name, Op: "request", Err: outbound.ErrNoUDP})
		}
	}
	for _, server := range []*outboundtest.Server{local, secure, plain} {
		if got := server.Requests(); len(got) != 0 {
			t.Errorf("a server was asked for %v", got)
		}
	}
}

// secured returns the outbound to a server over TLS that is at an address.
func secured(t *testing.T, server flow.Target, config *tls.Config) *outbound.Socks {
	t.Helper()
	o := v5
	o.Name, o.Server, o.Via, o.TLS = "liar", server, newDirect(t, outboundtest.Names{"localhost": {loopback}}), config
	o.Negotiate = never
	return newSocks(t, o)
}

// Who is not who the URL says is not spoken to: no greeting, no password, no target.
func TestTLSVerifies(t *testing.T) {
	config, trust := serverTLS(t) // for the loopback addresses and localhost
	_, stranger := serverTLS(t)
	var unknown x509.UnknownAuthorityError
	var misnamed x509.HostnameError
	at := func(server *outboundtest.Server, name string) flow.Target {
		if name == "" {
			return server.Target()
		}
		return flow.Target{Name: name, Port: server.Target().Port}
	}
	tests := []struct {
		name   string
		host   string // "" is the address
		config *tls.Config
		as     any // what the error is; nil for success
	}{
		{"by address", "", &tls.Config{RootCAs: trust}, nil},
		{"by name", "localhost", &tls.Config{RootCAs: trust}, nil},
		{"by another name", "", &tls.Config{RootCAs: trust, ServerName: "localhost"}, nil},
		{"not by another name that it does not have", "", &tls.Config{RootCAs: trust, ServerName: "p1.test"}, &misnamed},
		{"not by the system", "", &tls.Config{}, &unknown},
		{"not by another authority", "", &tls.Config{RootCAs: stranger}, &unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := outboundtest.StartServer(t, outboundtest.ServerOptions{TLS: config})
			target := flow.AddrTarget(outboundtest.Serve(t, loopback, hangUp))
			conn, err := secured(t, at(server, tt.host), tt.config).DialTCP(t.Context(), target)
			if tt.as == nil {
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
				return
			}
			if conn != nil || !errors.As(err, tt.as) {
				t.Fatalf("got %v, %v, want a %T", conn, err, tt.as)
			}
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "handshake", Err: err.(*outbound.HopError).Err})
			if got := outbound.Errno(err); got != syscall.EHOSTUNREACH {
				t.Errorf("Errno of %q is %v, want EHOSTUNREACH", err, got)
			}
			if got := server.Requests(); len(got) != 0 {
				t.Errorf("the server was asked for %v", got)
			}
		})
	}
}

// Servers that do not finish the handshake: one without TLS, one that hangs up, one
// that is silent, and a dial that is given up meanwhile.
func TestTLSHandshakeFails(t *testing.T) {
	plain := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	var record tls.RecordHeaderError
	_, err := secured(t, flow.AddrTarget(outboundtest.Serve(t, loopback, say(wait, one("\x05\xff\x05\xff\x05")))), &tls.Config{}).DialTCP(t.Context(), where)
	if !errors.As(err, &record) {
		t.Errorf("a server without TLS: %v, want a RecordHeaderError", err)
	}
	_, err = secured(t, plain.Target(), &tls.Config{}).DialTCP(t.Context(), where)
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "handshake", Err: io.EOF})

	mute := flow.AddrTarget(outboundtest.Serve(t, loopback, wait))
	o := v5
	o.Name, o.Server, o.Via, o.TLS, o.Negotiate = "liar", mute, newDirect(t, nil), &tls.Config{}, 50*time.Millisecond
	_, err = newSocks(t, o).DialTCP(t.Context(), where)
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "handshake", Err: os.ErrDeadlineExceeded})

	ctx, cancel := context.WithCancelCause(t.Context())
	greeted := flow.AddrTarget(outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		cancel(errors.New("the client left"))
		wait(c)
	}))
	_, err = secured(t, greeted, &tls.Config{}).DialTCP(ctx, where)
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "handshake", Err: context.Cause(ctx)})
}

// scriptedTLS returns a connection through a server over TLS that grants one
// request and then does what end says.
func scriptedTLS(t *testing.T, end func(*tls.Conn, *net.TCPConn)) outbound.Conn {
	t.Helper()
	config, trust := serverTLS(t)
	at := outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		s := tls.Server(c, config)
		buf := make([]byte, 1024)
		for _, answer := range []string{takesNone, granted} {
			if _, err := s.Read(buf); err != nil {
				return
			}
			io.WriteString(s, answer)
		}
		end(s, c)
	})
	conn := must(secured(t, flow.AddrTarget(at), &tls.Config{RootCAs: trust}).DialTCP(t.Context(), where))(t)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// What of a server's end is an end, and what is a connection that broke.
func TestTLSEnds(t *testing.T) {
	const speech = "a speech"
	for _, tt := range []struct {
		name string
		end  func(*tls.Conn, *net.TCPConn)
		err  error
	}{
		{"close_notify", func(s *tls.Conn, _ *net.TCPConn) { s.Close() }, nil},
		{"FIN", func(_ *tls.Conn, c *net.TCPConn) { c.CloseWrite(); wait(c) }, nil},
		{"FIN within a record", func(_ *tls.Conn, c *net.TCPConn) { io.WriteString(c, "\x17\x03\x03"); c.CloseWrite(); wait(c) }, io.ErrUnexpectedEOF},
		{"RST", func(_ *tls.Conn, c *net.TCPConn) { c.Read(make([]byte, 64)); c.SetLinger(0); c.Close() }, syscall.ECONNRESET},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := scriptedTLS(t, func(s *tls.Conn, c *net.TCPConn) {
				io.WriteString(s, speech)
				tt.end(s, c)
			})
			if _, err := io.ReadFull(conn, make([]byte, len(speech))); err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "for a server that has to read before it resets")
			if n, err := conn.Read(make([]byte, 1)); n != 0 || tt.err == nil && err != io.EOF || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("got %d bytes, %v, want %v", n, err, tt.err)
			}
		})
	}
}

// A flow that breaks is a RST for the server, without the close_notify that says
// that all has come.
func TestTLSReset(t *testing.T) {
	ended := make(chan error, 1)
	conn := scriptedTLS(t, func(s *tls.Conn, _ *net.TCPConn) {
		_, err := s.Read(make([]byte, 1))
		ended <- err
	})
	relay.Reset(conn)
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server saw %v, want ECONNRESET", err)
		}
	case <-time.After(soonEnough):
		t.Error("the server saw nothing")
	}
}

// The second flow makes no whole handshake.
func TestTLSSessionIsResumed(t *testing.T) {
	config, trust := serverTLS(t)
	resumed := make(chan bool, 2)
	at := outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		s := tls.Server(c, config)
		buf := make([]byte, 1024)
		for _, answer := range []string{takesNone, granted} {
			if _, err := s.Read(buf); err != nil {
				return
			}
			io.WriteString(s, answer)
		}
		resumed <- s.ConnectionState().DidResume
		io.Copy(io.Discard, s)
	})
	d := secured(t, flow.AddrTarget(at), &tls.Config{RootCAs: trust})
	for _, want := range []bool{false, true} {
		conn := must(d.DialTCP(t.Context(), where))(t)
		conn.Close()
		if got := <-resumed; got != want {
			t.Errorf("resumed: %v, want %v", got, want)
		}
	}
}
