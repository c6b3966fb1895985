package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/tun/nstest"
)

// superBufs are buffers for ReadQueue: header, and a packet in two pieces.
func superBufs() [][]byte {
	return [][]byte{make([]byte, SuperHeader), make([]byte, 50), make([]byte, 1<<16)}
}

// echoQueues answers every UDP packet out of every queue until d is closed. seen
// is called with each, before it is answered, by the readers at the same time.
// The channel gets the error of each reader.
func echoQueues(d OffloadDevice, seen func(queue int, packet []byte)) <-chan error {
	ended := make(chan error, d.Queues())
	for queue := range d.Queues() {
		go func() {
			bufs, p := superBufs(), make([]byte, 0, 1<<16)
			for {
				n, err := d.ReadQueue(queue, bufs)
				if err != nil {
					ended <- err
					return
				}
				n -= SuperHeader
				p = append(append(p[:0], bufs[1][:min(n, len(bufs[1]))]...), bufs[2][:max(0, n-len(bufs[1]))]...)
				if seen(queue, p); !turnUDP(p) {
					continue
				}
				if err := d.WriteSuper([][]byte{bufs[0], p[:30], p[30:]}); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	return ended
}

// numbered is the payload of datagram i of a sender: its number and bytes that
// follow from it.
func numbered(sender, i int) []byte {
	rnd := rand.New(rand.NewPCG(uint64(sender), uint64(i)))
	p := make([]byte, 16+rnd.IntN(1200))
	binary.BigEndian.PutUint64(p, uint64(sender))
	binary.BigEndian.PutUint64(p[8:], uint64(i))
	for at := 16; at < len(p); at++ {
		p[at] = byte(rnd.Uint32())
	}
	return p
}

// Many sockets at once, over both families: each flow stays with one queue, in
// order and unharmed both ways, and together they use all.
func TestQueuesKeepFlowsInOrder(t *testing.T) {
	const queues, sockets, datagrams, window = 4, 48, 200, 8
	d := openTUN(t, Config{Name: "tun%d", Queues: queues}).(OffloadDevice)
	if d.Queues() != queues {
		t.Fatalf("%d queues, want %d", d.Queues(), queues)
	}
	type flow struct {
		mu    sync.Mutex
		queue int
		next  uint64
	}
	var flows [sockets]flow
	var used [queues]atomic.Int64
	ended := echoQueues(d, func(queue int, p []byte) {
		at := 28
		if p[0]>>4 == 6 {
			at = 48
		}
		if !turnUDP(bytes.Clone(p)) || len(p) < at+16 {
			return // the kernel's own, as router solicitations
		}
		sender, i := binary.BigEndian.Uint64(p[at:]), binary.BigEndian.Uint64(p[at+8:])
		f := &flows[sender]
		f.mu.Lock()
		defer f.mu.Unlock()
		if i == 0 {
			f.queue = queue
		}
		if i != f.next || queue != f.queue {
			t.Errorf("flow %d: datagram %d by queue %d, want %d by queue %d", sender, i, queue, f.next, f.queue)
		}
		f.next = i + 1
		used[queue].Add(1)
	})

	targets := []string{"10.9.0.2:7"}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		targets = append(targets, "[fd09::2]:7")
	}
	var clients sync.WaitGroup
	taken := map[uint32]bool{}
	for sender := range sockets {
		conn := dialSlot(t, targets[sender%len(targets)], taken)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		clients.Go(func() {
			got := make([]byte, 2000)
			for i := range datagrams + window {
				if i < datagrams {
					if _, err := conn.Write(numbered(sender, i)); err != nil {
						t.Errorf("flow %d: %v", sender, err)
						return
					}
				}
				if i < window {
					continue
				}
				n, err := conn.Read(got)
				if want := numbered(sender, i-window); err != nil || !bytes.Equal(got[:n], want) {
					t.Errorf("flow %d: answer %d is %d bytes, %v, want %d bytes", sender, i-window, n, err, len(want))
					return
				}
			}
		})
	}
	clients.Wait()
	for queue := range used {
		if used[queue].Load() == 0 {
			t.Errorf("nothing came by queue %d of %d for %d flows", queue, queues, sockets)
		}
	}
	d.Close()
	for range queues {
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("ReadQueue after Close = %v, want %v", err, os.ErrClosed)
		}
	}
}

// dialSlot connects from a port with a slot that is not taken: of two flows with one slot,
// the kernel may see one change its queue, once.
func dialSlot(t *testing.T, target string, taken map[uint32]bool) net.Conn {
	t.Helper()
	for {
		conn, err := net.Dial("udp", target)
		if err != nil {
			t.Fatal(err)
		}
		here, there := conn.LocalAddr().(*net.UDPAddr).AddrPort(), conn.RemoteAddr().(*net.UDPAddr).AddrPort()
		head := make([]byte, 20, 60)
		head[0], head[9] = 0x45, unix.IPPROTO_UDP
		ip := head[12:12]
		if here.Addr().Is6() {
			head = head[:40]
			head[0], head[6] = 0x60, unix.IPPROTO_UDP
			ip = head[8:8]
		}
		_ = append(append(ip, here.Addr().AsSlice()...), there.Addr().AsSlice()...)
		head = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(head, here.Port()), there.Port())
		if slot := flowSlot(head); !taken[slot] {
			taken[slot] = true
			return conn
		}
		defer conn.Close() // or its port would be the next one's
	}
}

// Whoever removes the interface ends the readers of all queues.
func TestRemovedInterfaceEndsAllQueues(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0", Queues: 3}).(OffloadDevice)
	ended := echoQueues(d, func(int, []byte) {})
	checkEcho(t, "10.9.0.2:7", []byte("they read"))
	nstest.IP(t, "link del tun0")
	for range d.Queues() {
		select {
		case err := <-ended:
			if errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "removed") {
				t.Errorf("ReadQueue = %v, want that the interface was removed", err)
			}
		case <-time.After(deadline):
			t.Fatal("a ReadQueue still blocks after the interface has gone")
		}
	}
}

// The kernel would let a second daemon in, to a part of the first one's flows.
func TestQueuesAreNotShared(t *testing.T) {
	nstest.NeedTUN(t)
	open := func(name string, queues int) (Device, error) { return Open(Config{Name: name, Queues: queues}) }
	refused := func(what, name string, queues int, says string) {
		t.Helper()
		d, err := open(name, queues)
		if err == nil {
			d.Close()
		}
		var o *Obstacle
		if !errors.As(err, &o) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want an Obstacle that says %q", what, err, says)
		}
	}
	for _, kind := range []string{"new", "persistent"} {
		name := "q" + kind
		if kind == "persistent" {
			nstest.IP(t, "tuntap add dev "+name+" mode tun multi_queue")
			defer nstest.IP(t, "link del "+name)
		}
		d, err := open(name, 2)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if n, err := attached(name); n != 2 || err != nil {
			t.Errorf("%s: %d queues, %v, want 2", kind, n, err)
		}
		refused(kind+", held, with as many", name, 2, "in use")
		refused(kind+", held, with one", name, 1, "one queue")
		if n, err := attached(name); n != 2 || err != nil {
			t.Errorf("%s: %d queues after others tried, %v, want 2", kind, n, err)
		}
		d.Close()
	}
	one, err := open("one", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	refused("held with one queue", "one", 2, "multi_queue")
	nstest.IP(t, "tuntap add dev qone mode tun")
	defer nstest.IP(t, "link del qone")
	refused("persistent with one queue", "qone", 2, "multi_queue")
	nstest.IP(t, "link add qveth type veth peer name qveth1")
	defer nstest.IP(t, "link del qveth")
	refused("no tun", "qveth", 2, "not a tun")
}

func TestBadNumberOfQueuesIsRefused(t *testing.T) {
	nstest.NeedTUN(t)
	for _, queues := range []int{-1, MaxQueues + 1} {
		if d, err := Open(Config{Name: "tun0", Queues: queues}); err == nil {
			d.Close()
			t.Errorf("Open took %d queues", queues)
		}
	}
	if f, err := Create(Config{Name: "tun0", Queues: 2}); err == nil {
		f.Close()
		t.Error("Create took 2 queues for one file")
	}
	d, err := Open(Config{Name: "tun0", Queues: MaxQueues})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}

// A packet's flow has one slot, whatever its direction and the pieces that it is
// in; other ports, where the kernel looks at them, have another.
func TestFlowSlot(t *testing.T) {
	ports := func(p []byte, at int, src, dst uint16) []byte {
		binary.BigEndian.PutUint16(p[at:], src)
		binary.BigEndian.PutUint16(p[at+2:], dst)
		return p
	}
	v4 := func(proto byte, src, dst uint16) []byte {
		p := make([]byte, 40)
		p[0], p[9] = 0x45, proto
		copy(p[12:], []byte{10, 0, 0, 2, 192, 0, 2, 1})
		return ports(p, 20, src, dst)
	}
	v6 := func(proto byte, src, dst uint16) []byte {
		p := make([]byte, 60)
		p[0], p[6] = 0x60, proto
		copy(p[8:], netip.MustParseAddr("fd00::2").AsSlice())
		copy(p[24:], netip.MustParseAddr("2001:db8::1").AsSlice())
		return ports(p, 40, src, dst)
	}
	options := func(src, dst uint16) []byte {
		p := append(v4(unix.IPPROTO_UDP, 0, 0), make([]byte, 60)...)
		p[0] = 0x4f
		return ports(p, 60, src, dst)
	}
	fragment := func(src, dst uint16, field byte) []byte {
		p := v4(unix.IPPROTO_UDP, src, dst)
		p[6] = field
		return p
	}
	plain4, plain6 := v4(unix.IPPROTO_TCP, 1000, 80), v6(unix.IPPROTO_TCP, 1000, 80)
	for _, tt := range []struct {
		name string
		a, b []byte
		same bool
	}{
		{"another port", plain4, v4(unix.IPPROTO_TCP, 1001, 80), false},
		{"ports swapped alone", plain4, v4(unix.IPPROTO_TCP, 80, 1000), false},
		{"another protocol", plain4, v4(unix.IPPROTO_UDP, 1000, 80), false},
		{"IPv6, another port", plain6, v6(unix.IPPROTO_TCP, 1001, 80), false},
		{"IPv6, another protocol", plain6, v6(unix.IPPROTO_UDP, 1000, 80), false},
		{"behind options, the same", options(1000, 80), v4(unix.IPPROTO_UDP, 1000, 80), true},
		{"fragments", fragment(1, 2, 0x20), fragment(3, 4, 0x01), true},
		{"not to be fragmented", fragment(1000, 80, 0x40), v4(unix.IPPROTO_UDP, 1000, 80), true},
		{"echo requests", v4(unix.IPPROTO_ICMP, 1, 2), v4(unix.IPPROTO_ICMP, 3, 4), true},
	} {
		if got := flowSlot(tt.a) == flowSlot(tt.b); got != tt.same {
			t.Errorf("%s: the same slot %v, want %v", tt.name, got, tt.same)
		}
	}
	for _, p := range [][]byte{plain4, plain6, v4(unix.IPPROTO_UDP, 1, 2), v6(unix.IPPROTO_UDP, 1, 2), options(1, 2)} {
		turned := bytes.Clone(p)
		ip, ends := 20, turned[12:20]
		if p[0]>>4 == 6 {
			ip, ends = 40, turned[8:40]
		} else {
			ip = int(p[0]&15) * 4
		}
		half := len(ends) / 2
		copy(ends, append(bytes.Clone(ends[half:]), ends[:half]...))
		ports(turned, ip, binary.BigEndian.Uint16(p[ip+2:]), binary.BigEndian.Uint16(p[ip:]))
		if flowSlot(p) != flowSlot(turned) {
			t.Errorf("% x: another slot on the way back", p)
		}
	}
}

// The slots of flows that differ in one port are spread as those of chance.
func TestFlowSlotsAreSpread(t *testing.T) {
	const flows = 4096
	slots := make(map[uint32]bool)
	p := make([]byte, 40)
	p[0], p[9] = 0x45, unix.IPPROTO_TCP
	copy(p[12:], []byte{10, 0, 0, 2, 192, 0, 2, 1})
	for port := range flows {
		binary.BigEndian.PutUint16(p[20:], uint16(32768+port))
		slots[flowSlot(p)] = true
	}
	// Of 4,096 by chance in 65,536 slots 125 or so meet others.
	if taken := len(slots); taken < flows-200 {
		t.Errorf("%d flows have %d slots", flows, taken)
	}
}

func FuzzFlowSlot(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1, 1, 2, 3, 4}, 12)
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, make([]byte, 40)...), 45)
	f.Fuzz(func(t *testing.T, packet []byte, cut int) {
		whole := append(make([]byte, SuperHeader), packet...)
		want := flowSlot(packet[:min(len(packet), flowHeaders)])
		if want >= flowSlots {
			t.Fatalf("slot %d", want)
		}
		var room [flowHeaders]byte
		for _, n := range []int{len(packet), flowHeaders} {
			cut := min(max(cut, 0), len(whole))
			bufs := [][]byte{whole[:cut], nil, whole[cut:]}
			if got := packetHead(bufs, n, &room); !bytes.Equal(got, packet[:min(len(packet), flowHeaders)]) {
				t.Fatalf("cut at %d: head % x of % x", cut, got, packet)
			}
		}
	})
}

func BenchmarkFlowSlot(b *testing.B) {
	for _, ip := range []byte{0x45, 0x60} {
		b.Run(fmt.Sprintf("IPv%d", ip>>4), func(b *testing.B) {
			p := make([]byte, 1500)
			p[0], p[6], p[9] = ip, unix.IPPROTO_TCP, unix.IPPROTO_TCP
			if ip>>4 == 4 {
				p[6] = 0
			}
			bufs := [][]byte{make([]byte, SuperHeader), p}
			flows := new(flowQueues)
			var room [flowHeaders]byte
			b.ReportAllocs()
			for b.Loop() {
				flows.came(flowSlot(packetHead(bufs, len(p), &room)), 1)
			}
		})
	}
}
