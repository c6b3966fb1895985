package outbound

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenUDP opens a socket whose reading ends with the test.
func listenUDP(t testing.TB, at string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	growUDPBuffers(c)
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func addrOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// receive reads n datagrams one by one.
func receive(t *testing.T, c *net.UDPConn, n int) (got [][]byte) {
	t.Helper()
	b := make([]byte, 1<<16)
	for range n {
		n, _, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("after %d datagrams: %v", len(got), err)
		}
		got = append(got, bytes.Clone(b[:n]))
	}
	return got
}

// lengths of datagrams that are sent in a row.
func rowsOfLengths() [][]int {
	rnd := rand.New(rand.NewPCG(1, 2))
	rows := [][]int{
		{5}, {0}, {0, 0, 3, 0},
		{100, 100, 100, 60, 60, 60, 61, 100},
		slices.Repeat([]int{1400}, 150), // more than one batch of bytes
		slices.Repeat([]int{64}, 150),   // more than one message of segments
		{1400, 65507, 1400, 30000, 30000, 30000},
	}
	var mixed []int
	for range 150 {
		mixed = append(mixed, []int{0, 7, 64, 64, 64, 1200, 1200, 1600}[rnd.IntN(8)])
	}
	return append(rows, mixed)
}

// Whatever lengths there are in a row and whoever it is for, each gets all that is
// his, in order.
func TestQueuedDatagramsArrive(t *testing.T) {
	for _, from := range []string{"127.0.0.1:0", "[::]:0"} {
		for _, uncut := range []bool{false, true} {
			conn := listenUDP(t, from)
			if uncut {
				// The kernel refuses UDP_SEGMENT then, as it does
				// where a segment is longer than the way takes.
				raw, _ := conn.SyscallConn()
				raw.Control(func(fd uintptr) {
					if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
						t.Fatal(err)
					}
				})
			}
			s, err := newUDPSender(conn)
			if err != nil {
				t.Fatal(err)
			}
			one, two := listenUDP(t, "127.0.0.1:0"), listenUDP(t, "127.0.0.1:0")
			for _, row := range rowsOfLengths() {
				var toOne, toTwo [][]byte
				for i, n := range row {
					b := bytes.Repeat([]byte{byte(i)}, n)
					to := one
					if i%10 >= 8 {
						to = two
						toTwo = append(toTwo, b)
					} else {
						toOne = append(toOne, b)
					}
					head := n / 3
					if err := s.queue(b[:head], b[head:], addrOf(to)); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.flush(); err != nil {
					t.Fatalf("from %s, uncut %v, %v: %v", from, uncut, row, err)
				}
				if got := receive(t, one, len(toOne)); !slices.EqualFunc(got, toOne, bytes.Equal) {
					t.Errorf("from %s, uncut %v, %v: other datagrams have come", from, uncut, row)
				}
				if got := receive(t, two, len(toTwo)); !slices.EqualFunc(got, toTwo, bytes.Equal) {
					t.Errorf("from %s, uncut %v, %v: other datagrams have come to the second", from, uncut, row)
				}
			}
			if uncut == (s.segment == maxDatagram) {
				t.Errorf("uncut %v, but the longest segment is %d", uncut, s.segment)
			}
		}
	}
}

// What is wrong with one datagram of a batch is not the others' loss.
func TestBadDatagramOfABatch(t *testing.T) {
	s, err := newUDPSender(listenUDP(t, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	at := listenUDP(t, "127.0.0.1:0")
	nowhere := netip.MustParseAddrPort("127.0.0.1:0") // no port to send to
	for _, to := range []netip.AddrPort{addrOf(at), nowhere, addrOf(at), nowhere, addrOf(at)} {
		if err := s.queue(nil, []byte("x"), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("flush: %v, want EINVAL", err)
	}
	receive(t, at, 3)
	for want, err := range map[syscall.Errno]error{
		syscall.EMSGSIZE:     s.queue(make([]byte, 10), make([]byte, maxDatagram), addrOf(at)),
		syscall.EAFNOSUPPORT: s.queue(nil, nil, netip.MustParseAddrPort("[::1]:9")),
	} {
		if !errors.Is(err, want) {
			t.Errorf("queue: %v, want %v", err, want)
		}
	}
}

// Datagrams that come joined are taken apart again: those that a program has sent
// as one are not cut on this machine before they reach the socket.
func TestReadBatchTakesApart(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::]:0"} {
		conn := listenUDP(t, at)
		r, err := newUDPReader(conn)
		if err != nil {
			t.Fatal(err)
		}
		from := listenUDP(t, "127.0.0.1:0")
		s, err := newUDPSender(from)
		if err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addrOf(conn).Port())
		for _, row := range rowsOfLengths() {
			var want, got [][]byte
			for i, n := range row {
				b := bytes.Repeat([]byte{byte(i)}, n)
				want = append(want, b)
				if err := s.queue(nil, b, to); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.flush(); err != nil {
				t.Fatal(err)
			}
			reads := 0
			for len(got) < len(want) {
				reads++
				if err := r.ReadBatch(func(payloads [][]byte, senders []netip.AddrPort) {
					for i, p := range payloads {
						got = append(got, bytes.Clone(p))
						if senders[i] != addrOf(from) {
							t.Errorf("datagram from %v, want from %v", senders[i], addrOf(from))
						}
					}
				}); err != nil {
					t.Fatal(err)
				}
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%s, %v: other datagrams have come", at, row)
			}
			if len(row) == 150 && row[1] == row[0] && reads > 10 {
				t.Errorf("%s: %d reads for 150 datagrams of one length, want few", at, reads)
			}
		}
		conn.Close()
		if err := r.ReadBatch(func([][]byte, []netip.AddrPort) {}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadBatch after Close: %v, want net.ErrClosed", err)
		}
	}
}

// A conversation that waits has no buffer.
func TestWaitingReaderHasNoBuffer(t *testing.T) {
	conn := listenUDP(t, "127.0.0.1:0")
	r, err := newUDPReader(conn)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Unix(1, 0))
	if err := r.ReadBatch(func([][]byte, []netip.AddrPort) { t.Error("a datagram that nobody has sent") }); err == nil {
		t.Error("ReadBatch returned without a datagram")
	}
	if r.batch != nil {
		t.Error("the reader has kept a buffer")
	}
}
