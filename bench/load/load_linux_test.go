package load

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/bench/pattern"
	"tunroute/tun/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter() // the ports are fixed
	goleak.VerifyTestMain(m)
}

var loopback = Way{Targets: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}

// start runs all servers on this host until the test ends.
func start(t *testing.T) (*Client, *Server) {
	t.Helper()
	nstest.Need(t)
	nstest.IP(t, "link set lo up")
	source := pattern.New(1)
	s := NewServer(source)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		s.conns.Wait()
	})
	if err := errors.Join(s.serveTCP(ctx, BulkPort, s.bulk), s.serveTCP(ctx, RequestPort, s.requests),
		s.serveUDP(ctx, SinkPort, s.sink), s.serveUDP(ctx, EchoPort, s.sendBack)); err != nil {
		t.Fatal(err)
	}
	return NewClient(source), s
}

func TestBulk(t *testing.T) {
	c, s := start(t)
	for _, a := range []BulkArgs{
		{Streams: 3, Up: true, For: time.Second},
		{Streams: 3, Down: true, For: time.Second},
		{Streams: 2, Up: true, Down: true, Bytes: 3<<20 + 1, For: time.Minute},
		{Streams: 2, Down: true, HalfClosed: true, Bytes: 3<<20 + 1, For: time.Minute},
	} {
		a.Way, a.Key = loopback, 100
		near, err := c.Bulk(a)
		if err != nil {
			t.Fatal(err)
		}
		far, err := s.takeStreams(a.Streams)
		if err != nil || len(far) != a.Streams {
			t.Fatalf("%d records, %v", len(far), err)
		}
		byKey := make(map[uint64]Received)
		for _, f := range far {
			byKey[f.Key] = f
		}
		for i, n := range near.Streams {
			f := byKey[100+uint64(i)]
			if n.Wrong+n.Failed+f.Wrong+f.Failed != "" || n.Sent != f.Bytes || f.Sent != n.Bytes {
				t.Errorf("%+v: stream %d: near %+v, far %+v", a, i, n, f)
			}
			if a.Up != (n.Sent > 0) || a.Down != (n.Bytes > 0) || a.Bytes != 0 && max(n.Sent, n.Bytes) != a.Bytes {
				t.Errorf("%+v: stream %d: sent %d, received %d", a, i, n.Sent, n.Bytes)
			}
		}
	}
}

// TestAChangedByteIsTold: a router that changes one byte of a stream is found
// out, in either direction.
func TestAChangedByteIsTold(t *testing.T) {
	c, s := start(t)
	for _, up := range []bool{true, false} {
		way := spoil(t, up, 100_000)
		near, err := c.Bulk(BulkArgs{Way: way, Streams: 1, Up: up, Down: !up, Bytes: 1 << 20, For: time.Minute, Key: 7})
		if err != nil {
			t.Fatal(err)
		}
		far, err := s.takeStreams(1)
		if err != nil || len(far) != 1 {
			t.Fatalf("%d records, %v", len(far), err)
		}
		wrong := near.Streams[0].Wrong
		if up {
			wrong = far[0].Wrong
		}
		if !strings.HasPrefix(wrong, "byte ") {
			t.Errorf("up is %t: %q, want the place of the byte", up, wrong)
		}
	}
}

// spoil is a SOCKS server that changes a byte.
func spoil(t *testing.T, up bool, at int) Way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, 3))
		c.Write([]byte{5, 0})
		io.ReadFull(c, make([]byte, 10))
		c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		out, err := net.Dial("tcp", netip.AddrPortFrom(loopback.Targets[0], BulkPort).String())
		if err != nil {
			t.Error(err)
			return
		}
		defer out.Close()
		back := make(chan struct{})
		go func() {
			defer close(back)
			io.Copy(&spoiler{c, at, !up}, out)
			c.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(&spoiler{out, at, up}, c)
		out.(*net.TCPConn).CloseWrite()
		<-back
	}()
	w := loopback
	w.SOCKS = l.Addr().(*net.TCPAddr).AddrPort()
	return w
}

type spoiler struct {
	w    io.Writer
	left int
	on   bool
}

func (s *spoiler) Write(p []byte) (int, error) {
	if s.on && s.left >= 0 && s.left < len(p) {
		p = bytes.Clone(p)
		p[s.left] ^= 1
	}
	s.left -= len(p)
	return s.w.Write(p)
}

func TestRequests(t *testing.T) {
	c, _ := start(t)
	a := RequestArgs{Way: loopback, Workers: 4, For: 200 * time.Millisecond, Key: 5}
	for name, f := range map[string]func(RequestArgs) (Times, error){"connect": c.Connect, "keep": c.Keep, "echo": c.Echo} {
		got, err := f(a)
		if err != nil || got.Count == 0 || got.Errors != 0 || got.Wrong != "" || got.P50 <= 0 || got.P99 < got.P50 || got.Max < got.P99 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	a.Count = 50
	if got, err := c.Connect(a); err != nil || got.Count != 50 {
		t.Errorf("50 connections: %+v, %v", got, err)
	}
}

func TestIdle(t *testing.T) {
	c, _ := start(t)
	for _, count := range []int{10, 100, 0} {
		if got, err := c.Idle(IdleArgs{Way: loopback, Count: count}); err != nil || got.Error != "" || got.Open != count {
			t.Errorf("%+v, %v; want %d open", got, err, count)
		}
	}
}

func TestDatagrams(t *testing.T) {
	c, s := start(t)
	sent, err := c.Send(SendArgs{Way: loopback, Size: 64, Rate: 200, For: time.Second, Key: 9})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.takeCounts(9)
	if err != nil || got.Count == 0 || got.Count != sent.Sent || got.Bytes != 64*got.Count || got.Repeated != 0 || got.Wrong != "" {
		t.Errorf("%+v of %+v, %v", got, sent, err)
	}
	back, err := c.EchoUDP(PingPongArgs{Way: loopback, Sockets: 2, Window: 8, Size: 100, For: time.Second})
	if err != nil || back.Answers == 0 || back.Lost != 0 || back.Wrong != "" {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestDatagramsAreTold(t *testing.T) {
	source := pattern.New(1)
	right := appendDatagram(nil, source, 1, 0, 64)
	other := appendDatagram(nil, source, 1, 1, 64)
	changed := appendDatagram(nil, source, 1, 2, 64)
	changed[40] ^= 1
	s := NewServer(source)
	for _, p := range [][]byte{right, other, right, changed} {
		s.count(p, time.Now())
	}
	got, err := s.takeCounts(1)
	if err != nil || got.Count != 2 || got.Repeated != 1 || got.Wrong == "" {
		t.Errorf("%+v, %v; want 2, 1 repeated, and 1 wrong", got, err)
	}
}

// TestDNS: against a server that answers every second question, some with an
// error.
func TestDNS(t *testing.T) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	names := make(map[string]bool)
	go func() {
		defer close(ended)
		b := make([]byte, 512)
		for n := 0; ; n++ {
			k, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			names[string(b[dnsHeader:k])] = true
			b[2] |= dnsResponse
			b[7] = 1
			if n%4 == 1 {
				b[3] |= 3 // NXDOMAIN
			}
			if n%2 == 1 || n == 0 {
				server.WriteToUDPAddrPort(b[:k], from)
			}
			b[3] = 0
		}
	}()
	got, err := NewClient(pattern.New(1)).DNS(PingPongArgs{
		Server: server.LocalAddr().(*net.UDPAddr).AddrPort(), Sockets: 1, Window: 4, Names: 9, Once: true, For: time.Minute})
	server.Close()
	<-ended
	if err != nil || got.Answers != 3 || got.Refused != 2 || got.Lost != 4 || len(names) != 9 {
		t.Errorf("%+v, %v, %d names; want 3 answers, 2 refused and 4 lost of 9", got, err, len(names))
	}
}
