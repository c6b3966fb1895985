package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Device is where whole IP packets come from and go to, without a link header.
type Device interface {
	// Read blocks until there are packets. It fills bufs[i][offset:] and
	// sizes[i] and returns how many packets it read, or an error, after
	// which the device is done for.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)

	// Write sends bufs[i][offset:], and may overwrite the bytes before
	// offset. It blocks while the device is full and does not keep bufs.
	// It is safe for concurrent use.
	Write(bufs [][]byte, offset int) (int, error)

	// BatchSize is the largest number of packets that Read returns.
	BatchSize() int

	// MTU is the largest packet, in bytes, IP header included.
	MTU() int

	// Close ends a blocked Read and a blocked Write. Run may call it twice.
	Close() error
}

// Handler decides what becomes of flows. Its methods are called concurrently.
type Handler interface {
	// ServeTCP decides one connection attempt, in a goroutine of its own. It
	// must call Accept or Refuse; returning without either drops the
	// attempt. ctx ends with the stack.
	ServeTCP(ctx context.Context, r *TCPRequest)

	// ServeUDP takes a datagram. Packet tempo: it must not block, and
	// payload is valid until it returns. Where it returns false, the client
	// gets ICMP port unreachable. What is to be sent on together with what
	// follows is a matter of [UDPFlusher].
	ServeUDP(src, dst netip.AddrPort, payload []byte) bool

	// ServeEcho decides an ICMP echo request. It must not block; it calls
	// Reply or Refuse, now or later, or neither.
	ServeEcho(ctx context.Context, r *EchoRequest)
}

// Default limits of connection attempts that wait for their handler's answer.
const (
	// DefaultHalfOpen: an attempt that waits costs a goroutine, the SYN and
	// its dial, about 16 KB; 4,096 of them stay within 64 MB. At the usual
	// dial of 100 ms it lets 40,000 connects a second through.
	DefaultHalfOpen = 4096
	// DefaultHalfOpenPerSource keeps one client that scans from using up
	// what the others need.
	DefaultHalfOpenPerSource = 1024
)

// Options configure a [Stack]. Device and Handler are required.
type Options struct {
	Device  Device
	Handler Handler
	Logger  *slog.Logger // nil discards

	// Headroom is how many bytes in front of a packet Device.Write and
	// Device.Read need.
	Headroom int

	HalfOpen          int // 0: DefaultHalfOpen
	HalfOpenPerSource int // 0: DefaultHalfOpenPerSource
}

// nicID is the one interface of the stack.
const nicID tcpip.NICID = 1

// Stack is a netstack on a device. Its methods are safe for concurrent use.
type Stack struct {
	opts    Options
	log     *slog.Logger
	link    *link
	flusher UDPFlusher                   // the handler; nil if it is none
	net     atomic.Pointer[gstack.Stack] // nil but during Run
	started chan struct{}                // closed when Run serves
	fwd     *tcp.Forwarder

	ctx       context.Context // of Run; for requests only
	halfOpen  halfOpen
	streams   streams
	senders   senders
	neighbors neighbors
	clock     tcpip.Clock // of netstack; nil is the machine's

	datagrams    atomic.Uint64
	badDatagrams atomic.Uint64
	refused      atomic.Uint64
	recycled     atomic.Uint64
}

// New checks the options. It starts nothing; [Stack.Run] does.
func New(o Options) (*Stack, error) {
	if o.Device == nil || o.Handler == nil {
		return nil, errors.New("stack: Device and Handler are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HalfOpen <= 0 {
		o.HalfOpen = DefaultHalfOpen
	}
	if o.HalfOpenPerSource <= 0 {
		o.HalfOpenPerSource = DefaultHalfOpenPerSource
	}
	l, err := newLink(o.Device, o.Headroom)
	if err != nil {
		return nil, fmt.Errorf("stack: %w", err)
	}
	s := &Stack{opts: o, log: o.Logger, link: l, started: make(chan struct{}), senders: senders{start: time.Now()}}
	s.flusher, _ = o.Handler.(UDPFlusher)
	s.halfOpen.init(o.HalfOpen, o.HalfOpenPerSource)
	return s, nil
}

// timeWait is how long a connection that we closed first answers a
// retransmitted FIN. The other end is a TUN or a LAN away: two seconds see
// three retransmissions (200, 400, 800 ms). Linux has 60 s to outlast old
// duplicates of a long path, at the price of some kilobytes for every
// connection of the last minute.
const timeWait = 2 * time.Second

// Buffers of a connection. They are limits, not allocations: an idle connection
// has none, and they grow with what a path carries. At their maximum a client that
// is 100 ms away sends 600 Mbit/s and receives 635 (BenchmarkLongPath; half of the
// receive buffer is window). With 8 and 6 MiB it was 300 and 340.
var (
	receiveBuffer = tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: nearLeast, Max: 16 << 20}
	sendBuffer    = tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 12 << 20}
)

// goodbye is how long a device may take for the last resets.
const goodbye = time.Second

// Run serves packets until ctx ends or the device fails. Then it resets all
// connections and returns after all that it started has stopped, handlers
// included; the device is closed. The error is nil where ctx ended it. Run is
// called once.
func (s *Stack) Run(ctx context.Context) error {
	n, err := s.newNetstack()
	if err != nil {
		s.opts.Device.Close()
		return fmt.Errorf("stack: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx = ctx
	s.net.Store(n)
	close(s.started)

	var ended sync.WaitGroup
	ended.Go(func() {
		<-ctx.Done()
		// Clients learn of the end by a RST, as long as there is a device
		// that takes it.
		force := time.AfterFunc(goodbye, func() { s.opts.Device.Close() })
		s.endFlows(n)
		force.Stop()
		s.opts.Device.Close()
	})
	// The first reader that ends is the end of all: it has the device closed.
	var first sync.Once
	var cause error
	read := func(queue int) {
		failure := s.link.readLoop(queue, s.beforeDeliver, s.newBurst())
		first.Do(func() {
			err, cause = failure, ctx.Err()
			cancel()
		})
	}
	for queue := 1; queue < s.link.readers(); queue++ {
		ended.Go(func() { read(queue) })
	}
	read(0)
	ended.Wait()
	s.net.Store(nil)
	n.Destroy()
	if cause != nil {
		return nil
	}
	return fmt.Errorf("stack: device: %w", err)
}

// endFlows admits no attempt any more and aborts all connections until all
// handlers have returned. Once is not enough: a handler may be about to accept.
func (s *Stack) endFlows(n *gstack.Stack) {
	s.streams.stop()
	done := make(chan struct{})
	go func() {
		s.halfOpen.end()
		s.streams.ended.Wait()
		close(done)
	}()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for ended := false; ; {
		for _, e := range n.RegisteredEndpoints() {
			s.streams.abort(e)
		}
		if ended {
			return
		}
		select {
		case <-done:
			ended = true // and once more, for what the last of them left open
		case <-again.C:
		}
	}
}

func (s *Stack) newNetstack() (*gstack.Stack, error) {
	n := gstack.New(gstack.Options{
		NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
		Clock:              s.clock,
	})
	fail := func(what string, err tcpip.Error) (*gstack.Stack, error) {
		n.Destroy()
		return nil, fmt.Errorf("%s: %w", what, toError(err))
	}
	if err := n.CreateNIC(nicID, s.link); err != nil {
		return fail("interface", err)
	}
	if err := n.SetPromiscuousMode(nicID, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := n.SetSpoofing(nicID, true); err != nil {
		return fail("spoofing", err)
	}
	n.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	// netstack answers a datagram that nobody takes by ICMP, a thousand a
	// second in all. Here a client behind the TUN pays for its own.
	n.SetICMPLimit(100_000)
	n.SetICMPBurst(10_000)

	sack := tcpip.TCPSACKEnabled(true)
	congestion := tcpip.CongestionControlOption("cubic")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	// Without RACK (RFC 8985). Round trips to a program behind the TUN are tens
	// of microseconds, and so is the time after which its tail loss probe sends
	// a super-segment again that is not lost but not processed yet; while that
	// timer waits for an endpoint's lock, the goroutine that processes segments
	// spins on it. Eight downloads at once cost half as much without it. SACK and
	// the retransmission timer recover what is lost.
	recovery := tcpip.TCPRecovery(0)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &congestion, &moderate, &wait, &receiveBuffer, &sendBuffer} {
		if err := n.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fail(fmt.Sprintf("option %T", o), err)
		}
	}
	// The limit of attempts is ours (admission), the forwarder's never hits.
	s.fwd = tcp.NewForwarder(n, receiveBuffer.Default, s.opts.HalfOpen+1, s.serveForwarded)
	n.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	n.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	n.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.handleEcho4)
	n.SetTransportProtocolHandler(icmp.ProtocolNumber6, s.handleEcho6)
	return n, nil
}

// Stats are counters since the start, but for HalfOpen and Established.
type Stats struct {
	HalfOpen        int    // attempts that wait now, for an answer or for the end of their handshake
	HalfOpenDropped uint64 // SYNs dropped for a limit
	Refused         uint64 // attempts answered by RST or ICMP
	Recycled        uint64 // connections in TIME-WAIT that a new SYN ended
	Established     uint64 // connections that exist now: from the handshake to the end of TIME-WAIT
	Datagrams       uint64 // taken to the handler
	BadDatagrams    uint64 // with a wrong length or checksum
	PacketsIn       uint64
	PacketsOut      uint64
	BadPackets      uint64 // neither IPv4 nor IPv6
}

// Stats returns the counters.
func (s *Stack) Stats() Stats {
	st := Stats{
		Refused:      s.refused.Load(),
		Recycled:     s.recycled.Load(),
		Datagrams:    s.datagrams.Load(),
		BadDatagrams: s.badDatagrams.Load(),
		PacketsIn:    s.link.packetsIn.Load(),
		PacketsOut:   s.link.packetsOut.Load(),
		BadPackets:   s.link.badPackets.Load(),
	}
	st.HalfOpen, st.HalfOpenDropped = s.halfOpen.stats()
	if n := s.net.Load(); n != nil {
		st.Established = n.Stats().TCP.CurrentConnected.Value()
	}
	return st
}

// toAddr converts to a netstack address; a must be valid.
func toAddr(a netip.Addr) tcpip.Address {
	if a.Is4() {
		return tcpip.AddrFrom4(a.As4())
	}
	return tcpip.AddrFrom16(a.As16())
}

// fromAddr converts from a netstack address.
func fromAddr(a tcpip.Address) netip.Addr {
	n, _ := netip.AddrFromSlice(a.AsSlice())
	return n
}

// clientAddrs returns the addresses of an attempt or a datagram as the client
// has them: its own, and where it wants to go.
func clientAddrs(id gstack.TransportEndpointID) (src, dst netip.AddrPort) {
	return netip.AddrPortFrom(fromAddr(id.RemoteAddress), id.RemotePort),
		netip.AddrPortFrom(fromAddr(id.LocalAddress), id.LocalPort)
}

// servable says whether a packet is from one host to one host. IPv4-mapped
// addresses have no place in a packet (RFC 4942 §2.2): taken for IPv4 further on,
// they would get past whatever filters IPv4.
func servable(src, dst netip.Addr) bool { return isHost(src) && isHost(dst) }

func isHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != broadcast4 && !a.Is4In6()
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

var errNotRunning = fmt.Errorf("stack: %w", net.ErrClosed)
