package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/tun/nstest"
)

// sendRow sends payload as datagrams of size bytes, by one call.
func sendRow(t *testing.T, conn *net.UDPConn, payload []byte, size int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
}

// readRow reads packets until one is a row of datagrams.
func readRow(t *testing.T, d OffloadDevice, bufs [][]byte) int {
	t.Helper()
	for {
		n, err := d.ReadSuper(bufs)
		if err != nil {
			t.Fatal(err)
		}
		if bufs[0][1] == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
			return n
		}
	}
}

// A row of datagrams that a program sends as one is read as one, and one that is
// written comes to the program as the datagrams that it is.
func TestRowsOfDatagramsPassWhole(t *testing.T) {
	const size = 700
	payload := make([]byte, 40*size+123)
	for i := range payload {
		payload[i] = byte(i / size)
	}
	d := openTUN(t, Config{Name: "tun%d"}).(OffloadDevice)
	if !d.SuperDatagrams() {
		nstest.Missing(t, "this kernel has no rows of datagrams: Linux 6.2 or later")
	}
	idle := make(chan struct{}, 1)
	d.OnIdle(func() {
		select {
		case idle <- struct{}{}:
		default:
		}
	})
	for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		c, err := net.Dial("udp", to)
		if err != nil {
			nstest.Missing(t, fmt.Sprintf("no address for %s: %v", to, err))
		}
		conn := c.(*net.UDPConn)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(deadline))
		sendRow(t, conn, payload, size)

		head, packet := make([]byte, SuperHeader), make([]byte, 1<<16)
		n := readRow(t, d, [][]byte{head, packet[:2000], packet[2000:]})
		p := packet[:n-SuperHeader]
		udp := int(binary.NativeEndian.Uint16(head[6:]))
		if got := int(binary.NativeEndian.Uint16(head[4:])); got != size || udp+8 > len(p) || !bytes.Equal(p[udp+8:], payload) {
			t.Fatalf("%s: a row of %d bytes, cut at %d, want %d bytes at %d", to, len(p), got, len(payload), size)
		}
		if !turnUDP(p) {
			t.Fatalf("%s: not a datagram: % x", to, p[:min(len(p), 60)])
		}
		out := [][]byte{head, p[:udp+8]}
		for rest := p[udp+8:]; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			out = append(out, rest[:min(size, len(rest))])
		}
		if err := d.WriteSuper(out); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size+1)
		for rest := payload; len(rest) > 0; {
			want := rest[:min(size, len(rest))]
			n, err := conn.Read(b)
			if err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("%s: a datagram of %d bytes, %v, want %d bytes", to, n, err, len(want))
			}
			rest = rest[n:]
		}
	}

	// A ReadSuper that waits has told so before.
	select {
	case <-idle:
	default:
	}
	waiting := make(chan error, 1)
	go func() {
		for {
			if _, err := d.ReadSuper([][]byte{make([]byte, SuperHeader), make([]byte, 1<<16)}); err != nil {
				waiting <- err
				return
			}
		}
	}()
	<-idle
	d.Close()
	<-waiting
}
