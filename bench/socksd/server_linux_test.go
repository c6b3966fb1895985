package socksd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// start runs a server until the test ends.
func start(t *testing.T) *net.TCPAddr {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	l := listen(t)
	go func() { ended <- New().Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().(*net.TCPAddr)
}

// request sends greeting, request and early in one piece, and returns the code
// and the address of the reply.
func request(t *testing.T, server *net.TCPAddr, command byte, to netip.AddrPort, early string) (*net.TCPConn, byte, netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	b := appendAddr([]byte{version, 2, 2, noAuth, version, command, 0}, to)
	if _, err := c.Write(append(b, early...)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2+4+4+2)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if got[0] != version || got[1] != noAuth || got[2] != version || got[5] != typeIPv4 {
		t.Fatalf("answers % x", got)
	}
	bound := netip.AddrPortFrom(netip.AddrFrom4([4]byte(got[6:10])), uint16(got[10])<<8|uint16(got[11]))
	return c, got[3], bound
}

// TestConnect: bytes that come right behind the request, more than any buffer
// holds, the end of each direction on its own.
func TestConnect(t *testing.T) {
	l := listen(t)
	big := make([]byte, 5<<20)
	rand.Read(big)
	c, code, bound := request(t, start(t), connect, l.Addr().(*net.TCPAddr).AddrPort(), "early")
	target, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if code != granted || bound != target.RemoteAddr().(*net.TCPAddr).AddrPort() {
		t.Fatalf("code %d, bound to %v; want %d, %v", code, bound, granted, target.RemoteAddr())
	}
	target.SetDeadline(time.Now().Add(time.Minute))
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(big)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	if got, err := io.ReadAll(target); err != nil || !bytes.Equal(got, append([]byte("early"), big...)) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(big)+5)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	go func() {
		_, err := target.Write(big)
		sent <- errors.Join(err, target.CloseWrite())
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes back, %v; want %d", len(got), err, len(big))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestResetIsPassedOn: a stream that was cut does not look as if it had ended.
func TestResetIsPassedOn(t *testing.T) {
	l := listen(t)
	c, _, _ := request(t, start(t), connect, l.Addr().(*net.TCPAddr).AddrPort(), "")
	target, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	target.SetLinger(0)
	target.Close()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, %v; want a reset", n, err)
	}
}

func TestRefusals(t *testing.T) {
	l := listen(t)
	closed := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	server := start(t)
	if _, code, _ := request(t, server, connect, closed, ""); code != refused {
		t.Errorf("a port without a listener: code %d, want %d", code, refused)
	}
	if _, code, _ := request(t, server, 2, closed, ""); code != noSuchCommand {
		t.Errorf("BIND: code %d, want %d", code, noSuchCommand)
	}
}

// TestIdleConnectionsCostTwoFiles: thousands of them fit into the files that a
// process may have.
func TestIdleConnectionsCostTwoFiles(t *testing.T) {
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	l := listen(t)
	server := start(t)
	const count = 50
	before := files()
	for range count {
		c, _, _ := request(t, server, connect, l.Addr().(*net.TCPAddr).AddrPort(), "x")
		target, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { target.Close() })
		target.SetDeadline(time.Now().Add(time.Minute))
		// A byte each way, so that both directions have been at work.
		if _, err := io.ReadFull(target, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		target.Write([]byte("y"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	// The test has two of its own for each; some pipes are kept.
	if n := files() - before; n > 4*count+20 {
		t.Errorf("%d connections have %d files, want %d and a few pipes", count, n, 4*count)
	}
}

// TestAssociate: datagrams go out without their header and come back with that
// of who has sent them; when the connection ends, so does the relay.
func TestAssociate(t *testing.T) {
	c, code, relay := request(t, start(t), associate, netip.AddrPort{}, "")
	if code != granted {
		t.Fatalf("code %d", code)
	}
	target, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	end := time.Now().Add(time.Minute)
	target.SetDeadline(end)
	client.SetDeadline(end)
	to := target.LocalAddr().(*net.UDPAddr).AddrPort()
	header := appendAddr([]byte{0, 0, 0}, to)
	b := make([]byte, 100)
	for _, payload := range []string{"first", "", "second"} {
		client.Write([]byte{0, 0, 1, typeIPv4, 1, 2, 3, 4, 5, 6, 'x'}) // a fragment is not carried
		client.Write([]byte{0, 0})
		client.Write(append(bytes.Clone(header), payload...))
		n, from, err := target.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != payload {
			t.Fatalf("got %q, %v; want %q", b[:n], err, payload)
		}
		target.WriteToUDPAddrPort([]byte("re: "+payload), from)
		n, err = client.Read(b)
		if want := string(header) + "re: " + payload; err != nil || string(b[:n]) != want {
			t.Fatalf("got %q, %v; want %q", b[:n], err, want)
		}
	}
	c.Close()
	for { // until it is told that nobody is there any more
		if _, err := client.Write(header); errors.Is(err, syscall.ECONNREFUSED) {
			break
		} else if err != nil || time.Now().After(end) {
			t.Fatalf("the relay is still there: %v", err)
		}
	}
}
