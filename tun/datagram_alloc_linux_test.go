//go:build !race

package tun

import (
	"net"
	"testing"
	"time"

	"tunroute/tun/nstest"
)

// Without the race detector, which has pools forget.

// At packet tempo nothing is allocated, however many buffers there are.
func TestSuperReadAndWriteDoNotAllocate(t *testing.T) {
	const size, many = 100, 40
	d := openTUN(t, Config{Name: "tun0"}).(OffloadDevice)
	if !d.SuperDatagrams() {
		nstest.Missing(t, "this kernel has no rows of datagrams: Linux 6.2 or later")
	}
	c, err := net.Dial("udp", "10.9.0.2:7")
	if err != nil {
		t.Fatal(err)
	}
	conn := c.(*net.UDPConn)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(deadline))
	payload, head, packet, b := make([]byte, many*size), make([]byte, SuperHeader), make([]byte, 1<<16), make([]byte, size)
	in, out := [][]byte{head, packet}, make([][]byte, 0, 2+many)
	sendRow(t, conn, payload, size)
	once := func() {
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
		p := packet[:readRow(t, d, in)-SuperHeader]
		turnUDP(p)
		out = append(out[:0], head, p[:28])
		for rest := p[28:]; len(rest) > 0; rest = rest[size:] {
			out = append(out, rest[:size])
		}
		if err := d.WriteSuper(out); err != nil {
			t.Fatal(err)
		}
		for range many {
			if n, err := conn.Read(b); n != size || err != nil {
				t.Fatalf("came back as %d bytes, %v", n, err)
			}
		}
	}
	once()
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations for a row there and back, want 0", n)
	}
}

// What several queues add to a packet, on its way in and out, allocates nothing
// either.
func TestChoiceOfAQueueDoesNotAllocate(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0", Queues: 2}).(*superDevice)
	p := make([]byte, 128)
	p[0], p[3], p[8], p[9] = 0x45, byte(len(p)), 64, 17
	copy(p[12:], []byte{10, 9, 0, 2, 10, 9, 0, 1})
	p[21], p[23], p[25] = 7, 9, byte(len(p)-20) // nobody is there
	s := sum(p[:20], 0)
	p[10], p[11] = byte(^s>>8), byte(^s)
	out := [][]byte{make([]byte, SuperHeader), p[:21], p[21:]}
	queue := 0
	if n := testing.AllocsPerRun(100, func() {
		var room [flowHeaders]byte
		queue = 1 - queue
		d.flows.came(flowSlot(packetHead(out, len(p), &room)), queue)
		if err := d.WriteSuper(out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a packet, want 0", n)
	}
}
