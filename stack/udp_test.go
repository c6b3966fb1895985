package stack_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// echoUDP answers each datagram with itself, from where it was sent to.
func echoUDP(s *atomic.Pointer[stack.Stack]) *handler {
	return &handler{udp: func(src, dst netip.AddrPort, payload []byte) bool {
		_ = s.Load().WriteUDP(payload, dst, src)
		return true
	}}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// TestUDPSizes: datagrams of all sizes go both ways, in fragments where they are
// longer than the MTU.
func TestUDPSizes(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		var s atomic.Pointer[stack.Stack]
		host, running := onHost(t, echoUDP(&s))
		s.Store(running)
		c, err := host.DialUDP(netip.AddrPort{}, fam.server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		headers := 28
		if !fam.is4() {
			headers = 48
		}
		got := make([]byte, 1<<16)
		for _, size := range []int{0, 1, 1500 - headers - 1, 1500 - headers, 1500 - headers + 1, 9000, stack.MaxDatagram} {
			want := pattern(size)
			if _, err := c.Write(want); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			n, err := c.Read(got)
			if err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if !bytes.Equal(got[:n], want) {
				t.Errorf("%d bytes: the echo has %d or is different", size, n)
			}
		}
		if st := running.Stats(); st.BadDatagrams != 0 {
			t.Errorf("%d bad datagrams", st.BadDatagrams)
		}
	})
}

// TestAnybodyMayAnswer: a client's port is open to all remotes once it is open
// to one (RFC 4787 §5, endpoint-independent filtering).
func TestAnybodyMayAnswer(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		seen := make(chan netip.AddrPort, 1)
		host, s := onHost(t, &handler{udp: func(src, _ netip.AddrPort, _ []byte) bool {
			seen <- src
			return true
		}})
		c, err := host.ListenUDP(netip.AddrPortFrom(fam.client.Addr(), 0))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(fam.server)); err != nil {
			t.Fatal(err)
		}
		client := receive(t, "datagram", seen)
		b := make([]byte, 16)
		for port := uint16(1); port <= 3; port++ {
			from := netip.AddrPortFrom(fam.server.Addr().Next(), port)
			if err := s.WriteUDP([]byte("!"), from, client); err != nil {
				t.Fatal(err)
			}
			n, got, err := c.ReadFrom(b)
			if err != nil || string(b[:n]) != "!" || got.String() != from.String() {
				t.Errorf("%q from %v, %v; want an answer of %s", b[:n], got, err, from)
			}
		}
	})
}

// TestUDPChecksum: a wrong one is counted and dropped; none is right over IPv4,
// and wrong over IPv6 (RFC 8200 §8.1).
func TestUDPChecksum(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		type datagram struct {
			src, dst netip.AddrPort
			payload  string
		}
		got := make(chan datagram, 1)
		w, s := onWire(t, &handler{udp: func(src, dst netip.AddrPort, payload []byte) bool {
			got <- datagram{src, dst, string(payload)}
			return true
		}}, stack.Options{}, nil)
		sumAt := 20 + 6
		if !fam.is4() {
			sumAt = 40 + 6
		}
		good := stacktest.Datagram(fam.client, fam.server, []byte("good"))
		wrong := stacktest.Datagram(fam.client, fam.server, []byte("wrong"))
		wrong[sumAt]++
		none := stacktest.Datagram(fam.client, fam.server, []byte("none"))
		none[sumAt], none[sumAt+1] = 0, 0
		long := stacktest.Datagram(fam.client, fam.server, []byte("long"))
		long[sumAt-1]++ // the length field, one more than there is

		send(t, w, good)
		if d := receive(t, "datagram", got); d != (datagram{fam.client, fam.server, "good"}) {
			t.Errorf("got %v", d)
		}
		send(t, w, wrong, long)
		silent(t, w, fam)
		if st := s.Stats(); st.BadDatagrams != 2 || st.Datagrams != 1 {
			t.Errorf("%d bad and %d good datagrams counted, want 2 and 1", st.BadDatagrams, st.Datagrams)
		}
		send(t, w, none)
		silent(t, w, fam)
		if fam.is4() {
			if d := receive(t, "datagram", got); d.payload != "none" {
				t.Errorf("got %v", d)
			}
		} else if st := s.Stats(); st.BadDatagrams != 3 || len(got) != 0 {
			t.Errorf("%d bad datagrams counted, want 3", st.BadDatagrams)
		}
	})
}

// TestUDPNotForHosts: what is not from one host to one host is not a datagram
// that anybody could answer.
func TestUDPNotForHosts(t *testing.T) {
	fam := families()[0]
	w, _ := onWire(t, &handler{udp: func(src, dst netip.AddrPort, _ []byte) bool {
		t.Errorf("got a datagram from %s to %s", src, dst)
		return false
	}}, stack.Options{}, nil)
	for _, row := range [][2]string{
		{"10.0.0.2:1", "255.255.255.255:1"},
		{"10.0.0.2:1", "224.0.0.251:5353"},
		{"10.0.0.2:1", "0.0.0.0:1"},
		{"0.0.0.0:68", "192.0.2.1:67"},
		{"255.255.255.255:1", "192.0.2.1:1"},
		{"224.0.0.1:1", "192.0.2.1:1"},
		{"10.0.0.2:0", "192.0.2.1:1"},
		{"10.0.0.2:1", "192.0.2.1:0"},
		{"[fd00::2]:1", "[ff02::1]:1"},
		{"[fd00::2]:1", "[::ffff:192.0.2.1]:1"},
		{"[::ffff:10.0.0.2]:1", "[2001:db8::1]:1"},
		{"[::]:1", "[2001:db8::1]:1"},
	} {
		send(t, w, stacktest.Datagram(netip.MustParseAddrPort(row[0]), netip.MustParseAddrPort(row[1]), []byte("x")))
	}
	silent(t, w, fam)
}

// unreachable checks an ICMP error about a datagram of fam's client and returns
// its code.
func unreachable(t *testing.T, fam family, p packet, length int) uint8 {
	t.Helper()
	if p.src != fam.server.Addr() || p.dst != fam.client.Addr() {
		t.Errorf("ICMP from %s to %s, want from %s to %s", p.src, p.dst, fam.server.Addr(), fam.client.Addr())
	}
	quoted := p.rest[8:]
	if src, dst := quotedAddrs(quoted); src != fam.client.Addr() || dst != fam.server.Addr() {
		t.Errorf("quoted packet from %s to %s, want from %s to %s", src, dst, fam.client.Addr(), fam.server.Addr())
	}
	want := uint8(3)
	if fam.is4() {
		if p.proto != header.ICMPv4ProtocolNumber || quoted[9] != 17 || int(binary.BigEndian.Uint16(quoted[2:])) != 28+length || !header.IPv4(quoted).IsChecksumValid() {
			t.Errorf("protocol %d, quoted IPv4 header % x", p.proto, quoted[:20])
		}
		quoted = quoted[20:]
	} else {
		want = 1
		if p.proto != header.ICMPv6ProtocolNumber || quoted[6] != 17 || int(binary.BigEndian.Uint16(quoted[4:])) != 8+length {
			t.Errorf("protocol %d, quoted IPv6 header % x", p.proto, quoted[:40])
		}
		quoted = quoted[40:]
	}
	if p.rest[0] != want {
		t.Errorf("ICMP type %d, want %d", p.rest[0], want)
	}
	h := header.UDP(quoted)
	if len(h) < 8 || h.SourcePort() != fam.client.Port() || h.DestinationPort() != fam.server.Port() || int(h.Length()) != 8+length {
		t.Errorf("quoted datagram % x", quoted)
	}
	return p.rest[1]
}

func TestUnhandledDatagramIsUnreachable(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		w, _ := onWire(t, &handler{}, stack.Options{}, nil)
		want := uint8(3)
		if !fam.is4() {
			want = 4
		}
		for range 200 { // more than netstack's own limit lets through at once
			send(t, w, stacktest.Datagram(fam.client, fam.server, []byte("datagram")))
			if got := unreachable(t, fam, next(t, w), 8); got != want {
				t.Fatalf("code %d, want %d", got, want)
			}
		}
	})
}

func TestRefuseUDP(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		w, s := onWire(t, &handler{}, stack.Options{}, nil)
		for _, row := range []struct {
			errno        syscall.Errno
			code4, code6 uint8
		}{
			{syscall.ECONNREFUSED, 3, 4},
			{syscall.ENETUNREACH, 3, 4},
			{syscall.EHOSTUNREACH, 3, 4},
			{syscall.EACCES, 13, 1},
		} {
			want := row.code4
			if !fam.is4() {
				want = row.code6
			}
			s.RefuseUDP(fam.client, fam.server, 1234, row.errno)
			if got := unreachable(t, fam, next(t, w), 1234); got != want {
				t.Errorf("%v: code %d, want %d", row.errno, got, want)
			}
		}
		s.RefuseUDP(fam.client, fam.server, 1, 0)
		s.RefuseUDP(fam.client, netip.AddrPort{}, 1, syscall.EACCES)
		s.RefuseUDP(netip.AddrPort{}, netip.AddrPort{}, 1, syscall.EACCES)
		silent(t, w, fam)
	})
}

// TestRefusalReachesSocket: a connected socket of another implementation learns
// of it, whether the handler says no at once or later.
func TestRefusalReachesSocket(t *testing.T) {
	for name, later := range map[string]bool{"at once": false, "later": true} {
		t.Run(name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam family) {
				seen := make(chan netip.AddrPort, 1)
				host, s := onHost(t, &handler{udp: func(src, _ netip.AddrPort, _ []byte) bool {
					seen <- src
					return later
				}})
				c, err := host.DialUDP(netip.AddrPort{}, fam.server)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				src := receive(t, "datagram", seen)
				if later {
					s.RefuseUDP(src, fam.server, 1, syscall.ECONNREFUSED)
				}
				// An error wakes a reader without one of its own.
				eventually(t, "the socket says ECONNREFUSED", func() bool {
					c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
					_, err := c.Read(make([]byte, 1))
					return errors.Is(err, syscall.ECONNREFUSED)
				})
			})
		})
	}
}

func TestWriteUDPErrors(t *testing.T) {
	w, s := onWire(t, &handler{}, stack.Options{}, nil)
	v4, v6 := families()[0], families()[1]
	for _, row := range []struct {
		from, to netip.AddrPort
		n        int
		want     error
	}{
		{v4.server, v6.client, 1, syscall.EAFNOSUPPORT},
		{v6.server, v4.client, 1, syscall.EAFNOSUPPORT},
		{v4.server, netip.AddrPort{}, 1, syscall.EAFNOSUPPORT},
		{netip.AddrPort{}, netip.AddrPort{}, 1, syscall.EAFNOSUPPORT},
		{v4.server, v4.client, stack.MaxDatagram + 1, syscall.EMSGSIZE},
		{v6.server, v6.client, stack.MaxDatagram + 1, syscall.EMSGSIZE},
		{v4.server, v4.client, 1, nil},
		{netip.AddrPortFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 80), v4.client, 1, nil},
	} {
		if err := s.WriteUDP(make([]byte, row.n), row.from, row.to); !errors.Is(err, row.want) {
			t.Errorf("%d bytes from %s to %s: %v, want %v", row.n, row.from, row.to, err, row.want)
		}
	}
	for range 2 {
		if p := next(t, w); p.src != v4.server.Addr() {
			t.Errorf("datagram from %s, want from %s", p.src, v4.server.Addr())
		}
	}
}

// TestWriteUDPNoChecksumOfZero: a sum that comes out as 0 is sent as 0xffff
// (RFC 768); one payload in 65,536 has it.
func TestWriteUDPNoChecksumOfZero(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		w, s := onWire(t, &handler{}, stack.Options{}, nil)
		// The two bytes that make up for the sum over all the rest.
		payload := []byte{0, 0}
		if err := s.WriteUDP(payload, fam.server, fam.client); err != nil {
			t.Fatal(err)
		}
		copy(payload, header.UDP(next(t, w).rest)[6:8])
		if err := s.WriteUDP(payload, fam.server, fam.client); err != nil {
			t.Fatal(err)
		}
		if sum := header.UDP(next(t, w).rest).Checksum(); sum != 0xffff {
			t.Errorf("checksum %#04x, want 0xffff", sum)
		}
	})
}

// TestWriteUDPAllocates nothing, over either family.
func TestWriteUDPAllocates(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	device := &sink{Wire: stacktest.NewWire(1500)}
	s, _ := start(t, stack.Options{Device: device, Handler: &handler{}, Headroom: 16}, nil)
	for _, fam := range families() {
		for _, size := range []int{0, 64, 1400} {
			payload := make([]byte, size)
			if n := testing.AllocsPerRun(1000, func() {
				if err := s.WriteUDP(payload, fam.server, fam.client); err != nil {
					t.Error(err)
				}
			}); n != 0 {
				t.Errorf("%s, %d bytes: %v allocations, want 0", fam.name, size, n)
			}
		}
	}
	if device.packets.Load() == 0 {
		t.Error("nothing was sent")
	}
}

// sink is a device that forgets what is written to it.
type sink struct {
	*stacktest.Wire
	packets atomic.Uint64
}

func (s *sink) Write(bufs [][]byte, offset int) (int, error) {
	if offset != 16 {
		panic(fmt.Sprint("packet without headroom: offset ", offset))
	}
	s.packets.Add(uint64(len(bufs)))
	return len(bufs), nil
}

// TestFragmentsOfMany: datagrams whose fragments come mixed and in any order.
func TestFragmentsOfMany(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		got := make(chan []byte, 2)
		w, _ := onWire(t, &handler{udp: func(_, _ netip.AddrPort, payload []byte) bool {
			got <- bytes.Clone(payload)
			return true
		}}, stack.Options{}, nil)
		one := stacktest.Fragments(stacktest.Datagram(fam.client, fam.server, bytes.Repeat([]byte("1"), 4000)), 1, 1500)
		two := stacktest.Fragments(stacktest.Datagram(fam.client, fam.server, bytes.Repeat([]byte("2"), 4000)), 2, 1500)
		send(t, w, one[2], two[1], one[0], two[2], one[1], two[0])
		for _, want := range []string{"1", "2"} {
			if b := receive(t, "datagram", got); !bytes.Equal(b, bytes.Repeat([]byte(want), 4000)) {
				t.Errorf("datagram %s: %d bytes, or mixed", want, len(b))
			}
		}
	})
}
