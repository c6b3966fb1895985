package stack

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// sumPacket makes a packet with a right checksum, of the protocol's plain header
// and n bytes of payload.
func sumPacket(rnd *rand.Rand, is4 bool, proto tcpip.TransportProtocolNumber, n int) []byte {
	src, dst := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.0.2.1")
	if !is4 {
		src, dst = netip.MustParseAddr("fd00::2"), netip.MustParseAddr("2001:db8::1")
	}
	head := header.TCPMinimumSize
	if proto == header.UDPProtocolNumber {
		head = header.UDPMinimumSize
	}
	segment := make([]byte, head+n)
	for i := range segment {
		segment[i] = byte(rnd.Uint32())
	}
	field := header.TCPChecksumOffset
	if proto == header.UDPProtocolNumber {
		field = udpChecksumOffset
		header.UDP(segment).SetLength(uint16(len(segment)))
	} else {
		header.TCP(segment).SetDataOffset(header.TCPMinimumSize)
	}
	segment[field], segment[field+1] = 0, 0
	sum := header.PseudoHeaderChecksum(proto, toAddr(src), toAddr(dst), uint16(len(segment)))
	sum = ^checksum.Checksum(segment, sum)
	if sum == 0 && proto == header.UDPProtocolNumber {
		sum = 0xffff
	}
	segment[field], segment[field+1] = byte(sum>>8), byte(sum)
	if is4 {
		return append(appendIPv4(nil, src, dst, proto, len(segment)), segment...)
	}
	return append(appendIPv6(nil, src, dst, proto, len(segment)), segment...)
}

// withOptions puts hop-by-hop and destination options before what an IPv6 packet carries.
func withOptions(p []byte) []byte {
	ip := header.IPv6(append([]byte(nil), p[:header.IPv6MinimumSize]...))
	options := make([]byte, 8+24)
	options[0], options[1] = byte(header.IPv6DestinationOptionsExtHdrIdentifier), 0
	options[2], options[3] = 1, 4 // PadN
	options[8], options[9] = ip.NextHeader(), 2
	options[10], options[11] = 1, 20
	ip.SetNextHeader(uint8(header.IPv6HopByHopOptionsExtHdrIdentifier))
	ip.SetPayloadLength(ip.PayloadLength() + uint16(len(options)))
	return append(append(ip, options...), p[header.IPv6MinimumSize:]...)
}

// inViews cuts b as the device's buffers would.
func inViews(b []byte) *buffer.Buffer {
	var p buffer.Buffer
	for _, size := range viewSizes {
		n := min(size, len(b))
		if n == 0 {
			break
		}
		_ = p.Append(buffer.NewViewWithData(b[:n]))
		b = b[n:]
	}
	return &p
}

func TestVerifiedTellsWrongChecksums(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, is4 := range []bool{true, false} {
		for _, proto := range []tcpip.TransportProtocolNumber{header.TCPProtocolNumber, header.UDPProtocolNumber} {
			for _, n := range []int{0, 1, 2, 1459, 1460, 2047, 2048, 2049, 20001, 60000} {
				p := sumPacket(rnd, is4, proto, n)
				check := func(what string, p []byte, want bool) {
					t.Helper()
					b := inViews(p)
					defer b.Release()
					size := b.Size()
					if got := verified(b); got != want {
						t.Errorf("IPv4 %v, protocol %d, %d bytes, %s: verified = %v, want %v", is4, proto, n, what, got, want)
					}
					if b.Size() != size {
						t.Errorf("verified changed the packet: %d bytes, was %d", b.Size(), size)
					}
				}
				check("as made", p, true)
				if !is4 {
					check("behind options", withOptions(p), true)
					bad := withOptions(p)
					bad[len(bad)-1-rnd.IntN(n+1)] ^= 1 << rnd.IntN(8)
					check("behind options, with a bit turned", bad, false)
				}
				check("padded", append(append([]byte(nil), p...), 1, 2, 3), true)
				ip := header.IPv6MinimumSize
				if is4 {
					ip = header.IPv4MinimumSize
				}
				for range 10 { // one bit somewhere in what is summed, not the lengths
					bad := append([]byte(nil), p...)
					i := ip + rnd.IntN(len(p)-ip)
					if proto == header.UDPProtocolNumber && i >= ip+6 && i < ip+8 {
						continue // may become "not computed"
					}
					bad[i] ^= 1 << rnd.IntN(8)
					check("with a bit turned", bad, false)
				}
				if is4 && proto == header.UDPProtocolNumber {
					none := append([]byte(nil), p...)
					none[ip+6], none[ip+7] = 0, 0
					check("without a checksum", none, true)
				}
			}
		}
	}
}

// TestManyPieces: a segment that netstack has put together of many small writes is
// written whole, however many they are.
func TestManyPieces(t *testing.T) {
	d := newRowDevice()
	s := serve(t, d, &takenUDP{})
	for _, n := range []int{1, maxPieces - 1, maxPieces, 1024, 3000} {
		var payload buffer.Buffer
		var want []byte
		for i := range n {
			piece := []byte{byte(i), byte(i >> 8)}
			want = append(want, piece...)
			one := buffer.MakeWithData(piece)
			payload.Merge(&one) // as netstack does
		}
		pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{ReserveHeaderBytes: 40, Payload: payload})
		head := pkt.NetworkHeader().Push(40)
		for i := range head {
			head[i] = 0xfe
		}
		var list gstack.PacketBufferList
		list.PushBack(pkt)
		if sent, err := s.link.WritePackets(list); sent != 1 || err != nil {
			t.Fatalf("%d pieces: %d packets are sent, %v", n, sent, err)
		}
		pkt.DecRef()
		d.mu.Lock()
		got := d.out[len(d.out)-1]
		d.mu.Unlock()
		if want = bytes.Join([][]byte{make([]byte, superHeader), bytes.Repeat([]byte{0xfe}, 40), want}, nil); !bytes.Equal(got, want) {
			t.Errorf("%d pieces: %d bytes are written, want %d", n, len(got), len(want))
		}
	}
}

func TestVerifiedTakesWhatItCannotJudge(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	p := sumPacket(rnd, true, header.TCPProtocolNumber, 100)
	fragment := append([]byte(nil), p...)
	fragment[6] |= 0x20 // more fragments
	fragment[60] ^= 1
	icmp := append([]byte(nil), p...)
	icmp[9] = byte(header.ICMPv4ProtocolNumber)
	for name, p := range map[string][]byte{"fragment": fragment, "ICMP": icmp, "cut short": p[:30], "not IP": {0xff, 1, 2}} {
		b := inViews(p)
		if !verified(b) {
			t.Errorf("%s: refused, want it left to netstack", name)
		}
		b.Release()
	}
}

func FuzzVerified(f *testing.F) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, is4 := range []bool{true, false} {
		f.Add(sumPacket(rnd, is4, header.TCPProtocolNumber, 10))
		f.Add(sumPacket(rnd, is4, header.UDPProtocolNumber, 3000))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 || len(p) > maxSuper {
			return
		}
		b := inViews(p)
		defer b.Release()
		verified(b)
		if got := b.Flatten(); string(got) != string(p) {
			t.Errorf("verified changed the packet")
		}
	})
}
