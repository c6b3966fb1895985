package stack

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// UDPFlusher is what a [Handler] also is that sends datagrams on several at a
// time.
type UDPFlusher interface {
	// FlushUDP is called when no datagram follows at once on those that
	// ServeUDP has taken. Packet tempo: it must not block. Where a device has
	// several queues, it is called by each of their readers, also while others
	// are in ServeUDP: it may send on what those have brought, too.
	FlushUDP()
}

// DatagramDevice is what a [SuperDevice] also is that passes rows of datagrams as
// one super-segment, and that tells when there is nothing to read.
type DatagramDevice interface {
	SuperDevice

	// SuperDatagrams says that packets of VIRTIO_NET_HDR_GSO_UDP_L4 are read
	// and may be written.
	SuperDatagrams() bool

	// OnIdle has f called by each ReadSuper that finds nothing, before it
	// blocks.
	OnIdle(f func())
}

// maxBurst is how many packets of datagrams are read before those that came first
// are sent on, however many follow: less than a millisecond's work.
const maxBurst = 64

// burst is what a read loop knows of the datagrams that it reads in a row. They
// do not pass through netstack, but for those that it has to put together first
// or to judge.
type burst struct {
	s     *Stack
	flush func()
	n     int    // packets since the last flush
	told  bool   // somebody calls flush when there is nothing to read
	whole []byte // for packets that come in several buffers; grows to 64 KiB
}

func (s *Stack) newBurst() *burst {
	b := &burst{s: s}
	b.flush = func() {
		if b.n > 0 {
			b.n = 0
			s.flushUDP()
		}
	}
	return b
}

// flushUDP has the handler send on what it has taken.
func (s *Stack) flushUDP() {
	if s.flusher != nil {
		s.flusher.FlushUDP()
	}
}

// end is called behind a packet of datagrams: they are sent on at once if nobody
// would do it later. Packet tempo.
func (b *burst) end() {
	if !b.told || b.n >= maxBurst {
		b.flush()
	}
}

// takeSuper takes a packet of a SuperDevice, of n bytes in bufs behind its header,
// and says whether it has: see take. Packet tempo.
func (b *burst) takeSuper(head []byte, bufs [][]byte, n int) bool {
	p := bufs[0]
	if !isUDP(p[:min(n, len(p))]) {
		b.flush()
		return false
	}
	if n <= len(p) {
		p = p[:n]
	} else {
		b.whole = b.whole[:0]
		for _, buf := range bufs {
			b.whole = append(b.whole, buf[:min(n, len(buf))]...)
			if n -= len(buf); n <= 0 {
				break
			}
		}
		p = b.whole
	}
	if head[1] == vnetUDP {
		b.takeRow(p, int(binary.NativeEndian.Uint16(head[6:])), int(binary.NativeEndian.Uint16(head[4:])))
		b.end()
		return true
	}
	return b.take(p, head[0]&(vnetNeedsChecksum|vnetDataValid) != 0)
}

// isUDP says whether p may be a datagram, or several.
func isUDP(p []byte) bool {
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		return p[9] == uint8(header.UDPProtocolNumber)
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		return p[6] != uint8(header.TCPProtocolNumber)
	}
	return false
}

// take takes p if it is a whole datagram, directly behind its IP header, from one
// host to another. Whatever is different, or wrong, is left to netstack; what was
// taken before is sent on then. summed says that the checksum need not be looked
// at. Packet tempo.
func (b *burst) take(p []byte, summed bool) bool {
	ip, length := 0, 0
	switch {
	case len(p) >= header.IPv4MinimumSize+header.UDPMinimumSize && p[0] == 4<<4|header.IPv4MinimumSize/4 && p[9] == uint8(header.UDPProtocolNumber):
		h := header.IPv4(p)
		if h.More() || h.FragmentOffset() != 0 || !h.IsChecksumValid() {
			break
		}
		ip, length = header.IPv4MinimumSize, int(h.TotalLength())-header.IPv4MinimumSize
	case len(p) >= header.IPv6MinimumSize+header.UDPMinimumSize && p[0]>>4 == 6 && p[6] == uint8(header.UDPProtocolNumber):
		ip, length = header.IPv6MinimumSize, int(header.IPv6(p).PayloadLength())
	}
	if ip == 0 || length < header.UDPMinimumSize || ip+length > len(p) {
		b.flush()
		return false
	}
	src, dst := addrPorts(p, ip)
	h := header.UDP(p[ip:][:length])
	end := int(h.Length())
	if end < header.UDPMinimumSize || end > length || !deliverable(src, dst) || !(summed || udpSummed(h[:end], src.Addr(), dst.Addr())) {
		b.flush()
		return false
	}
	s := b.s
	s.datagrams.Add(1)
	if !s.opts.Handler.ServeUDP(src, dst, h[header.UDPMinimumSize:end]) {
		// RFC 1812 §4.3.2.3: as much of the packet as fits into 576 bytes.
		const quoted = 576 - header.IPv4MinimumSize - header.ICMPv4MinimumSize
		s.writeUnreachable(dst.Addr(), src.Addr(), unreachableCode(syscall.ECONNREFUSED, src.Addr().Is4(), true), p[:min(ip+length, quoted)])
	}
	b.n++
	b.end()
	return true
}

// takeRow takes datagrams that a client sent as one: of size bytes each, the last
// may be shorter, behind the headers of the whole, UDP's at udp. Packet tempo.
func (b *burst) takeRow(p []byte, udp, size int) {
	s := b.s
	least := header.IPv4MinimumSize
	if p[0]>>4 == 6 {
		least = header.IPv6MinimumSize
	}
	if udp < least || udp+header.UDPMinimumSize > len(p) || size == 0 {
		s.badDatagrams.Add(1)
		return
	}
	src, dst := addrPorts(p, udp)
	if !deliverable(src, dst) {
		return
	}
	b.n++
	for payload := p[udp+header.UDPMinimumSize:]; len(payload) > 0; {
		n := min(size, len(payload))
		s.datagrams.Add(1)
		if !s.opts.Handler.ServeUDP(src, dst, payload[:n]) {
			s.RefuseUDP(src, dst, n, syscall.ECONNREFUSED) // once: it was one call
			return
		}
		payload = payload[n:]
	}
}

// addrPorts returns where a datagram comes from and goes to, whose UDP header is
// at udp.
func addrPorts(p []byte, udp int) (src, dst netip.AddrPort) {
	h := header.UDP(p[udp:])
	if p[0]>>4 == 4 {
		src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:])), h.SourcePort())
		return src, netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:])), h.DestinationPort())
	}
	src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[8:])), h.SourcePort())
	return src, netip.AddrPortFrom(netip.AddrFrom16([16]byte(p[24:])), h.DestinationPort())
}

// deliverable says what netstack would: loopback addresses do not come by an
// interface (RFC 1122 §3.2.1.3 g).
func deliverable(src, dst netip.AddrPort) bool {
	return src.Port() != 0 && dst.Port() != 0 && servable(src.Addr(), dst.Addr()) &&
		!src.Addr().IsLoopback() && !dst.Addr().IsLoopback()
}

// udpSummed says whether the checksum of a datagram is right, or, over IPv4, left
// out.
func udpSummed(h header.UDP, src, dst netip.Addr) bool {
	if h.Checksum() == 0 {
		return src.Is4()
	}
	return checksum.Checksum(h, pseudoSum(src, dst, len(h))) == 0xffff
}

// pseudoSum is the checksum of the pseudo-header of a datagram of so many bytes,
// UDP header included.
func pseudoSum(src, dst netip.Addr, length int) uint16 {
	var b [2*16 + 4]byte
	n := 0
	if src.Is4() {
		a, z := src.As4(), dst.As4()
		n += copy(b[n:], a[:])
		n += copy(b[n:], z[:])
	} else {
		a, z := src.As16(), dst.As16()
		n += copy(b[n:], a[:])
		n += copy(b[n:], z[:])
	}
	b[n+1] = uint8(header.UDPProtocolNumber)
	binary.BigEndian.PutUint16(b[n+2:], uint16(length))
	return checksum.Checksum(b[:n+4], 0)
}
