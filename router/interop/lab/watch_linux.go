package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Watch sees all IP packets that arrive at an interface from other hosts, whatever
// becomes of them there.
type Watch struct {
	from *Node          // a host whose packets arrive there
	to   netip.AddrPort // if they go there
	file *os.File

	mu      sync.Mutex // guards packets
	packets []Packet
	arrived sync.Cond // on mu
}

// Packet is a packet that has arrived.
type Packet struct {
	Proto    int // IPPROTO_TCP and so on
	Src, Dst netip.AddrPort
	Opens    bool // a TCP connection: it is a client's SYN
}

func (p Packet) String() string {
	return fmt.Sprintf("protocol %d from %v to %v", p.Proto, p.Src, p.Dst)
}

// Watch starts watching what arrives at srv, until the test ends.
func (l *Lab) Watch(t testing.TB) *Watch {
	t.Helper()
	// To an address of the link, which nobody routes elsewhere.
	return NewWatch(t, l.Srv, "srv0", l.Host, netip.MustParseAddrPort("10.77.0.1:9"))
}

// NewWatch starts watching what arrives at an interface of a node, until the test
// ends. A datagram to the address given has to arrive there if it is sent on from:
// that is how the Watch knows that it has seen what was sent there before.
func NewWatch(t testing.TB, at *Node, ifname string, from *Node, to netip.AddrPort) *Watch {
	t.Helper()
	w := &Watch{from: from, to: to}
	w.arrived.L = &w.mu
	err := at.Do(func() error {
		ifc, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		// Network byte order, as packet(7) has it.
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		w.file = os.NewFile(uintptr(fd), "packets")
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifc.Index}))
	})
	if err != nil {
		t.Fatalf("watch %s: %v", ifname, err)
	}
	var reading sync.WaitGroup
	reading.Go(w.read)
	t.Cleanup(func() {
		w.file.Close()
		reading.Wait()
	})
	return w
}

func (w *Watch) read() {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	b := make([]byte, 128) // the headers
	for {
		var n int
		var from unix.Sockaddr
		var err error
		if cerr := raw.Read(func(fd uintptr) bool {
			n, from, err = unix.Recvfrom(int(fd), b, 0)
			return err != unix.EAGAIN
		}); cerr != nil {
			return // closed
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if p, ok := parsePacket(b[:n]); ok {
			w.mu.Lock()
			w.packets = append(w.packets, p)
			w.mu.Unlock()
			w.arrived.Broadcast()
		}
	}
}

// parsePacket reads the addresses of an IP packet; ports only where they follow
// at once, which is enough for what is sent here.
func parsePacket(b []byte) (p Packet, ok bool) {
	var src, dst netip.Addr
	var payload []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Proto = int(b[9])
		src, _ = netip.AddrFromSlice(b[12:16])
		dst, _ = netip.AddrFromSlice(b[16:20])
		payload = b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Proto = int(b[6])
		src, _ = netip.AddrFromSlice(b[8:24])
		dst, _ = netip.AddrFromSlice(b[24:40])
		payload = b[40:]
	default:
		return p, false // ARP
	}
	var ports [2]uint16
	if (p.Proto == unix.IPPROTO_TCP || p.Proto == unix.IPPROTO_UDP) && len(payload) >= 4 {
		ports[0], ports[1] = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	}
	if p.Proto == unix.IPPROTO_TCP && len(payload) >= 14 {
		const syn, ack = 0x02, 0x10
		p.Opens = payload[13]&(syn|ack) == syn
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
	return p, true
}

// Arrived returns the packets until now, since the last call, for which want is
// true.
func (w *Watch) Arrived(t testing.TB, want func(Packet) bool) []Packet {
	t.Helper()
	// Packets arrive in order: a datagram that is sent now comes after all
	// before it.
	var last netip.AddrPort
	err := w.from.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(w.to))
		if err != nil {
			return err
		}
		defer c.Close()
		last = c.LocalAddr().(*net.UDPAddr).AddrPort()
		_, err = c.Write([]byte("last"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(deadline, w.arrived.Broadcast)
	defer late.Stop()
	end := time.Now().Add(deadline)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if i := slices.IndexFunc(w.packets, func(p Packet) bool { return p == Packet{Proto: unix.IPPROTO_UDP, Src: last, Dst: w.to} }); i >= 0 {
			seen := slices.Clone(w.packets[:i])
			w.packets = slices.Clone(w.packets[i+1:])
			return slices.DeleteFunc(seen, func(p Packet) bool { return !want(p) })
		}
		if time.Now().After(end) {
			t.Fatal("nothing arrives")
		}
		w.arrived.Wait()
	}
}
