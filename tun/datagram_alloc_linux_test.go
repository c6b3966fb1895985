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
