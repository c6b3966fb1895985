package stack_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// capture joins packets as FuzzPackets takes them: behind a byte of flags, each
// with its length before it.
func capture(flags byte, packets ...[]byte) []byte {
	b := []byte{flags}
	for _, p := range packets {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
		b = append(b, p...)
	}
	return b
}

// repair says in the flags that checksums are to be made right, so that what is
// behind them is met as well.
const repair = 1

// fixChecksums makes them right where p has the shape of a packet.
func fixChecksums(p []byte) {
	set := func(at int, sum uint16) { binary.BigEndian.PutUint16(p[at:], sum) }
	var start int
	var proto byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		start, proto = int(p[0]&15)*4, p[9]
		if start < 20 || start > len(p) {
			return
		}
		set(10, 0)
		set(10, ^stacktest.Checksum(p[:start], 0))
		if start != 20 || p[6]&0x3f != 0 || p[7] != 0 {
			return
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		start, proto = 40, p[6]
	default:
		return
	}
	at := start + map[byte]int{1: 2, 6: 16, 17: 6, 58: 2}[proto]
	if at == start || at+2 > len(p) {
		return
	}
	set(at, 0)
	set(at, ^stacktest.TransportChecksum(p))
}

// FuzzPackets: whatever comes out of the device, the stack does not panic, sends
// nothing malformed, still serves the next packet, and ends when it is told to.
func FuzzPackets(f *testing.F) {
	for _, fam := range families() {
		client, server := fam.client.Addr(), fam.server.Addr()
		echo := stacktest.Echo(client, server, 1, 1, []byte("ping"))
		datagram := stacktest.Datagram(fam.client, fam.server, pattern(2500))
		f.Add(capture(0, echo, withOptions(fam, echo)))
		f.Add(capture(0, stacktest.Fragments(datagram, 9, 600)...))
		f.Add(capture(repair, stacktest.Fragments(datagram, 9, 1400)[1:]...))
		for _, syn := range synKinds(fam) {
			f.Add(capture(0, syn, syn))
		}
		for port := range uint16(8) {
			to := fam
			to.server = netip.AddrPortFrom(server, port)
			f.Add(capture(repair, stacktest.Datagram(to.client, to.server, nil),
				to.segment(stacktest.SYN, 1, 0, ""), to.segment(stacktest.SYN, 9, 0, ""),
				to.segment(stacktest.ACK|stacktest.PSH, 2, 3, "data"), to.segment(stacktest.FIN|stacktest.ACK, 6, 3, ""),
				to.segment(stacktest.RST, 2, 0, "")))
		}
		// ICMP errors about packets of ours.
		for code := range uint8(5) {
			quote := stacktest.Segment{Src: fam.server, Dst: fam.client, Flags: stacktest.SYN | stacktest.ACK}.Packet()
			if fam.is4() {
				f.Add(capture(repair, stacktest.IP(client, server, 1, append([]byte{3, code, 0, 0, 0, 0, 5, 0}, quote...))))
			} else {
				f.Add(capture(repair, stacktest.IP(client, server, 58, append([]byte{1 + code%4, code, 0, 0, 0, 0, 5, 0}, quote...))))
			}
		}
		// A protocol that nobody speaks, and neighbour discovery.
		f.Add(capture(repair, stacktest.IP(client, server, 132, []byte("sctp")), stacktest.IP(client, server, 58, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, server.AsSlice()...))))
	}
	// IPv6 extension headers: hop-by-hop, routing, destination options, fragment,
	// one after the other and in front of a UDP header.
	v6 := families()[1]
	datagram := stacktest.Datagram(v6.client, v6.server, nil)
	chain := []byte{43, 0, 5, 2, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 7}
	f.Add(capture(repair, stacktest.IP(v6.client.Addr(), v6.server.Addr(), 0, append(chain, datagram[40:]...))))

	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 1<<14 {
			return
		}
		flags, b := b[0], b[1:]
		w := stacktest.NewWire(1500)
		h := &handler{
			tcp:  fuzzTCP,
			echo: fuzzEcho,
		}
		s, err := stack.New(stack.Options{Device: w, Handler: h, HalfOpen: 4, HalfOpenPerSource: 2})
		if err != nil {
			t.Fatal(err)
		}
		var running atomic.Pointer[stack.Stack]
		running.Store(s)
		echo := echoUDP(&running).udp
		h.udp = func(src, dst netip.AddrPort, payload []byte) bool {
			return dst.Port()&1 != 0 && echo(src, dst, payload)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()

		go func() {
			for len(b) > 2 {
				n := min(int(binary.BigEndian.Uint16(b)), len(b)-2, 1500)
				p := bytes.Clone(b[2:][:n])
				b = b[2+n:]
				if flags&repair != 0 {
					fixChecksums(p)
				}
				w.Send(p)
			}
			v4 := families()[0]
			w.Send(stacktest.Echo(v4.client.Addr(), netip.MustParseAddr("198.51.100.99"), 1, 1, []byte(probe)))
		}()
		for !bytes.Contains(next(t, w).rest, []byte(probe)) {
		}
		cancel()
		if err := receive(t, "end of Run", ended); err != nil {
			t.Error(err)
		}
		for { // what it sent last is well-formed, too
			p, err := w.Recv(context.Background())
			if errors.Is(err, net.ErrClosed) {
				break
			}
			parse(t, p)
		}
		if n := s.Stats().HalfOpen; n != 0 {
			t.Errorf("%d attempts half-open after the end", n)
		}
	})
}

// probe is the data of the echo request which shows that the stack still serves.
const probe = "still there?"

// fuzzTCP does what the port says.
func fuzzTCP(_ context.Context, r *stack.TCPRequest) {
	switch p := r.Destination().Port(); p % 8 {
	case 0:
	case 1:
		r.Refuse(syscall.ECONNREFUSED)
	case 2:
		r.Refuse(syscall.EHOSTUNREACH)
	default:
		c, err := r.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		switch p % 8 {
		case 3:
			c.Reset()
		case 4:
			c.Close()
		case 5:
			c.CloseWrite()
			io.Copy(io.Discard, c)
		default:
			io.Copy(c, c)
		}
	}
}

// fuzzEcho does what the data says, but answers the probe.
func fuzzEcho(_ context.Context, r *stack.EchoRequest) {
	if len(r.Data())%2 == 1 {
		r.Refuse(syscall.EACCES)
		return
	}
	r.Reply()
}
