package outboundtest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// somePort is that of a target of which only the host counts.
const somePort = 21

func (s suite) bind(t *testing.T) {
	if s.NoBind {
		d, ok := s.dialer(t).(outbound.Binder)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if b, err := d.Bind(ctx, flow.Target{Addr: loopback4, Port: somePort}); b != nil || !errors.Is(err, outbound.ErrNoBind) {
			t.Errorf("Bind: %v, %v, want an ErrNoBind", b, err)
		}
		return
	}
	t.Run("success", s.bindSuccess)
	t.Run("IPv6", s.bindIPv6)
	t.Run("half-close by the peer", s.bindHalfClose)
	t.Run("nobody else", s.bindNobodyElse)
	t.Run("end", s.bindEnd)
	t.Run("concurrent use", s.bindConcurrent)
}

// bound binds for from; what comes of it ends with the test.
func (s suite) bound(t testing.TB, d outbound.Dialer, from flow.Target) outbound.Bound {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := d.(outbound.Binder).Bind(ctx, from)
	if err != nil {
		t.Fatalf("Bind for %v: %v", from, err)
	}
	t.Cleanup(func() { b.Close() })
	if a := b.Addr(); a.Port() == 0 || !a.Addr().IsValid() || a.Addr().IsUnspecified() {
		t.Fatalf("bound at %v, to which nobody can connect", a)
	}
	return b
}

// peer connects to a from an address.
func peer(t testing.TB, from netip.Addr, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := connect(t, from, to)
	if err != nil {
		t.Fatalf("the peer connects to %v: %v", to, err)
	}
	return conn
}

func connect(t testing.TB, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: patience}
	conn, err := d.DialContext(t.Context(), "tcp", to.String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn), nil
}

// accept accepts one connection of b.
func (s suite) accept(t testing.TB, b outbound.Bound) (outbound.Conn, netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, from, err := b.Accept(ctx)
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn, from
}

// The peer connects before Accept or after, and may be named by name or by address.
// Close of the Bound does not end the connection.
func (s suite) bindSuccess(t *testing.T) {
	d := s.dialer(t)
	for _, from := range []flow.Target{
		{Addr: loopback4, Port: somePort},
		{Name: "localhost", Port: somePort},
		{Name: "localhost", Addr: loopback4, Port: somePort},
	} {
		b := s.bound(t, d, from)
		ip := loopback4
		if b.Addr().Addr().Is6() { // a server may take the other one for localhost
			ip = loopback6
		}
		far := peer(t, ip, b.Addr())
		go serveEcho(far)
		near, who := s.accept(t, b)
		if want := far.LocalAddr().(*net.TCPAddr).AddrPort(); who != want {
			t.Errorf("%v: the connection is from %v, want %v", from, who, want)
		}
		b.Close()
		if err := echo(near, "hello"); err != nil {
			t.Errorf("%v: %v", from, err)
		}
		if _, _, err := b.Accept(t.Context()); err == nil {
			t.Errorf("%v: a second connection came", from)
		}
	}
}

func (s suite) bindIPv6(t *testing.T) {
	needIPv6(t)
	d := s.dialer(t)
	from := flow.Target{Addr: loopback6, Port: somePort}
	if s.NoIPv6 {
		if b, err := d.(outbound.Binder).Bind(t.Context(), from); err == nil {
			b.Close()
			t.Errorf("Bind for %v succeeded", from)
		}
		return
	}
	b := s.bound(t, d, from)
	go serveEcho(peer(t, loopback6, b.Addr()))
	near, _ := s.accept(t, b)
	if err := echo(near, "hello"); err != nil {
		t.Error(err)
	}
}

// The peer says all that it has to say, at once and before anybody accepts; what we
// answer arrives.
func (s suite) bindHalfClose(t *testing.T) {
	if s.NoHalfClose {
		t.Skip("not kept by this server")
	}
	b := s.bound(t, s.dialer(t), flow.Target{Addr: loopback4, Port: somePort})
	far := peer(t, loopback4, b.Addr())
	io.WriteString(far, "a speech")
	far.CloseWrite()
	near, _ := s.accept(t, b)
	if got, err := io.ReadAll(near); err != nil || string(got) != "a speech" {
		t.Errorf("got %q, %v, want the speech", got, err)
	}
	io.WriteString(near, "a comment")
	near.CloseWrite()
	if got, err := io.ReadAll(far); err != nil || string(got) != "a comment" {
		t.Errorf("the peer got %q, %v, want the comment", got, err)
	}
}

// Whoever is not the peer gets nothing, and does not take the peer's place.
func (s suite) bindNobodyElse(t *testing.T) {
	b := s.bound(t, s.dialer(t), flow.Target{Addr: loopback4, Port: somePort})
	// A server that waits for the peer may reset it before it knows of being
	// connected.
	stranger, err := connect(t, netip.AddrFrom4([4]byte{127, 0, 0, 2}), b.Addr())
	type accepted struct {
		conn outbound.Conn
		err  error
	}
	result := make(chan accepted, 1)
	go func() {
		conn, _, err := b.Accept(t.Context())
		result <- accepted{conn, err}
	}()
	if err == nil {
		if n, err := stranger.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the stranger read %d bytes", n)
		}
	} else if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the stranger connects: %v", err)
	}
	if s.BindEnds {
		if r := <-result; r.err == nil {
			r.conn.Close()
			t.Error("the stranger was let in")
		}
		return
	}
	go serveEcho(peer(t, loopback4, b.Addr()))
	r := <-result
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.conn.Close()
	r.conn.SetDeadline(time.Now().Add(patience))
	if err := echo(r.conn, "hello"); err != nil {
		t.Error(err)
	}
}

// Accept ends with its context and with Close, and nobody can connect then.
func (s suite) bindEnd(t *testing.T) {
	d := s.dialer(t)
	for _, end := range []string{"context", "Close", "Close before"} {
		b := s.bound(t, d, flow.Target{Addr: loopback4, Port: somePort})
		ctx, cancel := context.WithCancel(t.Context())
		var want error
		switch end {
		case "context":
			want = context.Canceled
			time.AfterFunc(20*time.Millisecond, cancel)
		case "Close":
			want = net.ErrClosed
			time.AfterFunc(20*time.Millisecond, func() { b.Close() })
		default:
			want = net.ErrClosed
			b.Close()
		}
		conn, _, err := b.Accept(ctx)
		cancel()
		if conn != nil || !errors.Is(err, want) {
			t.Errorf("after the end by %s: %v, %v, want %v", end, conn, err, want)
		}
		gone := eventually(func() bool {
			c, err := net.Dial("tcp", b.Addr().String())
			if err == nil {
				c.Close()
			}
			return err != nil
		})
		if !gone {
			t.Errorf("after the end by %s it still listens", end)
		}
	}
}

// Each connection comes to the Bound whose address it was made to.
func (s suite) bindConcurrent(t *testing.T) {
	d := s.dialer(t).(outbound.Binder)
	one := func(ctx context.Context) error {
		b, err := d.Bind(ctx, flow.Target{Addr: loopback4, Port: somePort})
		if err != nil {
			return err
		}
		defer b.Close()
		far, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			return err
		}
		defer far.Close()
		near, _, err := b.Accept(ctx)
		if err != nil {
			return err
		}
		defer near.Close()
		near.SetDeadline(time.Now().Add(patience))
		go serveEcho(far.(*net.TCPConn))
		return echo(near, b.Addr().String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var running sync.WaitGroup
	for range 16 {
		running.Go(func() {
			if err := one(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
}
