package stack

import (
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// handleUDP takes the datagrams that [burst] has left to netstack: those that it
// has put together, and what is wrong. Packet tempo.
func (s *Stack) handleUDP(id gstack.TransportEndpointID, pkt *gstack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	data := pkt.Data()
	if n := int(h.Length()); n < header.UDPMinimumSize || n > header.UDPMinimumSize+data.Size() {
		s.badDatagrams.Add(1)
		return true
	}
	src, dst := clientAddrs(id)
	if src.Port() == 0 || dst.Port() == 0 || !servable(src.Addr(), dst.Addr()) {
		return true
	}
	payload, ok := data.PullUp(int(h.Length()) - header.UDPMinimumSize)
	if !ok || !rightSum(h, id, payload) {
		s.badDatagrams.Add(1)
		return true
	}
	s.datagrams.Add(1)
	taken := s.opts.Handler.ServeUDP(src, dst, payload)
	s.flushUDP()
	return taken
}

// rightSum verifies the checksum of a datagram. The device has not, whatever it says: of
// what comes in fragments nobody could before they were together. What this machine's
// kernel has left to the device has the sum of the pseudo-header only.
func rightSum(h header.UDP, id gstack.TransportEndpointID, payload []byte) bool {
	if h.Checksum() == 0 && id.RemoteAddress.BitLen() == 32 {
		return true // RFC 768: not computed
	}
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, id.RemoteAddress, id.LocalAddress, h.Length())
	return h.Checksum() == pseudo || checksum.Combine(checksum.Checksum(h[:header.UDPMinimumSize], pseudo), checksum.Checksum(payload, 0)) == 0xffff
}

// RefuseUDP tells the client at src that its datagram to dst, which ServeUDP had
// taken, went nowhere: EACCES as prohibited, all else as ICMP port unreachable,
// the only other error that a connected UDP socket sees. length is that of the
// datagram's payload.
func (s *Stack) RefuseUDP(src, dst netip.AddrPort, length int, e syscall.Errno) {
	src, dst = netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if e == 0 || s.net.Load() == nil || src.Addr().BitLen() != dst.Addr().BitLen() || src.Addr().BitLen() == 0 {
		return
	}
	udp := make(header.UDP, header.UDPMinimumSize)
	udp.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(header.UDPMinimumSize + length)})
	var ip []byte
	if src.Addr().Is4() {
		ip = appendIPv4(nil, src.Addr(), dst.Addr(), header.UDPProtocolNumber, header.UDPMinimumSize+length)
	} else {
		ip = appendIPv6(nil, src.Addr(), dst.Addr(), header.UDPProtocolNumber, header.UDPMinimumSize+length)
	}
	s.writeUnreachable(dst.Addr(), src.Addr(), unreachableCode(e, src.Addr().Is4(), true), append(ip, udp...))
}

// writeFragmented sends head and body as one IP packet or as its fragments.
func writeFragmented(n *gstack.Stack, proto tcpip.NetworkProtocolNumber, transport tcpip.TransportProtocolNumber, from, to netip.Addr, head, body []byte) error {
	route, err := n.FindRoute(nicID, toAddr(from), toAddr(to), proto, false)
	if err != nil {
		return toError(err)
	}
	defer route.Release()
	b := buffer.MakeWithData(body)
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + len(head),
		Payload:            b,
	})
	defer pkt.DecRef()
	pkt.TransportProtocolNumber = transport
	if len(head) > 0 {
		copy(pkt.TransportHeader().Push(len(head)), head)
	}
	return toError(route.WritePacket(gstack.NetworkHeaderParams{Protocol: transport, TTL: ttl}, pkt))
}
