package stack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

func TestNewChecks(t *testing.T) {
	for _, row := range []struct {
		o    stack.Options
		want string
	}{
		{stack.Options{Handler: &handler{}}, "required"},
		{stack.Options{Device: stacktest.NewWire(1500)}, "required"},
		{stack.Options{Device: stacktest.NewWire(1279), Handler: &handler{}}, "1279"},
		{stack.Options{Device: stacktest.NewWire(65536), Handler: &handler{}}, "65536"},
	} {
		if _, err := stack.New(row.o); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("New: %v, want an error with %q", err, row.want)
		}
	}
}

// TestRunEnds: with open flows in every state, Run returns when ctx ends, all
// that waits is woken, and the clients are reset. TestMain sees what is left.
func TestRunEnds(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		var handlers sync.WaitGroup
		reading, undecided, outlives := make(chan struct{}), make(chan struct{}), make(chan struct{})
		h := &handler{tcp: func(ctx context.Context, r *stack.TCPRequest) {
			handlers.Add(1)
			defer handlers.Done()
			switch r.Destination().Port() {
			case 1: // a relay
				c, err := r.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				close(reading)
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("Read of a flow that was cut: %v", err)
				}
			case 2: // a dial that lasts
				close(undecided)
				<-ctx.Done()
				if _, err := r.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept after the end: %v, want net.ErrClosed", err)
				}
			case 3: // a Conn that outlives its handler
				c, err := r.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				close(outlives)
				handlers.Go(func() {
					defer c.Close()
					if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
						t.Errorf("Read of a flow that was cut: %v", err)
					}
				})
			}
		}}
		host := stacktest.NewHost(1500)
		defer host.Close()
		s, stop := start(t, stack.Options{Device: host.Device(), Handler: h}, nil)
		to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(fam.server.Addr(), port) }

		client, err := host.DialTCP(within(t), netip.AddrPort{}, to(1))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		<-reading
		errs := make(chan error, 1)
		go func() {
			_, err := host.DialTCP(within(t), netip.AddrPort{}, to(2))
			errs <- err
		}()
		<-undecided
		other, err := host.DialTCP(within(t), netip.AddrPort{}, to(3))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		<-outlives

		stop()
		// The flows are idle: netstack's RST to a client whose window is full
		// can miss it, as netstack as a client shrinks its window by rounding.
		for _, c := range []*stacktest.Conn{client, other} {
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("client reads %v, want ECONNRESET", err)
			}
		}
		if err := receive(t, "end of dial", errs); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v, want ECONNREFUSED", err)
		}
		handlers.Wait()
		if st := s.Stats(); st.HalfOpen != 0 || st.Established != 0 {
			t.Errorf("%d half-open, %d established after the end", st.HalfOpen, st.Established)
		}
		if err := s.WriteUDP(nil, to(1), netip.AddrPortFrom(fam.client.Addr(), 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("WriteUDP after the end: %v, want net.ErrClosed", err)
		}
	})
}

// TestRunEndsHandshake: an Accept whose client is gone does not hold Run.
func TestRunEndsHandshake(t *testing.T) {
	fam := families()[0]
	errs := make(chan error, 1)
	w := stacktest.NewWire(1500)
	_, stop := start(t, stack.Options{Device: w, Handler: accept(nil, errs)}, nil)
	send(t, w, fam.segment(stacktest.SYN, 1, 0, ""))
	nextTCP(t, w, fam)
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > stack.HandshakeTimeout*9/10 {
		t.Errorf("Run took %s to end", took)
	}
	if err := receive(t, "end of Accept", errs); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
}

// TestRunEndsAfterMalformedSYN: a SYN that became no attempt is not waited for.
func TestRunEndsAfterMalformedSYN(t *testing.T) {
	fam := families()[0]
	w := stacktest.NewWire(1500)
	_, stop := start(t, stack.Options{Device: w, Handler: &handler{}}, nil)
	wrongSum := fam.segment(stacktest.SYN, 1, 0, "")
	wrongSum[len(wrongSum)-4] ^= 1
	send(t, w, wrongSum)
	silent(t, w, fam)
	stop()
}

// TestRunEndsUnderFire: SYNs, datagrams and WriteUDP do not stop while Run ends.
func TestRunEndsUnderFire(t *testing.T) {
	fam := families()[0]
	for range 20 {
		var running atomic.Pointer[stack.Stack]
		h := &handler{
			tcp: func(_ context.Context, r *stack.TCPRequest) {
				if c, err := r.Accept(); err == nil {
					c.Close()
				}
			},
			udp: echoUDP(&running).udp,
		}
		w := stacktest.NewWire(1500)
		s, stop := start(t, stack.Options{Device: w, Handler: h}, nil)
		running.Store(s)
		var fire sync.WaitGroup
		fire.Go(func() {
			for port := uint16(1); ; port++ {
				src := netip.AddrPortFrom(fam.client.Addr(), port|1)
				if w.Send(stacktest.Segment{Src: src, Dst: fam.server, Flags: stacktest.SYN}.Packet()) != nil ||
					w.Send(stacktest.Datagram(src, fam.server, nil)) != nil {
					return
				}
			}
		})
		fire.Go(func() {
			for s.WriteUDP(make([]byte, 4000), fam.server, fam.client) == nil {
			}
		})
		packets := make(chan struct{}, 1000)
		fire.Go(func() {
			for {
				if _, err := w.Recv(context.Background()); err != nil {
					return
				}
				select {
				case packets <- struct{}{}:
				default:
				}
			}
		})
		for range 1000 {
			receive(t, "packet", packets)
		}
		stop()
		fire.Wait()
	}
}

// TestRunEndsWithStuckDevice: a device that takes no packets any more holds Run
// for a moment, not for ever.
func TestRunEndsWithStuckDevice(t *testing.T) {
	fam := families()[0]
	w := stacktest.NewWire(1500)
	conns := make(chan *stack.Conn, 1)
	s, stop := start(t, stack.Options{Device: w, Handler: accept(conns, nil)}, nil)
	handshake(t, w, fam, 1)
	c := receive(t, "connection", conns)
	defer c.Close()
	// From here on nobody reads.
	var writers sync.WaitGroup
	var written atomic.Int64
	for range 2 {
		writers.Go(func() {
			for s.WriteUDP([]byte("x"), fam.server, fam.client) == nil {
				written.Add(1)
			}
		})
	}
	last := int64(-1)
	eventually(t, "the device is full", func() bool {
		n := written.Load()
		full := n > 0 && n == last
		last = n
		return full
	})
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > stack.Goodbye+patience/2 {
		t.Errorf("Run took %s to end", took)
	}
	writers.Wait()
}

// failing is a device that can be made to fail.
type failing struct {
	*stacktest.Wire
	err atomic.Pointer[error]
}

func (f *failing) fail(err error) {
	f.err.Store(&err)
	f.Wire.Close()
}

func (f *failing) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := f.Wire.Read(bufs, sizes, offset)
	if e := f.err.Load(); err != nil && e != nil {
		err = *e
	}
	return n, err
}

func TestDeviceFailureEndsRun(t *testing.T) {
	fam := families()[0]
	device := &failing{Wire: stacktest.NewWire(1500)}
	conns := make(chan *stack.Conn, 1)
	s, err := stack.New(stack.Options{Device: device, Handler: accept(conns, nil)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteUDP(nil, fam.server, fam.client); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WriteUDP before Run: %v, want net.ErrClosed", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }()
	handshake(t, device.Wire, fam, 1)
	c := receive(t, "connection", conns)
	gone := errors.New("device is gone")
	device.fail(gone)
	if err := receive(t, "end of Run", ended); !errors.Is(err, gone) {
		t.Errorf("Run: %v, want %v", err, gone)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("Read after the end: %v, want an error", err)
	}
	c.Close()
}

// TestUnknownPackets: what is neither IPv4 nor IPv6 is counted, what netstack
// knows no protocol for is refused, and nothing comes of either.
func TestUnknownPackets(t *testing.T) {
	fam := families()[0]
	w, s := onWire(t, &handler{}, stack.Options{}, nil)
	send(t, w, nil, []byte{0}, []byte{0x50, 1, 2}, []byte{0x45}, []byte{0x60}, make([]byte, 1500))
	silent(t, w, fam)
	if st := s.Stats(); st.BadPackets != 4 || st.PacketsIn != 7 {
		t.Errorf("%d bad of %d packets, want 4 of 7", st.BadPackets, st.PacketsIn)
	}
	eventually(t, "the answer is counted", func() bool { return s.Stats().PacketsOut == 1 })
}
