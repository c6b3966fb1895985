package stack

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// MaxDatagram is the largest UDP payload over IPv4, in bytes (65,535 less the
// headers). Over IPv6 it is 20 bytes more; nobody sends those.
const MaxDatagram = 65507

// maxRow is how many datagrams go out as one super-segment: UDP_MAX_SEGMENTS of
// kernels before 6.9 (include/linux/udp.h).
const maxRow = 64

// WriteUDP sends payload to the client at to, as if from had sent it. It does not
// keep payload, blocks while the device is full, and fragments what is longer
// than the MTU. The addresses must be of one family, else it returns
// EAFNOSUPPORT; a payload over [MaxDatagram] is EMSGSIZE; after Run it returns
// an error that Is net.ErrClosed.
func (s *Stack) WriteUDP(payload []byte, from, to netip.AddrPort) error {
	n := s.net.Load()
	if n == nil {
		return errNotRunning
	}
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	if src.BitLen() != dst.BitLen() || src.BitLen() == 0 {
		return syscall.EAFNOSUPPORT
	}
	if len(payload) > MaxDatagram {
		return syscall.EMSGSIZE
	}
	from, to = netip.AddrPortFrom(src, from.Port()), netip.AddrPortFrom(dst, to.Port())
	length := header.UDPMinimumSize + len(payload)
	if ipSize(src)+length > int(s.link.mtu) {
		proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
		if src.Is6() {
			proto = header.IPv6ProtocolNumber
		}
		var udp [header.UDPMinimumSize]byte
		encodeUDP(udp[:], from, to, length, completeSum(payload, pseudoSum(src, dst, length), from, to, length))
		return writeFragmented(n, proto, header.UDPProtocolNumber, src, dst, udp[:], payload)
	}
	if s.link.super != nil {
		w := rowWrites.Get().(*rowWrite)
		w.bufs = append(w.bufs[:1], payload)
		err := s.link.writeRow(w, from, to, len(payload), 0)
		w.put()
		return err
	}
	f := s.link.frame()
	f.buf = appendIP(f.buf, src, dst, length)
	var udp [header.UDPMinimumSize]byte
	encodeUDP(udp[:], from, to, length, completeSum(payload, pseudoSum(src, dst, length), from, to, length))
	f.buf = append(append(f.buf, udp[:]...), payload...)
	return s.link.send(f)
}

// WriteUDPs is WriteUDP of each of payloads, in order, with fewer calls of the
// device where it passes datagrams in rows. It returns the first error; what
// follows is sent nonetheless.
func (s *Stack) WriteUDPs(payloads [][]byte, from, to netip.AddrPort) error {
	src, dst := from.Addr().Unmap(), to.Addr().Unmap()
	room := int(s.link.mtu) - ipSize(src) - header.UDPMinimumSize
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	for len(payloads) > 0 {
		n, total := row(payloads, room)
		if n == 1 || !s.link.rows || s.net.Load() == nil || src.BitLen() != dst.BitLen() {
			keep(s.WriteUDP(payloads[0], from, to))
			payloads = payloads[1:]
			continue
		}
		w := rowWrites.Get().(*rowWrite)
		w.bufs = append(w.bufs[:1], payloads[:n]...)
		keep(s.link.writeRow(w, netip.AddrPortFrom(src, from.Port()), netip.AddrPortFrom(dst, to.Port()), total, len(payloads[0])))
		w.put()
		payloads = payloads[n:]
	}
	return first
}

// row returns how many of payloads one super-segment can carry, and their bytes:
// those of one length that fits into room, and one that is shorter behind them.
func row(payloads [][]byte, room int) (n, bytes int) {
	const most = maxSuper - header.IPv6MinimumSize - header.UDPMinimumSize
	size := len(payloads[0])
	bytes = size
	if size == 0 || size > room {
		return 1, size
	}
	for n = 1; n < len(payloads) && n < maxRow; n++ {
		next := len(payloads[n])
		if next == 0 || next > size || bytes+next > most {
			break
		}
		bytes += next
		if next < size {
			return n + 1, bytes
		}
	}
	return n, bytes
}

// rowWrite is a datagram, or a row of them, on its way out: a header and the
// payloads where they are.
type rowWrite struct {
	head [superHeader + header.IPv6MinimumSize + header.UDPMinimumSize]byte
	bufs [][]byte // the first is for head
}

var rowWrites = sync.Pool{New: func() any { return &rowWrite{bufs: make([][]byte, 1, 1+maxRow)} }}

func (w *rowWrite) put() {
	clear(w.bufs)
	rowWrites.Put(w)
}

// writeRow sends the payloads in w, of total bytes: as datagrams of size bytes if
// that is not 0, else as one. The checksum is left to the kernel, which leaves it
// out where the client is on this machine.
func (l *link) writeRow(w *rowWrite, from, to netip.AddrPort, total, size int) error {
	native := binary.NativeEndian
	length := header.UDPMinimumSize + total
	ip := ipSize(from.Addr())
	head := w.head[:superHeader]
	clear(head)
	head[0] = vnetNeedsChecksum
	native.PutUint16(head[6:], uint16(ip))
	native.PutUint16(head[8:], udpChecksumOffset)
	if size != 0 {
		head[1] = vnetUDP
		native.PutUint16(head[2:], uint16(ip+header.UDPMinimumSize))
		native.PutUint16(head[4:], uint16(size))
	}
	head = appendIP(head, from.Addr(), to.Addr(), length)
	head = head[:len(head)+header.UDPMinimumSize]
	encodeUDP(head[len(head)-header.UDPMinimumSize:], from, to, length, pseudoSum(from.Addr(), to.Addr(), length))
	w.bufs[0] = head
	if err := l.super.WriteSuper(w.bufs); err != nil {
		return err
	}
	l.packetsOut.Add(1)
	return nil
}

func encodeUDP(b []byte, from, to netip.AddrPort, length int, sum uint16) {
	h := header.UDP(b)
	h.SetSourcePort(from.Port())
	h.SetDestinationPort(to.Port())
	h.SetLength(uint16(length))
	h.SetChecksum(sum)
}

// completeSum returns the checksum of a datagram, given that of its pseudo-header.
func completeSum(payload []byte, pseudo uint16, from, to netip.AddrPort, length int) uint16 {
	var udp [header.UDPMinimumSize]byte
	encodeUDP(udp[:], from, to, length, 0)
	sum := ^checksum.Checksum(payload, checksum.Checksum(udp[:], pseudo))
	if sum == 0 {
		return 0xffff // 0 says "no checksum" (RFC 768)
	}
	return sum
}

// ipSize is the length of the IP header that we put before a packet from a.
func ipSize(a netip.Addr) int {
	if a.Is4() {
		return header.IPv4MinimumSize
	}
	return header.IPv6MinimumSize
}

// appendIP appends the IP header of a datagram of so many bytes.
func appendIP(b []byte, src, dst netip.Addr, length int) []byte {
	if src.Is4() {
		return appendIPv4(b, src, dst, header.UDPProtocolNumber, length)
	}
	return appendIPv6(b, src, dst, header.UDPProtocolNumber, length)
}
