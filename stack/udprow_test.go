package stack

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	stdslices "slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack/stacktest"
)

// rowDevice is a kernel in memory that passes rows of datagrams.
type rowDevice struct {
	noRows bool
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	idle   func()

	mu      sync.Mutex
	out     [][]byte // each behind its virtio-net header
	discard bool
}

func newRowDevice() *rowDevice {
	return &rowDevice{in: make(chan []byte, 64), closed: make(chan struct{})}
}

func (d *rowDevice) ReadSuper(bufs [][]byte) (int, error) {
	var p []byte
	select {
	case p = <-d.in:
	default:
		if d.idle != nil {
			d.idle()
		}
		select {
		case p = <-d.in:
		case <-d.closed:
			return 0, net.ErrClosed
		}
	}
	n := len(p)
	for _, b := range bufs {
		p = p[copy(b, p):]
	}
	return n, nil
}

func (d *rowDevice) WriteSuper(bufs [][]byte) error {
	if len(bufs) > 1024 { // UIO_MAXIOV
		return syscall.EINVAL
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.discard {
		d.out = append(d.out, bytes.Join(bufs, nil))
	}
	return nil
}

func (d *rowDevice) SuperDatagrams() bool                         { return !d.noRows }
func (d *rowDevice) OnIdle(f func())                              { d.idle = f }
func (d *rowDevice) MTU() int                                     { return 1500 }
func (d *rowDevice) BatchSize() int                               { return 1 }
func (d *rowDevice) Close() error                                 { d.once.Do(func() { close(d.closed) }); return nil }
func (d *rowDevice) Read([][]byte, []int, int) (int, error)       { panic("the plain way") }
func (d *rowDevice) Write(bufs [][]byte, offset int) (int, error) { panic("the plain way") }

// takenUDP is a handler that keeps datagrams until it is told to send them on.
type takenUDP struct {
	Handler
	refuse  bool
	held    []string // "src > dst payload"
	flushed chan []string
}

func (h *takenUDP) ServeUDP(src, dst netip.AddrPort, payload []byte) bool {
	if h.refuse {
		return false
	}
	h.held = append(h.held, src.String()+" > "+dst.String()+" "+string(payload))
	return true
}

func (h *takenUDP) FlushUDP() {
	h.flushed <- h.held
	h.held = nil
}

// serve runs a stack on d until the test ends.
func serve(t testing.TB, d Device, h Handler) *Stack {
	t.Helper()
	s, err := New(Options{Device: d, Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for s.net.Load() == nil {
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
		}
	}
	return s
}

var rowFamilies = map[string][2]netip.AddrPort{
	"IPv4": {netip.MustParseAddrPort("10.0.0.2:1000"), netip.MustParseAddrPort("192.0.2.1:53")},
	"IPv6": {netip.MustParseAddrPort("[fd00::2]:1000"), netip.MustParseAddrPort("[2001:db8::1]:53")},
}

// superRow is what the kernel makes of datagrams of size bytes that are sent as
// one, the last of which may be shorter; options go between the IP headers.
func superRow(src, dst netip.AddrPort, payload []byte, size int, options []byte) []byte {
	length := header.UDPMinimumSize + len(payload)
	p := appendIP(make([]byte, superHeader), src.Addr(), dst.Addr(), len(options)+length)
	ip := p[superHeader:]
	if len(options) > 0 && src.Addr().Is4() {
		ip[0] += byte(len(options) / 4)
	} else if len(options) > 0 {
		options[0], ip[6] = ip[6], 60 // destination options
	}
	p = append(p, options...)
	at := len(p)
	p = append(p, make([]byte, header.UDPMinimumSize)...)
	encodeUDP(p[at:], src, dst, length, pseudoSum(src.Addr(), dst.Addr(), length))
	p[0], p[1] = vnetNeedsChecksum, vnetUDP
	native := binary.NativeEndian
	native.PutUint16(p[2:], uint16(at+header.UDPMinimumSize-superHeader))
	native.PutUint16(p[4:], uint16(size))
	native.PutUint16(p[6:], uint16(at-superHeader))
	native.PutUint16(p[8:], udpChecksumOffset)
	return append(p, payload...)
}

// A row that a client has sent as one comes to the handler as the datagrams that
// it is, and they are sent on together, when nothing follows.
func TestRowFromTheClient(t *testing.T) {
	for name, fam := range rowFamilies {
		for _, tt := range []struct {
			what           string
			n, size, short int
			options        []byte
		}{
			{"two", 2, 10, 0, nil},
			{"the last is short", 5, 700, 123, nil},
			{"several buffers", 40, 1200, 1, nil},
			{"headers with options", 3, 1200, 7, []byte{1, 0, 1, 4, 0, 0, 0, 0}},
		} {
			t.Run(name+" "+tt.what, func(t *testing.T) {
				h := &takenUDP{flushed: make(chan []string, 100)}
				d := newRowDevice()
				var payload []byte
				var want []string
				for i := range tt.n {
					n := tt.size
					if i == tt.n-1 && tt.short > 0 {
						n = tt.short
					}
					one := bytes.Repeat([]byte{byte('a' + i)}, n)
					payload = append(payload, one...)
					want = append(want, fam[0].String()+" > "+fam[1].String()+" "+string(one))
				}
				d.in <- superRow(fam[0], fam[1], payload, tt.size, tt.options)
				s := serve(t, d, h)
				if got := <-h.flushed; !stdslices.Equal(got, want) {
					t.Errorf("got %d datagrams, %.200q, want %d, %.200q", len(got), got, len(want), want)
				}
				if st := s.Stats(); st.Datagrams != uint64(tt.n) || st.BadDatagrams != 0 {
					t.Errorf("%d datagrams and %d bad ones counted, want %d and 0", st.Datagrams, st.BadDatagrams, tt.n)
				}
			})
		}
	}
}

// What other packets there are between datagrams, none waits for them, and none
// waits for more than maxBurst of its like.
func TestDatagramsDoNotWaitForOtherPackets(t *testing.T) {
	fam := rowFamilies["IPv4"]
	rnd := rand.New(rand.NewPCG(7, 8))
	datagram := append(make([]byte, superHeader), sumPacket(rnd, true, header.UDPProtocolNumber, 100)...)
	segment := append(make([]byte, superHeader), sumPacket(rnd, true, header.TCPProtocolNumber, 100)...)
	header.TCP(segment[superHeader+header.IPv4MinimumSize:]).SetFlags(uint8(header.TCPFlagRst)) // calls for no answer
	segment[0] = vnetDataValid
	h := &takenUDP{flushed: make(chan []string, 100)}
	d := newRowDevice()
	d.in = make(chan []byte, 4*maxBurst)
	d.in <- datagram
	d.in <- segment
	for range 2*maxBurst + 1 {
		d.in <- datagram
	}
	d.in <- superRow(fam[0], fam[1], []byte("row"), 2, nil)
	serve(t, d, h)
	for i, want := range []int{1, maxBurst, maxBurst, 3} {
		if got := <-h.flushed; len(got) != want {
			t.Errorf("flush %d: %d datagrams, want %d", i, len(got), want)
		}
	}
}

func TestBadRowsAreDropped(t *testing.T) {
	fam := rowFamilies["IPv6"]
	good := superRow(fam[0], fam[1], make([]byte, 3000), 1000, nil)
	damaged := func(f func([]byte)) []byte {
		p := bytes.Clone(good)
		f(p)
		return p
	}
	native := binary.NativeEndian
	for name, p := range map[string][]byte{
		"no size":                damaged(func(p []byte) { native.PutUint16(p[4:], 0) }),
		"UDP within IP":          damaged(func(p []byte) { native.PutUint16(p[6:], 12) }),
		"UDP behind the end":     damaged(func(p []byte) { native.PutUint16(p[6:], 3047) }),
		"nothing behind headers": good[:superHeader+47],
	} {
		h := &takenUDP{flushed: make(chan []string, 100)}
		d := newRowDevice()
		s := serve(t, d, h)
		d.in <- p
		d.in <- good
		if got := <-h.flushed; len(got) != 3 || s.Stats().BadDatagrams != 1 {
			t.Errorf("%s: %d datagrams and %d bad ones, want those of the good row and 1", name, len(got), s.Stats().BadDatagrams)
		}
	}
}

func TestRefusedRowIsToldOnce(t *testing.T) {
	for name, fam := range rowFamilies {
		d := newRowDevice()
		s := serve(t, d, &takenUDP{refuse: true, flushed: make(chan []string, 1)})
		b := s.newBurst()
		p := superRow(fam[0], fam[1], make([]byte, 3000), 1000, nil)
		if !b.takeSuper(p[:superHeader], [][]byte{p[superHeader:]}, len(p)-superHeader) {
			t.Errorf("%s: the row was not taken", name)
		}
		if len(d.out) != 1 {
			t.Fatalf("%s: %d packets out, want an ICMP error", name, len(d.out))
		}
	}
}

// fromRows takes packets apart as the kernel would, and returns the payloads, those
// of fragments put together.
func fromRows(t *testing.T, out [][]byte, from, to netip.AddrPort) (payloads [][]byte) {
	t.Helper()
	native := binary.NativeEndian
	for _, p := range out {
		head, p := p[:superHeader], p[superHeader:]
		ip := ipSize(from.Addr())
		if from.Addr().Is4() {
			h := header.IPv4(p)
			if !h.IsChecksumValid() || int(h.TotalLength()) != len(p) {
				t.Errorf("IPv4 header % x of %d bytes", p[:ip], len(p))
			}
			if h.FragmentOffset() != 0 {
				last := len(payloads) - 1
				payloads[last] = append(payloads[last], p[ip:]...)
				continue
			}
			if h.More() {
				payloads = append(payloads, bytes.Clone(p[ip+header.UDPMinimumSize:]))
				continue
			}
		} else if p[6] == uint8(header.IPv6FragmentHeader) {
			f := header.IPv6Fragment(p[ip:])
			if f.FragmentOffset() != 0 {
				last := len(payloads) - 1
				payloads[last] = append(payloads[last], p[ip+header.IPv6FragmentHeaderSize:]...)
			} else {
				payloads = append(payloads, bytes.Clone(p[ip+header.IPv6FragmentHeaderSize+header.UDPMinimumSize:]))
			}
			continue
		}
		gotFrom, gotTo := addrPorts(p, ip)
		if gotFrom != from || gotTo != to {
			t.Errorf("from %v to %v, want from %v to %v", gotFrom, gotTo, from, to)
		}
		h, payload := header.UDP(p[ip:]), p[ip+header.UDPMinimumSize:]
		if int(h.Length()) != len(h) || head[0] != vnetNeedsChecksum || native.Uint16(head[6:]) != uint16(ip) || native.Uint16(head[8:]) != udpChecksumOffset {
			t.Errorf("headers % x, % x of %d bytes", head, h[:8], len(h))
		}
		// The kernel sums from the UDP header on, its field included, and
		// stores the complement.
		complete := ^checksum.Checksum(h, 0)
		h.SetChecksum(0)
		if want := ^checksum.Checksum(h, pseudoSum(from.Addr(), to.Addr(), len(h))); complete != want {
			t.Errorf("the checksum would come out as %#04x, want %#04x", complete, want)
		}
		switch size := int(native.Uint16(head[4:])); head[1] {
		case 0:
			if ip+len(h) > 1500 {
				t.Errorf("packet of %d bytes", ip+len(h))
			}
			payloads = append(payloads, payload)
		case vnetUDP:
			if ip+header.UDPMinimumSize+size > 1500 || int(native.Uint16(head[2:])) != ip+header.UDPMinimumSize || len(payload) <= size {
				t.Errorf("row of %d bytes to be cut at %d, header % x", len(payload), size, head)
			}
			if n := 0; size > 0 {
				for part := range stdslices.Chunk(payload, size) {
					payloads = append(payloads, part)
					n++
				}
				if n > maxRow {
					t.Errorf("row of %d", n)
				}
			}
		default:
			t.Errorf("type %d", head[1])
		}
	}
	return payloads
}

// Whatever lengths there are in a row, the client gets them all, in order, and
// with fewer packets where the device takes rows.
func TestWriteUDPs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	rows := [][]int{
		{5},
		{0}, {0, 0, 0},
		{100, 100, 100},
		{100, 100, 60, 60, 60, 61},
		{1, 2, 3, 2, 1, 0, 1},
		stdslices.Repeat([]int{1400}, 200),
		stdslices.Repeat([]int{64}, 200),
		{1472, 1472, 1473, 9000, 1472, 1452, 1452, 3},
		{MaxDatagram, MaxDatagram},
	}
	for range 20 {
		var row []int
		for range rnd.IntN(300) + 1 {
			row = append(row, []int{0, 7, 64, 64, 64, 1200, 1200, 1600}[rnd.IntN(8)])
		}
		rows = append(rows, row)
	}
	for name, fam := range rowFamilies {
		for _, noRows := range []bool{false, true} {
			d := newRowDevice()
			d.noRows = noRows
			s := serve(t, d, &takenUDP{})
			for _, row := range rows {
				var payloads [][]byte
				for i, n := range row {
					payloads = append(payloads, bytes.Repeat([]byte{byte(i)}, n))
				}
				d.out = nil
				if err := s.WriteUDPs(payloads, fam[1], fam[0]); err != nil {
					t.Fatalf("%s %v: %v", name, row, err)
				}
				got := fromRows(t, d.out, fam[1], fam[0])
				if !stdslices.EqualFunc(got, payloads, bytes.Equal) {
					t.Errorf("%s %v, no rows %v: got %d datagrams, or others", name, row, noRows, len(got))
				}
				if n := len(d.out); !noRows && len(row) == 200 && n > 7 {
					t.Errorf("%s: %d packets for 200 datagrams of %d bytes", name, n, row[0])
				}
			}
		}
	}
}

// FuzzBurst: datagrams that do not pass through netstack are those that it would
// have passed on.
func FuzzBurst(f *testing.F) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for _, is4 := range []bool{true, false} {
		for _, n := range []int{0, 1, 100} {
			p := sumPacket(rnd, is4, header.UDPProtocolNumber, n)
			f.Add(p, uint16(0), byte(0))
			f.Add(append(bytes.Clone(p), 1, 2), uint16(0), byte(0)) // padded
			for i := range min(len(p), 48) {
				f.Add(p, uint16(i), byte(1))
				f.Add(p, uint16(i), byte(0xff))
			}
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, at uint16, xor byte) {
		if len(p) == 0 || len(p) > 1500 {
			return
		}
		// One byte turned, and the checksum of the header right again, so that
		// what is behind it is met.
		p = bytes.Clone(p)
		if int(at) < len(p) {
			p[at] ^= xor
		}
		if len(p) >= header.IPv4MinimumSize && p[0] == 0x45 && at%2 == 0 {
			h := header.IPv4(p)
			h.SetChecksum(0)
			h.SetChecksum(^h.CalculateChecksum())
		}
		got, want := new(takenUDP), new(takenUDP)
		got.flushed, want.flushed = make(chan []string, 10), make(chan []string, 10)
		s := serve(t, stacktest.NewWire(1500), got)
		b := s.newBurst()
		if !b.take(p, false) {
			return // netstack has it
		}
		other := serve(t, stacktest.NewWire(1500), want)
		other.link.deliver(buffer.MakeWithData(p))
		if len(want.flushed) != 1 {
			t.Fatalf("% x was taken; netstack would not have it", p)
		}
		if old := <-want.flushed; !stdslices.Equal(<-got.flushed, old) {
			t.Errorf("% x: got otherwise than %q", p, old)
		}
	})
}

// TestChecksumOfFragments: that of a datagram in fragments is verified when they are
// together, which a device cannot have done, whatever it says of them.
func TestChecksumOfFragments(t *testing.T) {
	client, server := netip.MustParseAddrPort("[fd00::2]:4000"), netip.MustParseAddrPort("[2001:db8::1]:53")
	for _, flags := range []byte{0, vnetDataValid} {
		d := newRowDevice()
		h := &takenUDP{flushed: make(chan []string, 10)}
		s := serve(t, d, h)
		in := func(datagram []byte, id uint16) {
			for _, f := range stacktest.Fragments(datagram, id, 1500) {
				d.in <- append(append([]byte{flags}, make([]byte, superHeader-1)...), f...)
			}
		}
		bad := stacktest.Datagram(client, server, bytes.Repeat([]byte("bad "), 1000))
		bad[len(bad)-1]++
		in(bad, 1)
		in(stacktest.Datagram(client, server, bytes.Repeat([]byte("good"), 1000)), 2)
		got := <-h.flushed
		for len(got) == 0 {
			got = <-h.flushed
		}
		if want := client.String() + " > " + server.String() + " goodgood"; len(got) != 1 || !strings.HasPrefix(got[0], want) || s.Stats().BadDatagrams != 1 {
			t.Errorf("flags %d: %d datagrams, %.60q, and %d bad ones, want 1, %q and 1", flags, len(got), got, s.Stats().BadDatagrams, want)
		}
	}
}
