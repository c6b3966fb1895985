package stack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A peer that is gone without a word is noticed after idle + count × interval:
// three minutes. Linux waits for more than two hours, which on a gateway keeps
// the flows of every laptop that was carried away.
const (
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 8
)

// handshakeTimeout is how long a client may take to answer a SYN-ACK, which is
// sent after 0, 1, 3 and 7 s. netstack alone would wait for 127 s, and hold a
// place among the half-open attempts for each forged SYN.
const handshakeTimeout = 10 * time.Second

// closeTimeout is how long a client may leave what was written before
// [Conn.Close] unacknowledged, or keep its window shut. netstack alone would
// keep a closed connection, and up to 12 MiB of its data, for as long as the
// client answers window probes.
const closeTimeout = 60 * time.Second

// TCPRequest is a connection attempt that has had no answer yet. It belongs to
// the handler until ServeTCP returns.
type TCPRequest struct {
	s        *Stack
	fwd      *tcp.ForwarderRequest
	src, dst netip.AddrPort
	attempt  attempt
	answered bool
}

// Source returns the client's address.
func (r *TCPRequest) Source() netip.AddrPort { return r.src }

// Destination returns where the client wants to go.
func (r *TCPRequest) Destination() netip.AddrPort { return r.dst }

// Accept completes the handshake with the client and blocks while it lasts, for
// 10 s at the most. The attempt is over where it returns an error: ETIMEDOUT or
// ECONNRESET where the client has gone, net.ErrClosed where the stack ends. It
// may be called once, and not after Refuse.
func (r *TCPRequest) Accept() (*Conn, error) {
	if r.s.ctx.Err() != nil {
		r.Refuse(syscall.ECONNREFUSED)
		return nil, errNotRunning
	}
	r.answered = true
	defer r.s.halfOpen.done(r.src, r.dst)
	wq := new(waiter.Queue)
	// CreateEndpoint waits for an event of the queue, then looks at the state
	// of the handshake, and gives up where it is not complete.
	giveUp := r.s.net.Load().Clock().AfterFunc(handshakeTimeout, func() { wq.Notify(waiter.WritableEvents) })
	start := time.Now()
	ep, err := r.fwd.CreateEndpoint(wq)
	handshake := time.Since(start)
	giveUp.Stop()
	r.fwd.Complete(false)
	if err != nil {
		return nil, r.handshakeError(err)
	}
	if err := setOptions(ep); err != nil {
		ep.Abort()
		return nil, err
	}
	return newConn(r.s, ep, wq, r.src, r.dst, handshake), nil
}

// setOptions sets the options of a connection, whoever has opened it.
func setOptions(ep tcpip.Endpoint) error {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	for _, o := range []tcpip.SettableSocketOption{&idle, &interval} {
		if err := ep.SetSockOpt(o); err != nil {
			return toError(err)
		}
	}
	if err := ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount); err != nil {
		return toError(err)
	}
	// Data goes out as it comes in: the far end has decided how to cut it.
	ep.SocketOptions().SetDelayOption(false)
	return nil
}

// handshakeError says in the words of a server what CreateEndpoint says in those
// of a client.
func (r *TCPRequest) handshakeError(err tcpip.Error) error {
	e := toError(err)
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		e = syscall.ECONNRESET // the client answered the SYN-ACK by a RST
	case *tcpip.ErrAborted, *tcpip.ErrConnectionAborted:
		e = syscall.ETIMEDOUT // giveUp
		if r.s.ctx.Err() != nil {
			return errNotRunning
		}
	}
	return fmt.Errorf("stack: handshake with %s: %w", r.src, e)
}

// Refuse answers the attempt such that the client's connect(2) returns e:
// ECONNREFUSED by a RST; ENETUNREACH, EHOSTUNREACH and EACCES (prohibited;
// Linux shows EHOSTUNREACH for it over IPv4) by an ICMP error; 0 by silence;
// anything else as EHOSTUNREACH. It does not block.
func (r *TCPRequest) Refuse(e syscall.Errno) {
	r.answered = true
	r.fwd.Complete(false)
	r.s.halfOpen.done(r.src, r.dst)
	// The answer goes out last: the client's next attempt, which follows it at
	// once, must not be taken for a retransmission of this one.
	switch e {
	case 0:
		return
	case syscall.ECONNREFUSED:
		r.s.writeReset(r.dst, r.src, r.attempt.end)
	default:
		r.s.writeUnreachable(r.dst.Addr(), r.src.Addr(), unreachableCode(e, r.src.Addr().Is4(), false), r.attempt.quote.bytes())
	}
	r.s.refused.Add(1)
}

// writeReset answers a SYN by a RST; ack is the sequence number behind it
// (RFC 9293 §3.10.7.1).
func (s *Stack) writeReset(from, to netip.AddrPort, ack uint32) {
	f := s.link.frame()
	if from.Addr().Is4() {
		f.buf = appendIPv4(f.buf, from.Addr(), to.Addr(), header.TCPProtocolNumber, header.TCPMinimumSize)
	} else {
		f.buf = appendIPv6(f.buf, from.Addr(), to.Addr(), header.TCPProtocolNumber, header.TCPMinimumSize)
	}
	segment := len(f.buf)
	f.buf = append(f.buf, make([]byte, header.TCPMinimumSize)...)
	h := header.TCP(f.buf[segment:])
	h.Encode(&header.TCPFields{
		SrcPort:    from.Port(),
		DstPort:    to.Port(),
		AckNum:     ack,
		DataOffset: header.TCPMinimumSize,
		Flags:      header.TCPFlagRst | header.TCPFlagAck,
	})
	h.SetChecksum(^h.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, toAddr(from.Addr()), toAddr(to.Addr()), header.TCPMinimumSize)))
	_ = s.link.send(f) // fails only when the device has gone, which ends Run
}

// handleTCP takes the segments that no connection claims.
func (s *Stack) handleTCP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false // netstack answers by a RST
	}
	src, dst := clientAddrs(id)
	if src.Port() == 0 || dst.Port() == 0 || !servable(src.Addr(), dst.Addr()) {
		return true
	}
	if !s.halfOpen.admit(src, dst, h, pkt) {
		return true
	}
	if !s.fwd.HandlePacket(id, pkt) { // malformed, or with a wrong checksum
		s.halfOpen.done(src, dst)
		s.halfOpen.handlers.Done()
		return false
	}
	return true
}

// serveForwarded runs in a goroutine of its own, one for each attempt.
func (s *Stack) serveForwarded(f *tcp.ForwarderRequest) {
	defer s.halfOpen.handlers.Done()
	src, dst := clientAddrs(f.ID())
	r := &TCPRequest{s: s, fwd: f, src: src, dst: dst, attempt: s.halfOpen.get(src, dst)}
	s.opts.Handler.ServeTCP(s.ctx, r)
	if !r.answered {
		r.Refuse(0)
	}
}

// tuple names a connection attempt.
type tuple struct{ src, dst netip.AddrPort }

// attempt is what an answer to a SYN needs of it.
type attempt struct {
	quote quote
	end   uint32 // the sequence number behind the SYN and the data that it may carry (RFC 7413)
}

// halfOpen keeps the attempts that have had no answer yet, within limits.
type halfOpen struct {
	limit, perSource int

	// handlers counts the goroutines that serve attempts, or make them. It is added to
	// under mu and only while ending is false, so never during end's Wait.
	handlers sync.WaitGroup

	mu       sync.Mutex // guards what follows
	attempts map[tuple]attempt
	sources  map[netip.Addr]int
	dropped  uint64
	ending   bool
}

func (h *halfOpen) init(limit, perSource int) {
	h.limit, h.perSource = limit, perSource
	h.attempts = make(map[tuple]attempt)
	h.sources = make(map[netip.Addr]int)
}

// admit takes note of an attempt and says whether it is to be served: not a
// retransmission, nor beyond a limit, nor after end; the client will try again
// in a second. For an attempt that is admitted, done must follow, and
// handlers.Done from the goroutine that serves it.
func (h *halfOpen) admit(src, dst netip.AddrPort, syn header.TCP, pkt *gstack.PacketBuffer) bool {
	t := tuple{src, dst}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.attempts[t]; ok || h.ending {
		return false
	}
	if len(h.attempts) >= h.limit || h.sources[src.Addr()] >= h.perSource {
		h.dropped++
		return false
	}
	end := syn.SequenceNumber() + 1 + uint32(pkt.Data().Size())
	if syn.Flags().Contains(header.TCPFlagFin) {
		end++
	}
	h.attempts[t] = attempt{
		quote: makeQuote(pkt.NetworkHeader().Slice(), syn, header.TCPProtocolNumber),
		end:   end,
	}
	h.sources[src.Addr()]++
	h.handlers.Add(1)
	return true
}

// enter takes part in what end waits for, unless it has begun; handlers.Done must
// follow.
func (h *halfOpen) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending {
		return false
	}
	h.handlers.Add(1)
	return true
}

func (h *halfOpen) get(src, dst netip.AddrPort) attempt {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attempts[tuple{src, dst}]
}

func (h *halfOpen) done(src, dst netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.attempts, tuple{src, dst})
	if h.sources[src.Addr()]--; h.sources[src.Addr()] <= 0 {
		delete(h.sources, src.Addr())
	}
}

// end admits no attempt any more and waits for the handlers of those that it
// has admitted.
func (h *halfOpen) end() {
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
	h.handlers.Wait()
}

func (h *halfOpen) stats() (waiting int, dropped uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.attempts), h.dropped
}

// beforeDeliver ends a connection in TIME-WAIT whose four-tuple a new SYN uses:
// see the package's Theory of operation. Packet tempo.
func (s *Stack) beforeDeliver(p []byte) {
	id, proto, ok := synTuple(p)
	if !ok {
		return
	}
	n := s.net.Load()
	ep, ok := n.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, nicID).(*tcp.Endpoint)
	if !ok {
		return
	}
	switch ep.EndpointState() {
	case tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing:
		// The ACK of the client's FIN goes out first, then the state
		// becomes TIME-WAIT; the client may be between the two.
		ep.LockUser()
		ep.UnlockUser()
	}
	if ep.EndpointState() == tcp.StateTimeWait {
		// Out of the table it goes, no more: its timer frees it. Abort
		// would send a RST, at which a Linux client sends its SYN again and
		// a firewall between may forget the new connection.
		n.UnregisterTransportEndpoint([]tcpip.NetworkProtocolNumber{proto}, tcp.ProtocolNumber, id, ep, ports.Flags{}, 0)
		s.recycled.Add(1)
	}
}

// synTuple returns the four-tuple of p where p is an unfragmented SYN without
// ACK, directly behind its IP header.
func synTuple(p []byte) (id gstack.TransportEndpointID, proto tcpip.NetworkProtocolNumber, ok bool) {
	var segment, addrs []byte
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		ihl := int(p[0]&0xf) * 4
		if p[9] != uint8(header.TCPProtocolNumber) || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || ihl < header.IPv4MinimumSize || len(p) < ihl {
			return id, 0, false
		}
		segment, addrs, proto = p[ihl:], p[12:20], header.IPv4ProtocolNumber
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.TCPProtocolNumber):
		segment, addrs, proto = p[header.IPv6MinimumSize:], p[8:40], header.IPv6ProtocolNumber
	default:
		return id, 0, false
	}
	if len(segment) < header.TCPMinimumSize || header.TCP(segment).Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return id, 0, false
	}
	half := len(addrs) / 2
	return gstack.TransportEndpointID{
		LocalPort:     header.TCP(segment).DestinationPort(),
		LocalAddress:  tcpip.AddrFromSlice(addrs[half:]),
		RemotePort:    header.TCP(segment).SourcePort(),
		RemoteAddress: tcpip.AddrFromSlice(addrs[:half]),
	}, proto, true
}
