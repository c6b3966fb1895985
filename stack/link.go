package stack

import (
	"fmt"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// link is netstack's end of a [Device]. It blocks while the device is full:
// packets lost here would cost the flows that they belong to many times their
// number.
//
// This file has the plain way, which every device has: one whole packet at a
// time, checksums complete. super.go has the other, of a [SuperDevice].
type link struct {
	dev      Device
	super    SuperDevice // nil: the plain way
	queues   QueueDevice // super, where it has several; else nil
	rows     bool        // super passes rows of datagrams as one
	mtu      uint32
	headroom int

	dispatcher gstack.NetworkDispatcher // set by Attach before the first packet
	attached   atomic.Bool
	frames     sync.Pool // of *frame

	packetsIn, packetsOut, badPackets atomic.Uint64
}

// frame is a packet on its way out, behind the device's headroom.
type frame struct {
	buf  []byte
	list [1][]byte // what Device.Write takes; here so that a write allocates nothing
}

var _ gstack.LinkEndpoint = (*link)(nil)

// minMTU is IPv6's smallest (RFC 8200 §5).
const minMTU = 1280

func newLink(dev Device, headroom int) (*link, error) {
	mtu := dev.MTU()
	if mtu < minMTU || mtu > 65535 {
		return nil, fmt.Errorf("device MTU %d is not within %d and 65535", mtu, minMTU)
	}
	l := &link{dev: dev, mtu: uint32(mtu), headroom: headroom}
	if super, ok := dev.(SuperDevice); ok {
		l.super, l.headroom = super, superHeader
		if d, ok := super.(DatagramDevice); ok {
			l.rows = d.SuperDatagrams()
		}
		if q, ok := super.(QueueDevice); ok && q.Queues() > 1 {
			l.queues = q
		}
	}
	headroom = l.headroom
	l.frames.New = func() any { return &frame{buf: make([]byte, 0, headroom+mtu)} }
	return l, nil
}

// readers is how many goroutines read the device: one for each queue.
func (l *link) readers() int {
	if l.queues != nil {
		return l.queues.Queues()
	}
	return 1
}

// readLoop delivers the packets of a queue until the device fails, and returns
// its error. before sees each packet first, on packet tempo, but for the
// datagrams, which are the burst's.
func (l *link) readLoop(queue int, before func(packet []byte), datagrams *burst) error {
	if l.super != nil {
		return l.readSuperLoop(queue, before, datagrams)
	}
	datagrams.told = true
	batch := max(l.dev.BatchSize(), 1)
	bufs := make([][]byte, batch)
	sizes := make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, l.headroom+int(l.mtu))
	}
	for {
		n, err := l.dev.Read(bufs, sizes, l.headroom)
		for i := range n {
			p := bufs[i][l.headroom:][:sizes[i]]
			l.packetsIn.Add(1)
			if datagrams.take(p, false) {
				continue
			}
			before(p)
			l.deliver(buffer.MakeWithData(p))
		}
		datagrams.flush()
		if err != nil {
			return err
		}
	}
}

// deliver hands a packet to netstack, and takes it over.
func (l *link) deliver(p buffer.Buffer) {
	var proto tcpip.NetworkProtocolNumber
	first, ok := p.PullUp(0, 1)
	if !ok {
		l.badPackets.Add(1)
		return
	}
	switch header.IPVersion(first.AsSlice()) {
	case header.IPv4Version:
		proto = header.IPv4ProtocolNumber
	case header.IPv6Version:
		proto = header.IPv6ProtocolNumber
	default:
		l.badPackets.Add(1)
		p.Release()
		return
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: p})
	l.dispatcher.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets implements gstack.LinkWriter.
func (l *link) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if l.super != nil {
			if err := l.writeSuper(pkt); err != nil {
				return sent, &tcpip.ErrClosedForSend{}
			}
			sent++
			continue
		}
		f := l.frame()
		for _, v := range pkt.AsSlices() {
			f.buf = append(f.buf, v...)
		}
		if err := l.send(f); err != nil {
			return sent, &tcpip.ErrClosedForSend{}
		}
		sent++
	}
	return sent, nil
}

// frame returns an empty frame: append the packet to its buf, then send it.
func (l *link) frame() *frame {
	f := l.frames.Get().(*frame)
	f.buf = f.buf[:l.headroom]
	clear(f.buf) // a virtio-net header of zeros: nothing left to do
	return f
}

// send writes f and takes it back. It blocks while the device is full.
func (l *link) send(f *frame) error {
	f.list[0] = f.buf
	var err error
	if l.super != nil {
		err = l.super.WriteSuper(f.list[:])
	} else {
		_, err = l.dev.Write(f.list[:], l.headroom)
	}
	l.frames.Put(f)
	if err != nil {
		return err
	}
	l.packetsOut.Add(1)
	return nil
}

// The rest of gstack.LinkEndpoint.

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.attached.Load() }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*gstack.PacketBuffer)          {}
func (l *link) ParseHeader(*gstack.PacketBuffer) bool   { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

// Capabilities implements gstack.NetworkLinkEndpoint. Of a SuperDevice the
// checksums have been looked at before netstack sees a packet.
func (l *link) Capabilities() gstack.LinkEndpointCapabilities {
	if l.super == nil {
		return 0
	}
	return gstack.CapabilityRXChecksumOffload
}

// Attach implements gstack.NetworkLinkEndpoint; a nil dispatcher detaches.
func (l *link) Attach(d gstack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
	}
	l.attached.Store(d != nil)
}
