package stack_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// accept is a handler that accepts and hands over what it got.
func accept(conns chan<- *stack.Conn, errs chan<- error) *handler {
	return &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			errs <- err
			return
		}
		conns <- c
	}}
}

// TestAcceptSendsSYNACK: nothing is answered before Accept, and retransmissions
// meanwhile are absorbed.
func TestAcceptSendsSYNACK(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		requests, conns := make(chan *stack.TCPRequest), make(chan *stack.Conn, 1)
		goOn := make(chan struct{})
		w, s := onWire(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
			requests <- r
			<-goOn
			c, err := r.Accept()
			if err != nil {
				t.Error(err)
			}
			conns <- c
		}}, stack.Options{}, faketime.NewManualClock())

		syn := fam.segment(stacktest.SYN, 100, 0, "")
		send(t, w, syn)
		receive(t, "request", requests)
		send(t, w, syn, syn)
		silent(t, w, fam)
		if n := s.Stats().HalfOpen; n != 1 {
			t.Errorf("%d attempts half-open, want 1", n)
		}
		select {
		case <-requests:
			t.Fatal("a retransmission became an attempt")
		default:
		}

		close(goOn)
		h := nextTCP(t, w, fam)
		if h.Flags() != header.TCPFlagSyn|header.TCPFlagAck || h.AckNumber() != 101 {
			t.Fatalf("got %s ack %d, want SYN-ACK of 101", h.Flags(), h.AckNumber())
		}
		send(t, w, fam.segment(stacktest.ACK, 101, h.SequenceNumber()+1, ""))
		c := receive(t, "connection", conns)
		eventually(t, "the attempt is over", func() bool { return s.Stats().HalfOpen == 0 })
		if n := s.Stats().Established; n != 1 {
			t.Errorf("%d connections established, want 1", n)
		}
		if got, want := fmt.Sprint(c.RemoteAddr(), c.LocalAddr()), fmt.Sprint(fam.client, fam.server); got != want {
			t.Errorf("connection between %s, want %s", got, want)
		}

		// The data flows in the sequence that was agreed.
		send(t, w, fam.segment(stacktest.ACK|stacktest.PSH, 101, h.SequenceNumber()+1, "ping"))
		b := make([]byte, 16)
		if n, err := c.Read(b); string(b[:n]) != "ping" || err != nil {
			t.Errorf("Read: %q, %v", b[:n], err)
		}
		c.Reset()
		for range 2 { // an ACK of the data may come before
			if h = nextTCP(t, w, fam); h.Flags().Contains(header.TCPFlagRst) {
				break
			}
		}
		if !h.Flags().Contains(header.TCPFlagRst) {
			t.Errorf("got %s, want a RST", h.Flags())
		}
		if n := s.Stats().Established; n != 0 {
			t.Errorf("%d connections established after Reset, want 0", n)
		}
	})
}

// TestRetransmissionAfterSilence: the SYN that follows an attempt which had no
// answer is an attempt of its own.
func TestRetransmissionAfterSilence(t *testing.T) {
	fam := families()[0]
	answers := make(chan func(*stack.TCPRequest), 1)
	w, s := onWire(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) { (<-answers)(r) }}, stack.Options{}, nil)
	syn := fam.segment(stacktest.SYN, 7, 0, "")

	answers <- func(r *stack.TCPRequest) { r.Refuse(0) }
	send(t, w, syn)
	eventually(t, "the first attempt is over", func() bool { return len(answers) == 0 && s.Stats().HalfOpen == 0 })
	answers <- func(r *stack.TCPRequest) { r.Refuse(syscall.ECONNREFUSED) }
	send(t, w, syn)
	if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagRst|header.TCPFlagAck || h.AckNumber() != 8 {
		t.Errorf("got %s ack %d, want RST-ACK of 8", h.Flags(), h.AckNumber())
	}
}

// TestHandshakeEnds: a client that is gone after its SYN holds Accept for
// HandshakeTimeout, in which it is asked four times.
func TestHandshakeEnds(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		clock := faketime.NewManualClock()
		errs := make(chan error, 1)
		w, s := onWire(t, accept(nil, errs), stack.Options{}, clock)
		send(t, w, fam.segment(stacktest.SYN, 1, 0, ""))
		for passed, asked := 0, 0; ; passed++ {
			if passed == 0 || passed == 1 || passed == 3 || passed == 7 {
				if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagSyn|header.TCPFlagAck {
					t.Fatalf("got %s after %d s, want a SYN-ACK", h.Flags(), passed)
				}
				asked++
			}
			if passed == 9 {
				if s.Stats().HalfOpen != 1 || len(errs) != 0 {
					t.Fatal("given up before its time")
				}
			}
			if passed == int(stack.HandshakeTimeout.Seconds()) {
				break
			}
			clock.Advance(1e9)
		}
		if err := receive(t, "end of Accept", errs); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("Accept: %v, want ETIMEDOUT", err)
		}
		eventually(t, "nothing is left", func() bool { return s.Stats().HalfOpen == 0 && s.Endpoints() == 0 })
		silent(t, w, fam)
	})
}

func TestClientRefusesSYNACK(t *testing.T) {
	fam := families()[0]
	errs := make(chan error, 1)
	w, s := onWire(t, accept(nil, errs), stack.Options{}, nil)
	send(t, w, fam.segment(stacktest.SYN, 1, 0, ""))
	nextTCP(t, w, fam)
	send(t, w, fam.segment(stacktest.RST, 2, 0, ""))
	if err := receive(t, "end of Accept", errs); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Accept: %v, want ECONNRESET", err)
	}
	eventually(t, "nothing is left", func() bool { return s.Stats().HalfOpen == 0 && s.Endpoints() == 0 })
}

func TestHalfOpenLimits(t *testing.T) {
	source := func(host byte, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, host}), port)
	}
	fam := families()[0]
	served := make(chan netip.AddrPort, 8)
	release := make(chan struct{})
	w, s := onWire(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
		served <- r.Source()
		<-release
		r.Refuse(0)
	}}, stack.Options{HalfOpen: 3, HalfOpenPerSource: 2}, nil)
	try := func(from netip.AddrPort, isAdmitted bool) {
		t.Helper()
		before := s.Stats().HalfOpenDropped
		send(t, w, stacktest.Segment{Src: from, Dst: fam.server, Flags: stacktest.SYN}.Packet())
		if isAdmitted {
			if got := receive(t, "attempt", served); got != from {
				t.Fatalf("attempt of %s, want %s", got, from)
			}
			return
		}
		silent(t, w, fam) // the SYN has been read
		if got := s.Stats().HalfOpenDropped - before; got != 1 {
			t.Errorf("SYN of %s: %d dropped, want 1", from, got)
		}
	}
	try(source(2, 1), true)
	try(source(2, 2), true)
	try(source(2, 3), false) // per source
	try(source(3, 1), true)
	try(source(4, 1), false) // in all
	if n := s.Stats().HalfOpen; n != 3 {
		t.Errorf("%d attempts half-open, want 3", n)
	}
	for range 3 {
		release <- struct{}{}
	}
	eventually(t, "all attempts are over", func() bool { return s.Stats().HalfOpen == 0 })
	try(source(2, 3), true)
	try(source(2, 4), true)
	try(source(2, 5), false)
	try(source(4, 1), true)
	close(release)
}

// serverCloses brings a connection into TIME-WAIT on the stack's side. It returns
// the last ACK that the client had, and the client's FIN.
func serverCloses(t testing.TB, w *stacktest.Wire, fam family, conns <-chan *stack.Conn, isn uint32) (lastACK header.TCP, fin []byte) {
	t.Helper()
	seq := handshake(t, w, fam, isn)
	c := receive(t, "connection", conns)
	c.Close()
	if h := nextTCP(t, w, fam); !h.Flags().Contains(header.TCPFlagFin) || h.SequenceNumber() != seq+1 {
		t.Fatalf("got %s seq %d, want FIN %d", h.Flags(), h.SequenceNumber(), seq+1)
	}
	fin = fam.segment(stacktest.FIN|stacktest.ACK, isn+1, seq+2, "")
	send(t, w, fin)
	lastACK = nextTCP(t, w, fam)
	if lastACK.Flags() != header.TCPFlagAck || lastACK.AckNumber() != isn+2 {
		t.Fatalf("got %s ack %d, want ACK of the FIN, %d", lastACK.Flags(), lastACK.AckNumber(), isn+2)
	}
	return lastACK, fin
}

// TestTimeWaitGivesWay: a client whose connection we have closed first is free to
// use its port again at once. The new connection must not notice the old one, not
// when the old one's time is over, either.
func TestTimeWaitGivesWay(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		clock := faketime.NewManualClock()
		conns := make(chan *stack.Conn, 1)
		w, s := onWire(t, accept(conns, nil), stack.Options{}, clock)

		lastACK, fin := serverCloses(t, w, fam, conns, 1000)
		// The last ACK is lost, the client sends its FIN again.
		send(t, w, fin)
		if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagAck || h.AckNumber() != lastACK.AckNumber() {
			t.Fatalf("got %s ack %d for a late FIN, want ACK %d", h.Flags(), h.AckNumber(), lastACK.AckNumber())
		}

		const rounds = 50
		isn := uint32(5000)
		for range rounds {
			serverCloses(t, w, fam, conns, isn)
			isn += 1000
		}
		seq := handshake(t, w, fam, isn)
		c := receive(t, "connection", conns)
		defer c.Close()
		if n := s.Stats().Recycled; n != rounds+1 {
			t.Errorf("Recycled counts %d, want %d", n, rounds+1)
		}
		clock.Advance(2 * stack.TimeWait)
		eventually(t, "the old connections are gone", func() bool { return s.Stats().Established == 1 })
		if n := s.Endpoints(); n != 1 {
			t.Errorf("%d endpoints, want 1", n)
		}
		send(t, w, fam.segment(stacktest.ACK|stacktest.PSH, isn+1, seq+1, "new"))
		b := make([]byte, 16)
		if n, err := c.Read(b); string(b[:n]) != "new" || err != nil {
			t.Errorf("Read: %q, %v", b[:n], err)
		}
	})
}

// TestOpenConnectionDoesNotGiveWay: only TIME-WAIT does. A SYN for the four-tuple
// of a living connection is challenged (RFC 5961 §4).
func TestOpenConnectionDoesNotGiveWay(t *testing.T) {
	fam := families()[0]
	conns := make(chan *stack.Conn, 1)
	w, s := onWire(t, accept(conns, nil), stack.Options{}, faketime.NewManualClock())
	seq := handshake(t, w, fam, 1000)
	c := receive(t, "connection", conns)
	defer c.Close()
	send(t, w, fam.segment(stacktest.SYN, 9000, 0, ""))
	if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagAck || h.AckNumber() != 1001 || h.SequenceNumber() != seq+1 {
		t.Errorf("got %s seq %d ack %d, want the challenge ACK %d, %d", h.Flags(), h.SequenceNumber(), h.AckNumber(), seq+1, 1001)
	}
	if st := s.Stats(); st.Recycled != 0 || st.Established != 1 {
		t.Errorf("recycled %d, established %d, want 0 and 1", st.Recycled, st.Established)
	}
}

// TestBeforeDeliverAllocates nothing for what it lets pass.
func TestBeforeDeliverAllocates(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	_, s := onWire(t, &handler{}, stack.Options{}, nil)
	for _, fam := range families() {
		for name, p := range map[string][]byte{
			"SYN":      fam.segment(stacktest.SYN, 1, 0, ""),
			"data":     fam.segment(stacktest.ACK, 1, 0, "data"),
			"datagram": stacktest.Datagram(fam.client, fam.server, nil),
		} {
			if n := testing.AllocsPerRun(1000, func() { s.BeforeDeliver(p) }); n != 0 {
				t.Errorf("%s, %s: %v allocations, want 0", fam.name, name, n)
			}
		}
	}
}

// TestCloseEnds: what was written before Close does not wait for ever for a client
// that keeps its window shut, though it answers.
func TestCloseEnds(t *testing.T) {
	fam := families()[0]
	clock := faketime.NewManualClock()
	conns := make(chan *stack.Conn, 1)
	w, s := onWire(t, accept(conns, nil), stack.Options{}, clock)
	handshake(t, w, fam, 1000)
	c := receive(t, "connection", conns)
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.Close()

	// The client takes what is in flight and shuts its window.
	var got uint32
	shut := func(h header.TCP) {
		end := h.SequenceNumber() + uint32(len(h.Payload()))
		if got == 0 || int32(end-got) > 0 {
			got = end
		}
		send(t, w, stacktest.Segment{Src: fam.client, Dst: fam.server, Flags: stacktest.ACK, Seq: 1001, Ack: got}.Packet())
	}
	var passed int
	for ; s.Stats().Established != 0; passed++ {
		if passed > 10*int(stack.CloseTimeout.Seconds()) {
			t.Fatalf("still there after %d s", passed)
		}
		clock.Advance(1e9)
		// All that the second brought is answered before the next begins:
		// the echo reply comes after it.
		send(t, w, stacktest.Echo(fam.client.Addr(), fam.server.Addr(), 1, 1, nil))
		for {
			p := next(t, w)
			if p.proto != header.TCPProtocolNumber {
				break
			}
			shut(header.TCP(p.rest))
		}
	}
	if passed < int(stack.CloseTimeout.Seconds()) {
		t.Errorf("given up after %d s, want at least %s", passed, stack.CloseTimeout)
	}
	eventually(t, "nothing is left", func() bool { return s.Endpoints() == 0 })
}

// TestKeepalive: a client that is gone without a word is noticed after 60 s of
// silence and 8 questions, 15 s apart.
func TestKeepalive(t *testing.T) {
	fam := families()[0]
	clock := faketime.NewManualClock()
	conns := make(chan *stack.Conn, 1)
	w, _ := onWire(t, accept(conns, nil), stack.Options{}, clock)
	handshake(t, w, fam, 1000)
	c := receive(t, "connection", conns)
	defer c.Close()
	errs := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		errs <- err
	}()
	const notice = 60 + 8*15
	for range notice - 1 {
		clock.Advance(1e9)
	}
	for range 8 {
		if h := nextTCP(t, w, fam); h.Flags() != header.TCPFlagAck {
			t.Fatalf("got %s, want a keepalive probe", h.Flags())
		}
	}
	silent(t, w, fam)
	if len(errs) != 0 {
		t.Fatalf("given up before its time: %v", <-errs)
	}
	clock.Advance(2e9)
	if err := receive(t, "end of Read", errs); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("Read: %v, want ETIMEDOUT", err)
	}
}

// TestManyFlowsLeaveNothing: 10,000 flows, of which half end by the server and
// half by the client, leave no goroutine (TestMain), no endpoint and no memory.
func TestManyFlowsLeaveNothing(t *testing.T) {
	flows := 10_000
	if testing.Short() || raced {
		flows = 1000
	}
	const workers = 32
	host, s := onHost(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
		c, err := r.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		b := make([]byte, 64)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			if _, err := c.Write(b[:n]); err != nil {
				t.Error(err)
			}
			if b[0] == 's' {
				return // the server closes first
			}
		}
	}})
	run := func(flows int) {
		var wg sync.WaitGroup
		for worker := range workers {
			wg.Go(func() {
				fam := families()[worker%2]
				for i := range flows / workers {
					who := "server"
					if i%2 == 0 {
						who = "client"
					}
					if err := oneFlow(host, fam.server, who); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		eventually(t, "all flows are over", func() bool {
			st := s.Stats()
			return st.Established == 0 && st.HalfOpen == 0 && s.Endpoints() == 0
		})
	}
	run(flows) // tables, which do not shrink, get their size
	before := liveHeap()
	run(flows)
	eventually(t, "memory is back", func() bool {
		after := liveHeap()
		// A flow that left no more than a table entry would show.
		return after < before+uint64(flows)*64
	})
}

func oneFlow(host *stacktest.Host, server netip.AddrPort, who string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := host.DialTCP(ctx, netip.AddrPort{}, server)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(who)); err != nil {
		return err
	}
	b := make([]byte, 64)
	if n, err := c.Read(b); err != nil || string(b[:n]) != who {
		return fmt.Errorf("echo of %q: %q, %w", who, b[:n], err)
	}
	if who == "server" {
		if n, err := c.Read(b); n != 0 || err == nil || errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("read after the server has closed: %d, %w", n, err)
		}
	}
	return nil
}
