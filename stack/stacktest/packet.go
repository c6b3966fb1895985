package stacktest

import (
	"encoding/binary"
	"net/netip"
)

// The flags of a TCP header (RFC 9293 §3.1).
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// IP protocol numbers.
const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoFrag6 = 44
	protoICMP6 = 58
)

// Segment is a TCP segment to be made. Options are padded to a multiple of four
// bytes.
type Segment struct {
	Src, Dst netip.AddrPort
	Flags    uint8
	Seq, Ack uint32
	Window   uint16
	Options  []byte
	Payload  []byte
}

// Packet returns the segment as an IP packet.
func (s Segment) Packet() []byte {
	options := append([]byte(nil), s.Options...)
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := make([]byte, 20, 20+len(options)+len(s.Payload))
	binary.BigEndian.PutUint16(b[0:], s.Src.Port())
	binary.BigEndian.PutUint16(b[2:], s.Dst.Port())
	binary.BigEndian.PutUint32(b[4:], s.Seq)
	binary.BigEndian.PutUint32(b[8:], s.Ack)
	b[12] = uint8(20+len(options)) / 4 << 4
	b[13] = s.Flags
	binary.BigEndian.PutUint16(b[14:], s.Window)
	b = append(append(b, options...), s.Payload...)
	binary.BigEndian.PutUint16(b[16:], ^Checksum(b, pseudo(s.Src.Addr(), s.Dst.Addr(), protoTCP, len(b))))
	return IP(s.Src.Addr(), s.Dst.Addr(), protoTCP, b)
}

// Datagram returns a UDP datagram as an IP packet, however long.
func Datagram(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	sum := ^Checksum(b, pseudo(src.Addr(), dst.Addr(), protoUDP, len(b)))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return IP(src.Addr(), dst.Addr(), protoUDP, b)
}

// Echo returns an ICMP echo request as an IP packet.
func Echo(src, dst netip.Addr, id, seq uint16, data []byte) []byte {
	b := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	b = append(b, data...)
	if src.Is4() {
		b[0] = 8
		binary.BigEndian.PutUint16(b[2:], ^Checksum(b, 0))
		return IP(src, dst, protoICMP, b)
	}
	b[0] = 128
	binary.BigEndian.PutUint16(b[2:], ^Checksum(b, pseudo(src, dst, protoICMP6, len(b))))
	return IP(src, dst, protoICMP6, b)
}

// IP returns an IPv4 or IPv6 packet without options, with a TTL of 64.
func IP(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	var b []byte
	if src.Is4() {
		b = make([]byte, 20)
		b[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
		b[8], b[9] = 64, proto
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^Checksum(b, 0))
	} else {
		b = make([]byte, 40)
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b[6], b[7] = proto, 64
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
	}
	return append(b, payload...)
}

// Fragments cuts a packet of [IP] into fragments of at most mtu bytes, all with
// the given identification (RFC 791 §3.2, RFC 8200 §4.5).
func Fragments(packet []byte, id uint16, mtu int) [][]byte {
	is4 := packet[0]>>4 == 4
	header, rest := packet[:40:40], packet[40:]
	overhead := 40 + 8
	if is4 {
		header, rest = packet[:20:20], packet[20:]
		overhead = 20
	}
	size := (mtu - overhead) &^ 7
	var all [][]byte
	for offset := 0; offset < len(rest); offset += size {
		piece := rest[offset:min(offset+size, len(rest))]
		more := uint16(0)
		if offset+size < len(rest) {
			more = 1
		}
		f := append([]byte(nil), header...)
		if is4 {
			binary.BigEndian.PutUint16(f[2:], uint16(20+len(piece)))
			binary.BigEndian.PutUint16(f[4:], id)
			binary.BigEndian.PutUint16(f[6:], more<<13|uint16(offset/8))
			binary.BigEndian.PutUint16(f[10:], 0)
			binary.BigEndian.PutUint16(f[10:], ^Checksum(f, 0))
		} else {
			binary.BigEndian.PutUint16(f[4:], uint16(8+len(piece)))
			f = append(f, f[6], 0)
			f = binary.BigEndian.AppendUint16(f, uint16(offset)|more)
			f = binary.BigEndian.AppendUint32(f, uint32(id))
			f[6] = protoFrag6
		}
		all = append(all, append(f, piece...))
	}
	return all
}

// Checksum adds b to a partial Internet checksum (RFC 1071), without the final
// complement: it is 0xffff over a message whose checksum is right.
func Checksum(b []byte, partial uint16) uint16 {
	sum := uint32(partial)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
		sum = sum&0xffff + sum>>16
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// pseudo returns the partial checksum of the pseudo header of n bytes
// (RFC 9293 §3.1, RFC 8200 §8.1).
func pseudo(src, dst netip.Addr, proto uint8, n int) uint16 {
	sum := Checksum(dst.AsSlice(), Checksum(src.AsSlice(), 0))
	return Checksum([]byte{0, proto, byte(n >> 8), byte(n)}, sum)
}

// TransportChecksum returns the checksum over a packet of [IP]'s shape and its
// pseudo header: 0xffff where it is right.
func TransportChecksum(packet []byte) uint16 {
	src, dst, proto, payload := netip.Addr{}, netip.Addr{}, uint8(0), []byte(nil)
	if packet[0]>>4 == 4 {
		src, _ = netip.AddrFromSlice(packet[12:16])
		dst, _ = netip.AddrFromSlice(packet[16:20])
		proto, payload = packet[9], packet[20:]
	} else {
		src, _ = netip.AddrFromSlice(packet[8:24])
		dst, _ = netip.AddrFromSlice(packet[24:40])
		proto, payload = packet[6], packet[40:]
	}
	if proto == protoICMP {
		return Checksum(payload, 0)
	}
	return Checksum(payload, pseudo(src, dst, proto, len(payload)))
}
