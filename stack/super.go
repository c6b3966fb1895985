package stack

import (
	"encoding/binary"
	"errors"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// SuperDevice is what a [Device] also is where it passes TCP super-segments,
// each packet behind a virtio-net header of 10 bytes in the byte order of the
// machine (struct virtio_net_hdr in include/uapi/linux/virtio_net.h). The stack
// uses these methods instead of Read and Write then.
type SuperDevice interface {
	Device

	// ReadSuper blocks until there is a packet and reads header and packet
	// into bufs, one after the other. It returns the length of both.
	ReadSuper(bufs [][]byte) (int, error)

	// WriteSuper sends the packet that bufs hold behind its header. It
	// blocks while the device is full, does not keep bufs and is safe for
	// concurrent use.
	WriteSuper(bufs [][]byte) error
}

// QueueDevice is what a [SuperDevice] also is that has several queues to be read,
// each by a goroutine of its own. The packets of a flow come by one of them.
type QueueDevice interface {
	SuperDevice

	// Queues returns how many there are. It never changes.
	Queues() int

	// ReadQueue is ReadSuper of one queue, 0 to Queues()-1.
	ReadQueue(queue int, bufs [][]byte) (int, error)

	// OnQueueIdle has f called by each ReadQueue of that queue that finds
	// nothing, before it blocks: see [DatagramDevice].
	OnQueueIdle(queue int, f func())
}

// superHeader is the length of a virtio-net header.
const superHeader = 10

// What the header says (virtio_net.h).
const (
	vnetNeedsChecksum = 1 // the checksum field has the sum of the pseudo-header only
	vnetDataValid     = 2 // the checksum has been verified
	vnetTCP4          = 1
	vnetTCP6          = 4
	vnetUDP           = 5 // of either family: a row of datagrams
)

// udpChecksumOffset is that of RFC 768; header has TCP's only.
const udpChecksumOffset = 6

// maxSuper is the largest packet: what the length of an IP header can say.
const maxSuper = 65535

// viewSizes are the buffers that a packet is read into, one after the other. A
// packet keeps those that it reaches: an ACK 2 KiB, most packets of a gateway
// as well, and only a full super-segment all of them. With one buffer of 64 KiB
// a segment of 3,000 bytes would hold twenty times its size in a receive queue.
var viewSizes = [...]int{2 << 10, 16 << 10, 64 << 10}

// readSuperLoop is readLoop for a SuperDevice.
func (l *link) readSuperLoop(queue int, before func(packet []byte), datagrams *burst) error {
	read := l.super.ReadSuper
	if l.queues != nil {
		datagrams.told = true
		l.queues.OnQueueIdle(queue, datagrams.flush)
		read = func(bufs [][]byte) (int, error) { return l.queues.ReadQueue(queue, bufs) }
	} else if d, ok := l.super.(DatagramDevice); ok {
		datagrams.told = true
		d.OnIdle(datagrams.flush)
	}
	var head [superHeader]byte
	var views [len(viewSizes)]*buffer.View
	bufs := make([][]byte, 1+len(views))
	bufs[0] = head[:]
	defer func() {
		for _, v := range views {
			if v != nil {
				v.Release()
			}
		}
	}()
	for {
		for i, size := range viewSizes {
			if views[i] == nil {
				views[i] = buffer.NewViewSize(size)
			}
			bufs[1+i] = views[i].AsSlice()
		}
		n, err := read(bufs)
		if err != nil {
			return err
		}
		l.packetsIn.Add(1)
		if n <= superHeader {
			l.badPackets.Add(1)
			continue
		}
		if datagrams.takeSuper(head[:], bufs[1:], n-superHeader) {
			continue
		}
		var packet buffer.Buffer
		first := true
		for rest, i := n-superHeader, 0; rest > 0; i++ {
			v := views[i]
			views[i] = nil
			if v.Size() > rest {
				v.CapLength(rest)
			}
			if first {
				before(v.AsSlice())
				first = false
			}
			rest -= v.Size()
			_ = packet.Append(v)
		}
		if head[0]&(vnetNeedsChecksum|vnetDataValid) == 0 && !verified(&packet) {
			l.badPackets.Add(1)
			packet.Release()
			continue
		}
		l.deliver(packet)
	}
}

// verified checks the checksum of a TCP segment or a UDP datagram. It says true
// of what has none: another protocol; a fragment, which has only a part of what
// is summed; UDP over IPv4 with a zero.
//
// netstack is told that all checksums are good, since it can only be told so for
// all packets.
func verified(packet *buffer.Buffer) bool {
	headers, ok := packet.PullUp(0, min(int(packet.Size()), header.IPv6MinimumSize+header.TCPMinimumSize))
	if !ok {
		return false
	}
	h := headers.AsSlice()
	var proto tcpip.TransportProtocolNumber
	var src, dst tcpip.Address
	var at, end int // of the transport's part
	switch {
	case header.IPVersion(h) == header.IPv4Version && len(h) >= header.IPv4MinimumSize:
		ip := header.IPv4(h)
		if ip.More() || ip.FragmentOffset() != 0 {
			return true
		}
		proto, src, dst = tcpip.TransportProtocolNumber(ip.Protocol()), ip.SourceAddress(), ip.DestinationAddress()
		at, end = int(ip.HeaderLength()), int(ip.TotalLength())
	case header.IPVersion(h) == header.IPv6Version && len(h) >= header.IPv6MinimumSize:
		ip := header.IPv6(h)
		proto, src, dst = tcpip.TransportProtocolNumber(ip.NextHeader()), ip.SourceAddress(), ip.DestinationAddress()
		at, end = header.IPv6MinimumSize, header.IPv6MinimumSize+int(ip.PayloadLength())
		proto, at = behindOptions(packet, proto, at)
	default:
		return true // netstack refuses it
	}
	var field, least int
	switch proto {
	case header.TCPProtocolNumber:
		field, least = header.TCPChecksumOffset, header.TCPMinimumSize
	case header.UDPProtocolNumber:
		field, least = udpChecksumOffset, header.UDPMinimumSize
	default:
		return true
	}
	if end > int(packet.Size()) || at+least > end {
		return true // netstack refuses it
	}
	// Whatever is behind the length that IP has is padding.
	part := packet.Clone()
	defer part.Release()
	part.Truncate(int64(end))
	part.TrimFront(int64(at))
	if proto == header.UDPProtocolNumber && src.BitLen() == 32 {
		sum, ok := part.PullUp(field, 2)
		if ok && binary.BigEndian.Uint16(sum.AsSlice()) == 0 {
			return true // RFC 768: not computed
		}
	}
	sum := header.PseudoHeaderChecksum(proto, src, dst, uint16(end-at))
	sum = checksum.Combine(sum, part.Checksum(0))
	return sum == 0xffff
}

// behindOptions returns what is behind the headers of options of an IPv6 packet, of which
// the first is at. Behind any other header there may be a fragment, or anything.
func behindOptions(packet *buffer.Buffer, proto tcpip.TransportProtocolNumber, at int) (tcpip.TransportProtocolNumber, int) {
	const hopByHop, destination = tcpip.TransportProtocolNumber(header.IPv6HopByHopOptionsExtHdrIdentifier), tcpip.TransportProtocolNumber(header.IPv6DestinationOptionsExtHdrIdentifier)
	for proto == hopByHop || proto == destination {
		h, ok := packet.PullUp(at, 2)
		if !ok {
			return hopByHop, at // netstack refuses it
		}
		proto, at = tcpip.TransportProtocolNumber(h.AsSlice()[0]), at+8*(1+int(h.AsSlice()[1])) // RFC 8200 §4.3
	}
	return proto, at
}

// superWrite is a packet on its way out.
type superWrite struct {
	head [superHeader]byte
	bufs [][]byte
	flat []byte // bufs in one piece, where they are too many
}

// maxPieces is how many pieces of a packet the device is given as they are. What was
// sent in small writes while the window was shut netstack puts together into one
// segment, which has a piece for each of them; the kernel takes 1,024 (UIO_MAXIOV in
// include/uapi/linux/uio.h), and long before that a copy costs less.
const maxPieces = 128

var superWrites = sync.Pool{New: func() any { return &superWrite{bufs: make([][]byte, 0, 16)} }}

// writeSuper sends a packet of netstack, of up to 64 KiB, which the kernel cuts
// into segments if and when it must.
func (l *link) writeSuper(pkt *gstack.PacketBuffer) error {
	w := superWrites.Get().(*superWrite)
	defer superWrites.Put(w)
	w.head = [superHeader]byte{}
	if gso := &pkt.GSOOptions; gso.Type != gstack.GSONone {
		native := binary.NativeEndian
		if gso.NeedsCsum {
			w.head[0] = vnetNeedsChecksum
			native.PutUint16(w.head[6:], gso.L3HdrLen)
			native.PutUint16(w.head[8:], gso.CsumOffset)
		}
		if pkt.Data().Size() > int(gso.MSS) {
			switch gso.Type {
			case gstack.GSOTCPv4:
				w.head[1] = vnetTCP4
			case gstack.GSOTCPv6:
				w.head[1] = vnetTCP6
			default:
				return errGSOType
			}
			native.PutUint16(w.head[2:], uint16(pkt.HeaderSize()))
			native.PutUint16(w.head[4:], gso.MSS)
		}
	}
	w.bufs = append(w.bufs[:0], w.head[:])
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if offset >= len(b) {
			offset -= len(b)
			continue
		}
		w.bufs = append(w.bufs, b[offset:])
		offset = 0
	}
	if len(w.bufs) > maxPieces {
		w.flat = w.flat[:0]
		for _, b := range w.bufs {
			w.flat = append(w.flat, b...)
		}
		clear(w.bufs)
		w.bufs = append(w.bufs[:0], w.flat)
	}
	err := l.super.WriteSuper(w.bufs)
	clear(w.bufs)
	if err != nil {
		return err
	}
	l.packetsOut.Add(1)
	return nil
}

var errGSOType = errors.New("segmentation of an unknown type")

// GSOMaxSize implements gstack.GSOEndpoint.
func (l *link) GSOMaxSize() uint32 { return maxSuper }

// SupportedGSO implements gstack.GSOEndpoint.
func (l *link) SupportedGSO() gstack.SupportedGSO {
	if l.super == nil {
		return gstack.GSONotSupported
	}
	return gstack.HostGSOSupported
}
