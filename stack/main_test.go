package stack_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/refs"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Counting references takes a lock for each packet, which a benchmark
	// must not measure.
	if flag.Lookup("test.bench").Value.String() == "" {
		refs.SetLeakMode(refs.LeaksPanic)
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		refs.DoLeakCheck()
	}
	os.Exit(code)
}

// patience is how long a test waits for what must happen. It ends a test that
// has failed; no test that passes waits for it.
const patience = 30 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok holds, for what nothing tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	ctx := within(t)
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// receive returns the next value of ch.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-within(t).Done():
		t.Fatalf("never: %s", what)
		panic("not reached")
	}
}

// handler serves by functions. What has none is refused.
type handler struct {
	tcp  func(ctx context.Context, r *stack.TCPRequest)
	udp  func(src, dst netip.AddrPort, payload []byte) bool
	echo func(ctx context.Context, r *stack.EchoRequest)
}

func (h *handler) ServeTCP(ctx context.Context, r *stack.TCPRequest) {
	if h.tcp != nil {
		h.tcp(ctx, r)
	}
}

func (h *handler) ServeUDP(src, dst netip.AddrPort, payload []byte) bool {
	return h.udp != nil && h.udp(src, dst, payload)
}

func (h *handler) ServeEcho(ctx context.Context, r *stack.EchoRequest) {
	if h.echo != nil {
		h.echo(ctx, r)
		return
	}
	r.Reply()
}

// start runs a stack until the test ends, and fails the test unless it then
// ends in order. The returned function ends it before.
func start(t testing.TB, o stack.Options, clock tcpip.Clock) (*stack.Stack, func()) {
	t.Helper()
	s, err := stack.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.SetClock(clock)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	eventually(t, "stack runs", s.Running)
	stop := func() {
		t.Helper()
		if cancel == nil {
			return
		}
		cancel()
		cancel = nil
		if err := receive(t, "Run returns", ended); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// onHost runs a stack with a client machine in front of it.
func onHost(t testing.TB, h *handler) (*stacktest.Host, *stack.Stack) {
	t.Helper()
	host := stacktest.NewHost(1500)
	t.Cleanup(host.Close) // after the stack's
	s, _ := start(t, stack.Options{Device: host.Device(), Handler: h}, nil)
	return host, s
}

// onWire runs a stack with a test in front of it.
func onWire(t testing.TB, h *handler, o stack.Options, clock tcpip.Clock) (*stacktest.Wire, *stack.Stack) {
	t.Helper()
	w := stacktest.NewWire(1500)
	o.Device, o.Handler = w, h
	s, _ := start(t, o, clock)
	return w, s
}

// family is what a test needs to run over IPv4 and over IPv6.
type family struct {
	name           string
	client, server netip.AddrPort
}

func (f family) is4() bool { return f.client.Addr().Is4() }

func families() []family {
	return []family{
		{"IPv4", netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("192.0.2.1:80")},
		{"IPv6", netip.MustParseAddrPort("[fd00::2]:40000"), netip.MustParseAddrPort("[2001:db8::1]:80")},
	}
}

func eachFamily(t *testing.T, f func(t *testing.T, fam family)) {
	for _, fam := range families() {
		t.Run(fam.name, func(t *testing.T) { f(t, fam) })
	}
}

// packet is what a stack sent, taken apart. Its headers and checksums are right:
// parse has seen to that.
type packet struct {
	src, dst netip.Addr
	proto    tcpip.TransportProtocolNumber
	fragment bool
	ip, rest []byte
}

// parse takes a packet apart and checks it, checksums by netstack's functions
// and by those of stacktest.
func parse(t testing.TB, b []byte) packet {
	t.Helper()
	var p packet
	switch b[0] >> 4 {
	case 4:
		h := header.IPv4(b)
		if !h.IsValid(len(b)) || int(h.TotalLength()) != len(b) {
			t.Fatalf("malformed IPv4 packet: % x", b)
		}
		if !h.IsChecksumValid() || stacktest.Checksum(b[:h.HeaderLength()], 0) != 0xffff {
			t.Fatalf("wrong IPv4 header checksum: % x", b)
		}
		p.proto = h.TransportProtocol()
		p.ip, p.rest = b[:h.HeaderLength()], b[h.HeaderLength():]
		p.fragment = h.FragmentOffset() != 0 || h.More()
		p.src, _ = netip.AddrFromSlice(b[12:16])
		p.dst, _ = netip.AddrFromSlice(b[16:20])
	case 6:
		h := header.IPv6(b)
		if !h.IsValid(len(b)) || int(h.PayloadLength()) != len(b)-header.IPv6MinimumSize {
			t.Fatalf("malformed IPv6 packet: % x", b)
		}
		p.proto = tcpip.TransportProtocolNumber(h.NextHeader())
		p.ip, p.rest = b[:header.IPv6MinimumSize], b[header.IPv6MinimumSize:]
		p.fragment = h.NextHeader() == uint8(header.IPv6FragmentExtHdrIdentifier)
		p.src, _ = netip.AddrFromSlice(b[8:24])
		p.dst, _ = netip.AddrFromSlice(b[24:40])
	default:
		t.Fatalf("not an IP packet: % x", b)
	}
	if !p.fragment && stacktest.TransportChecksum(b) != 0xffff {
		t.Fatalf("wrong checksum of protocol %d: % x", p.proto, b)
	}
	return p
}

// next returns the next packet that the stack sends.
func next(t testing.TB, w *stacktest.Wire) packet {
	t.Helper()
	b, err := w.Recv(within(t))
	if err != nil {
		t.Fatalf("no packet: %v", err)
	}
	return parse(t, b)
}

// nextTCP returns the next packet, which must be a TCP segment of fam's server.
func nextTCP(t testing.TB, w *stacktest.Wire, fam family) header.TCP {
	t.Helper()
	p := next(t, w)
	if p.proto != header.TCPProtocolNumber || p.src != fam.server.Addr() || p.dst != fam.client.Addr() {
		t.Fatalf("protocol %d from %s to %s, want TCP from %s to %s", p.proto, p.src, p.dst, fam.server, fam.client)
	}
	h := header.TCP(p.rest)
	if h.SourcePort() != fam.server.Port() || h.DestinationPort() != fam.client.Port() {
		t.Fatalf("segment from port %d to %d, want %d to %d", h.SourcePort(), h.DestinationPort(), fam.server.Port(), fam.client.Port())
	}
	return h
}

// silent fails the test unless the stack has answered nothing to what it was sent
// so far. It sends an echo request behind it, which the stack answers in the same
// order as it reads.
func silent(t testing.TB, w *stacktest.Wire, fam family) {
	t.Helper()
	if err := w.Send(stacktest.Echo(fam.client.Addr(), fam.server.Addr(), 4711, 1, nil)); err != nil {
		t.Fatal(err)
	}
	if p := next(t, w); p.proto == header.TCPProtocolNumber || p.proto == header.UDPProtocolNumber || len(p.rest) != 8 {
		t.Fatalf("got protocol %d, want silence: % x", p.proto, p.rest)
	}
}

// segment makes a segment from fam's client.
func (f family) segment(flags uint8, seq, ack uint32, payload string) []byte {
	return stacktest.Segment{Src: f.client, Dst: f.server, Flags: flags, Seq: seq, Ack: ack, Window: 65535, Payload: []byte(payload)}.Packet()
}

func send(t testing.TB, w *stacktest.Wire, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		if err := w.Send(p); err != nil {
			t.Fatal(err)
		}
	}
}

// handshake connects from fam's client with the given initial sequence number and
// returns the server's.
func handshake(t testing.TB, w *stacktest.Wire, fam family, isn uint32) uint32 {
	t.Helper()
	send(t, w, fam.segment(stacktest.SYN, isn, 0, ""))
	h := nextTCP(t, w, fam)
	if h.Flags() != header.TCPFlagSyn|header.TCPFlagAck || h.AckNumber() != isn+1 {
		t.Fatalf("got %s ack %d, want SYN-ACK of %d", h.Flags(), h.AckNumber(), isn+1)
	}
	send(t, w, fam.segment(stacktest.ACK, isn+1, h.SequenceNumber()+1, ""))
	return h.SequenceNumber()
}
