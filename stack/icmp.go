package stack

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// quote is what an ICMP error repeats of the packet that it answers: the IP
// header and the first bytes behind it. Linux finds the socket by the ports and
// checks the sequence number, both within the first 8 bytes; with fewer, or with
// a wrong one, it ignores the error (net/ipv4/tcp_ipv4.c, tcp_v4_err).
type quote struct {
	n uint8
	b [header.IPv4MaximumHeaderSize + quotedTransport]byte
}

const quotedTransport = 20 // a TCP header without options

// makeQuote copies. Of an IPv6 packet only the fixed header is repeated:
// extension headers are dropped, and NextHeader says so.
func makeQuote(network, transport []byte, proto tcpip.TransportProtocolNumber) quote {
	var q quote
	isV6 := network[0]>>4 == 6
	if isV6 {
		network = network[:header.IPv6MinimumSize]
	}
	n := copy(q.b[:header.IPv4MaximumHeaderSize], network)
	n += copy(q.b[n:][:quotedTransport], transport)
	q.n = uint8(n)
	if isV6 {
		header.IPv6(q.b[:n]).SetNextHeader(uint8(proto))
	}
	return q
}

func (q *quote) bytes() []byte { return q.b[:q.n] }

// unreachableCode returns the code of a destination unreachable error that Linux
// shows to the client as e. A connected UDP socket sees only "port" and
// "prohibited" (net/ipv4/udp.c, __udp4_lib_err, without IP_RECVERR).
func unreachableCode(e syscall.Errno, is4, isUDP bool) uint8 {
	var v4, v6 uint8
	switch {
	case e == syscall.EACCES:
		v4, v6 = uint8(header.ICMPv4AdminProhibited), uint8(header.ICMPv6Prohibited)
	case isUDP:
		v4, v6 = uint8(header.ICMPv4PortUnreachable), uint8(header.ICMPv6PortUnreachable)
	case e == syscall.ENETUNREACH:
		v4, v6 = uint8(header.ICMPv4NetUnreachable), uint8(header.ICMPv6NetworkUnreachable)
	default:
		v4, v6 = uint8(header.ICMPv4HostUnreachable), uint8(header.ICMPv6AddressUnreachable)
	}
	if is4 {
		return v4
	}
	return v6
}

// writeUnreachable sends a destination unreachable error (RFC 792, RFC 4443
// §3.1). The addresses are of one family.
func (s *Stack) writeUnreachable(from, to netip.Addr, code uint8, quoted []byte) {
	f := s.link.frame()
	if from.Is4() {
		f.buf = appendIPv4(f.buf, from, to, header.ICMPv4ProtocolNumber, header.ICMPv4MinimumSize+len(quoted))
		icmp := len(f.buf)
		f.buf = append(f.buf, uint8(header.ICMPv4DstUnreachable), code, 0, 0, 0, 0, 0, 0)
		f.buf = append(f.buf, quoted...)
		h := header.ICMPv4(f.buf[icmp:])
		h.SetChecksum(^checksum.Checksum(h, 0))
	} else {
		f.buf = appendIPv6(f.buf, from, to, header.ICMPv6ProtocolNumber, header.ICMPv6DstUnreachableMinimumSize+len(quoted))
		icmp := len(f.buf)
		f.buf = append(f.buf, uint8(header.ICMPv6DstUnreachable), code, 0, 0, 0, 0, 0, 0)
		f.buf = append(f.buf, quoted...)
		h := header.ICMPv6(f.buf[icmp:])
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: toAddr(from), Dst: toAddr(to)}))
	}
	_ = s.link.send(f) // fails only when the device has gone, which ends Run
}

// ttl of the packets that we make.
const ttl = 64

// appendIPv4 appends a header without options for n bytes of payload.
func appendIPv4(b []byte, from, to netip.Addr, proto tcpip.TransportProtocolNumber, n int) []byte {
	start := len(b)
	b = append(b, make([]byte, header.IPv4MinimumSize)...)
	h := header.IPv4(b[start:])
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + n),
		Flags:       header.IPv4FlagDontFragment, // so that an ID is not needed (RFC 6864 §4)
		TTL:         ttl,
		Protocol:    uint8(proto),
		SrcAddr:     toAddr(from),
		DstAddr:     toAddr(to),
	})
	h.SetChecksum(^h.CalculateChecksum())
	return b
}

// appendIPv6 appends a header for n bytes of payload.
func appendIPv6(b []byte, from, to netip.Addr, proto tcpip.TransportProtocolNumber, n int) []byte {
	start := len(b)
	b = append(b, make([]byte, header.IPv6MinimumSize)...)
	header.IPv6(b[start:]).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(n),
		TransportProtocol: proto,
		HopLimit:          ttl,
		SrcAddr:           toAddr(from),
		DstAddr:           toAddr(to),
	})
	return b
}

// EchoRequest is an ICMP echo request that has had no answer yet. It may be kept
// and answered later, once, from any goroutine.
type EchoRequest struct {
	s        *Stack
	src, dst netip.Addr
	message  []byte // ICMP header and data
	quote    quote
}

// Source returns the client's address.
func (r *EchoRequest) Source() netip.Addr { return r.src }

// Destination returns who is asked.
func (r *EchoRequest) Destination() netip.Addr { return r.dst }

// Data returns what the reply has to repeat. It is the request's own.
func (r *EchoRequest) Data() []byte { return r.message[header.ICMPv4MinimumSize:] }

// Reply answers as if the destination had. It does not block for longer than the
// device takes.
func (r *EchoRequest) Reply() {
	n := r.s.net.Load()
	if n == nil {
		return
	}
	proto, transport := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber), header.ICMPv4ProtocolNumber
	if r.src.Is6() {
		proto, transport = header.IPv6ProtocolNumber, header.ICMPv6ProtocolNumber
	}
	if r.src.Is4() {
		h := header.ICMPv4(r.message)
		h.SetType(header.ICMPv4EchoReply)
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(h, 0))
	} else {
		h := header.ICMPv6(r.message)
		h.SetType(header.ICMPv6EchoReply)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: toAddr(r.dst), Dst: toAddr(r.src)}))
	}
	_ = writeFragmented(n, proto, transport, r.dst, r.src, nil, r.message)
}

// Refuse answers by an ICMP error, as [TCPRequest.Refuse] has them.
func (r *EchoRequest) Refuse(e syscall.Errno) {
	if e == 0 {
		return
	}
	r.s.writeUnreachable(r.dst, r.src, unreachableCode(e, r.src.Is4(), false), r.quote.bytes())
}

func (s *Stack) handleEcho4(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo {
		return false
	}
	// netstack leaves this to the handler, over IPv4 only.
	if checksum.Checksum(h, pkt.Data().Checksum()) != 0xffff {
		return true
	}
	s.serveEcho(id, pkt, h, header.ICMPv4ProtocolNumber)
	return true
}

func (s *Stack) handleEcho6(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	h := header.ICMPv6(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv6EchoMinimumSize || h.Type() != header.ICMPv6EchoRequest {
		return false
	}
	s.serveEcho(id, pkt, h, header.ICMPv6ProtocolNumber)
	return true
}

func (s *Stack) serveEcho(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer, h []byte, proto tcpip.TransportProtocolNumber) {
	src, dst := fromAddr(id.RemoteAddress), fromAddr(id.LocalAddress)
	if !servable(src, dst) {
		return
	}
	message := append(append([]byte(nil), h...), pkt.Data().AsRange().ToSlice()...)
	s.opts.Handler.ServeEcho(s.ctx, &EchoRequest{
		s: s, src: src, dst: dst, message: message,
		quote: makeQuote(pkt.NetworkHeader().Slice(), message, proto),
	})
}
