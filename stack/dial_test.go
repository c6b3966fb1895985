package stack_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// dial runs DialTCP from fam's server to its client.
func dial(ctx context.Context, s *stack.Stack, fam family) (<-chan *stack.Conn, <-chan error) {
	conns, errs := make(chan *stack.Conn, 1), make(chan error, 1)
	go func() {
		c, err := s.DialTCP(ctx, fam.server, fam.client)
		if err != nil {
			errs <- err
			return
		}
		conns <- c
	}()
	return conns, errs
}

// TestDialHandshake: what goes out is as if the remote had sent it, and data flows
// both ways.
func TestDialHandshake(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		w, s := onWire(t, &handler{}, stack.Options{}, faketime.NewManualClock())
		conns, errs := dial(t.Context(), s, fam)
		syn := nextTCP(t, w, fam)
		if syn.Flags() != header.TCPFlagSyn {
			t.Fatalf("got %s, want a SYN", syn.Flags())
		}
		send(t, w, fam.segment(stacktest.SYN|stacktest.ACK, 100, syn.SequenceNumber()+1, ""))
		var c *stack.Conn
		select {
		case c = <-conns:
		case err := <-errs:
			t.Fatal(err)
		}
		if got, want := fmt.Sprint(c.RemoteAddr(), c.LocalAddr()), fmt.Sprint(fam.client, fam.server); got != want {
			t.Errorf("connection between %s, want %s", got, want)
		}
		if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagAck || h.AckNumber() != 101 {
			t.Errorf("got %s ack %d, want ACK of 101", h.Flags(), h.AckNumber())
		}
		send(t, w, fam.segment(stacktest.ACK|stacktest.PSH, 101, syn.SequenceNumber()+1, "STOR"))
		b := make([]byte, 16)
		if n, err := c.Read(b); string(b[:n]) != "STOR" || err != nil {
			t.Errorf("Read: %q, %v", b[:n], err)
		}
		c.Reset()
		for {
			if h := nextTCP(t, w, fam); h.Flags().Contains(header.TCPFlagRst) {
				break
			}
		}
	})
}

// TestDialFails: each answer of the client's machine is the errno that connect(2) would
// have, and nothing is left.
func TestDialFails(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		for name, row := range map[string]struct {
			answer func(t *testing.T, w *stacktest.Wire, syn header.TCP, cancel func(), clock *faketime.ManualClock)
			want   error
		}{
			"RST": {func(t *testing.T, w *stacktest.Wire, syn header.TCP, _ func(), _ *faketime.ManualClock) {
				send(t, w, fam.segment(stacktest.RST|stacktest.ACK, 0, syn.SequenceNumber()+1, ""))
			}, syscall.ECONNREFUSED},
			"silence": {func(_ *testing.T, _ *stacktest.Wire, _ header.TCP, _ func(), clock *faketime.ManualClock) {
				clock.Advance(stack.HandshakeTimeout)
			}, syscall.ETIMEDOUT},
			"cancel": {func(_ *testing.T, _ *stacktest.Wire, _ header.TCP, cancel func(), _ *faketime.ManualClock) {
				cancel()
			}, context.Canceled},
		} {
			t.Run(name, func(t *testing.T) {
				clock := faketime.NewManualClock()
				w, s := onWire(t, &handler{}, stack.Options{}, clock)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				conns, errs := dial(ctx, s, fam)
				syn := nextTCP(t, w, fam)
				row.answer(t, w, syn, cancel, clock)
				select {
				case <-conns:
					t.Fatal("DialTCP succeeded")
				case err := <-errs:
					if !errors.Is(err, row.want) {
						t.Errorf("DialTCP: %v, want %v", err, row.want)
					}
				}
				eventually(t, "nothing is left", func() bool { return s.Endpoints() == 0 })
			})
		}
	})
}

// TestDialHost: from one address and port to many ports of a client, at once, and never
// twice to the same one.
func TestDialHost(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		host, s := onHost(t, &handler{})
		from := netip.AddrPortFrom(fam.server.Addr(), 20)
		at := host.Addr4()
		if !fam.is4() {
			at = host.Addr6()
		}
		for port := uint16(5000); port < 5010; port++ {
			to := netip.AddrPortFrom(at, port)
			l, err := host.ListenTCP(to)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := s.DialTCP(within(t), from, to)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			there, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer there.Close()
			if got := there.RemoteAddr().String(); got != from.String() {
				t.Errorf("the client sees %s, want %s", got, from)
			}
			if _, err := s.DialTCP(within(t), from, to); !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("a second connection of the same addresses: %v", err)
			}
			other, err := s.DialTCP(within(t), netip.AddrPortFrom(from.Addr(), 0), to)
			if err != nil {
				t.Errorf("from a port that is free: %v", err)
				continue
			}
			if local := other.LocalAddr().(*net.TCPAddr); local.Port == 0 || local.Port == 20 {
				t.Errorf("from port %d", local.Port)
			}
			other.Close()
			text := to.String()
			go func() {
				io.WriteString(c, text)
				c.CloseWrite()
			}()
			if got, err := io.ReadAll(there); string(got) != text || err != nil {
				t.Errorf("read %q, %v, want %q", got, err, text)
			}
		}
		if _, err := s.DialTCP(within(t), from, netip.AddrPortFrom(at, 4999)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("to a closed port: %v", err)
		}
	})
}

// TestDialChecks: what no packet can have is refused, and so is a stack that has ended.
func TestDialChecks(t *testing.T) {
	host, s := onHost(t, &handler{})
	four, six := families()[0], families()[1]
	for _, row := range [][2]netip.AddrPort{
		{four.server, six.client},
		{netip.AddrPort{}, four.client},
		{four.server, netip.AddrPort{}},
		{four.server, netip.AddrPortFrom(host.Addr4(), 0)},
		{four.server, netip.MustParseAddrPort("224.0.0.1:80")},
		{netip.MustParseAddrPort("0.0.0.0:20"), four.client},
	} {
		if _, err := s.DialTCP(within(t), row[0], row[1]); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("from %v to %v: %v, want EINVAL", row[0], row[1], err)
		}
	}
}

// TestDialBeforeRun: who is early waits.
func TestDialBeforeRun(t *testing.T) {
	fam := families()[0]
	w := stacktest.NewWire(1500)
	s, err := stack.New(stack.Options{Device: w, Handler: &handler{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	conns, errs := dial(ctx, s, fam)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	nextTCP(t, w, fam)
	cancel()
	select {
	case <-conns:
		t.Error("DialTCP succeeded")
	case <-errs:
	}
	if err := receive(t, "Run returns", ended); err != nil {
		t.Error(err)
	}
}

// TestDialEnds: the end of the stack ends an attempt, and admits no other.
func TestDialEnds(t *testing.T) {
	fam := families()[0]
	w := stacktest.NewWire(1500)
	s, stop := start(t, stack.Options{Device: w, Handler: &handler{}}, nil)
	_, errs := dial(t.Context(), s, fam)
	nextTCP(t, w, fam)
	stop()
	if err := receive(t, "end of DialTCP", errs); err == nil {
		t.Error("DialTCP succeeded")
	}
	if _, err := s.DialTCP(t.Context(), fam.server, fam.client); !errors.Is(err, net.ErrClosed) {
		t.Errorf("DialTCP after the end: %v, want net.ErrClosed", err)
	}
}
