package stack_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// refusal is a row of the table of answers: what Refuse is told, what the client
// is sent, and what its connect(2) returns.
type refusal struct {
	errno          syscall.Errno
	code4, code6   uint8 // of ICMP destination unreachable
	dial4, dial6   syscall.Errno
	isReset, quiet bool
}

func refusals() []refusal {
	return []refusal{
		{errno: syscall.ECONNREFUSED, isReset: true, dial4: syscall.ECONNREFUSED, dial6: syscall.ECONNREFUSED},
		{errno: syscall.ENETUNREACH, code4: 0, code6: 0, dial4: syscall.ENETUNREACH, dial6: syscall.ENETUNREACH},
		// Of ICMPv6, netstack as a client knows "no route" and "port" only.
		{errno: syscall.EHOSTUNREACH, code4: 1, code6: 3, dial4: syscall.EHOSTUNREACH},
		{errno: syscall.EACCES, code4: 13, code6: 1, dial4: syscall.EHOSTUNREACH},
		{errno: syscall.ETIMEDOUT, code4: 1, code6: 3, dial4: syscall.EHOSTUNREACH},
		{errno: 0, quiet: true},
	}
}

// synKinds are SYNs whose answers need care.
func synKinds(fam family) map[string][]byte {
	syn := stacktest.Segment{Src: fam.client, Dst: fam.server, Flags: stacktest.SYN, Seq: 0xfffffffe, Window: 65535}
	plain := syn.Packet()
	syn.Options = []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7} // MSS, SACK, timestamps, window scale
	options := syn.Packet()
	syn.Payload = []byte("early")
	early := syn.Packet()
	kinds := map[string][]byte{"plain": plain, "options": options, "data": early}
	if fam.is4() {
		kinds["IP options"] = withOptions4(plain)
	} else {
		kinds["extension header"] = withHopByHop(plain)
	}
	return kinds
}

// withOptions4 inserts four bytes of IPv4 options.
func withOptions4(p []byte) []byte {
	b := append([]byte(nil), p[:20]...)
	b[0]++
	binary.BigEndian.PutUint16(b[2:], uint16(len(p)+4))
	b[10], b[11] = 0, 0
	b = append(b, 1, 1, 1, 0) // three no-operations and the end
	binary.BigEndian.PutUint16(b[10:], ^stacktest.Checksum(b, 0))
	return append(b, p[20:]...)
}

// withHopByHop inserts an empty hop-by-hop header.
func withHopByHop(p []byte) []byte {
	b := append([]byte(nil), p[:40]...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(p)-40+8))
	b = append(b, b[6], 0, 1, 4, 0, 0, 0, 0) // PadN
	b[6] = 0
	return append(b, p[40:]...)
}

func TestRefuse(t *testing.T) {
	for _, row := range refusals() {
		t.Run(row.errno.Error(), func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam family) {
				refused := make(chan struct{}, 1)
				w, s := onWire(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
					if r.Source() != fam.client || r.Destination() != fam.server {
						t.Errorf("request from %s to %s, want from %s to %s", r.Source(), r.Destination(), fam.client, fam.server)
					}
					r.Refuse(row.errno)
					refused <- struct{}{}
				}}, stack.Options{}, nil)
				for kind, syn := range synKinds(fam) {
					t.Run(kind, func(t *testing.T) {
						before := s.Stats().Refused
						send(t, w, syn)
						receive(t, "handler", refused)
						checkRefusal(t, w, fam, row, syn)
						if s.Stats().HalfOpen != 0 {
							t.Error("the attempt is still half-open")
						}
						if got := s.Stats().Refused - before; row.quiet != (got == 0) {
							t.Errorf("Refused counts %d", got)
						}
					})
				}
			})
		})
	}
}

func checkRefusal(t *testing.T, w *stacktest.Wire, fam family, row refusal, syn []byte) {
	t.Helper()
	// In the SYNs of synKinds the segment stands at the end.
	segment := syn[bytes.LastIndex(syn, header.TCP(parse(t, plainSYN(fam)).rest)[:12]):]
	switch {
	case row.quiet:
	case row.isReset:
		h := nextTCP(t, w, fam)
		if h.Flags() != header.TCPFlagRst|header.TCPFlagAck {
			t.Errorf("flags %s, want a RST", h.Flags())
		}
		want := uint32(0xffffffff) + uint32(len(segment)-int(header.TCP(segment).DataOffset()))
		if h.AckNumber() != want || h.SequenceNumber() != 0 {
			t.Errorf("seq %d ack %d, want 0 and %d", h.SequenceNumber(), h.AckNumber(), want)
		}
	default:
		p := next(t, w)
		if p.src != fam.server.Addr() || p.dst != fam.client.Addr() {
			t.Errorf("ICMP from %s to %s, want from %s to %s", p.src, p.dst, fam.server.Addr(), fam.client.Addr())
		}
		quoted := p.rest[8:]
		if fam.is4() {
			if p.proto != header.ICMPv4ProtocolNumber || p.rest[0] != 3 || p.rest[1] != row.code4 {
				t.Errorf("protocol %d type %d code %d, want ICMP 3/%d", p.proto, p.rest[0], p.rest[1], row.code4)
			}
			if !header.IPv4(quoted).IsChecksumValid() {
				t.Error("quoted IPv4 header is not as it was")
			}
			quoted = quoted[header.IPv4(quoted).HeaderLength():]
		} else {
			if p.proto != header.ICMPv6ProtocolNumber || p.rest[0] != 1 || p.rest[1] != row.code6 {
				t.Errorf("protocol %d type %d code %d, want ICMPv6 1/%d", p.proto, p.rest[0], p.rest[1], row.code6)
			}
			if h := header.IPv6(quoted); h.NextHeader() != uint8(header.TCPProtocolNumber) {
				t.Errorf("quoted IPv6 header says that protocol %d follows, it is TCP", h.NextHeader())
			}
			quoted = quoted[header.IPv6MinimumSize:]
		}
		if src, dst := quotedAddrs(p.rest[8:]); src != fam.client.Addr() || dst != fam.server.Addr() {
			t.Errorf("quoted packet from %s to %s, want from %s to %s", src, dst, fam.client.Addr(), fam.server.Addr())
		}
		if len(quoted) < 8 || !bytes.HasPrefix(segment, quoted) {
			t.Errorf("quoted segment % x, want at least 8 bytes of % x", quoted, segment)
		}
	}
	silent(t, w, fam)
}

// plainSYN is what all SYNs of synKinds have in common.
func plainSYN(fam family) []byte { return fam.segment(stacktest.SYN, 0xfffffffe, 0, "") }

func quotedAddrs(ip []byte) (src, dst netip.Addr) {
	if ip[0]>>4 == 4 {
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		return src, dst
	}
	src, _ = netip.AddrFromSlice(ip[8:24])
	dst, _ = netip.AddrFromSlice(ip[24:40])
	return src, dst
}

// TestRefuseReachesConnect has another implementation of TCP judge the answers.
func TestRefuseReachesConnect(t *testing.T) {
	for _, row := range refusals() {
		t.Run(row.errno.Error(), func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam family) {
				want := row.dial4
				if !fam.is4() {
					want = row.dial6
				}
				if want == 0 {
					return // the client of this test would wait; TestRefuse has the packet
				}
				host, _ := onHost(t, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) { r.Refuse(row.errno) }})
				_, err := host.DialTCP(within(t), netip.AddrPort{}, fam.server)
				if !errors.Is(err, want) {
					t.Errorf("dial: %v, want %v", err, want)
				}
			})
		})
	}
}

func TestHandlerWithoutAnswerDrops(t *testing.T) {
	fam := families()[0]
	returned := make(chan struct{}, 1)
	w, s := onWire(t, &handler{tcp: func(context.Context, *stack.TCPRequest) { returned <- struct{}{} }}, stack.Options{}, nil)
	for range 3 { // each is a new attempt
		send(t, w, fam.segment(stacktest.SYN, 1, 0, ""))
		receive(t, "handler", returned)
		eventually(t, "the attempt is over", func() bool { return s.Stats().HalfOpen == 0 })
	}
	silent(t, w, fam)
	if n := s.Stats().Refused; n != 0 {
		t.Errorf("Refused counts %d, want 0", n)
	}
}

// TestNextAttemptFollowsRefusal: a client that was refused tries again from the
// same port at once. When it hears of it, nothing of the first attempt may be in
// the way.
func TestNextAttemptFollowsRefusal(t *testing.T) {
	fam := families()[0]
	for _, e := range []syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH} {
		device := &watched{Wire: stacktest.NewWire(1500)}
		s, _ := start(t, stack.Options{
			Device:   device,
			Handler:  &handler{tcp: func(_ context.Context, r *stack.TCPRequest) { r.Refuse(e) }},
			HalfOpen: 1, HalfOpenPerSource: 1,
		}, nil)
		device.written.Store(func() {
			if n := s.Stats().HalfOpen; n != 0 {
				t.Errorf("%v: %d attempts half-open when the answer goes out, want 0", e, n)
			}
		})
		for isn := range uint32(100) {
			send(t, device.Wire, fam.segment(stacktest.SYN, isn, 0, ""))
			next(t, device.Wire)
		}
		if n := s.Stats().HalfOpenDropped; n != 0 {
			t.Errorf("%v: %d attempts dropped for the limit, want 0", e, n)
		}
	}
}

// watched is a device that calls a function before each Write.
type watched struct {
	*stacktest.Wire
	written atomic.Value // func()
}

func (w *watched) Write(bufs [][]byte, offset int) (int, error) {
	if f, ok := w.written.Load().(func()); ok {
		f()
	}
	return w.Wire.Write(bufs, offset)
}

func TestMalformedSYNIsNoAttempt(t *testing.T) {
	fam := families()[0]
	w, s := onWire(t, &handler{tcp: func(context.Context, *stack.TCPRequest) { t.Error("handler called") }}, stack.Options{}, nil)
	wrongSum := fam.segment(stacktest.SYN, 1, 0, "")
	wrongSum[len(wrongSum)-4] ^= 1
	wrongOffset := stacktest.Segment{Src: fam.client, Dst: fam.server, Flags: stacktest.SYN}.Packet()
	wrongOffset[20+12] = 15 << 4 // beyond the end of the packet
	portless := stacktest.Segment{Src: netip.AddrPortFrom(fam.client.Addr(), 0), Dst: fam.server, Flags: stacktest.SYN}.Packet()
	broadcast := stacktest.Segment{Src: fam.client, Dst: netip.MustParseAddrPort("255.255.255.255:80"), Flags: stacktest.SYN}.Packet()
	mapped := stacktest.Segment{Src: netip.MustParseAddrPort("[fd00::2]:1"), Dst: netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"), Flags: stacktest.SYN}.Packet()
	send(t, w, wrongSum, wrongOffset, portless, broadcast, mapped)
	silent(t, w, fam)
	if st := s.Stats(); st.HalfOpen != 0 {
		t.Errorf("%d attempts half-open, want 0", st.HalfOpen)
	}
}
