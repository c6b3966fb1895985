//go:build unix

package outboundtest

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// FullPort returns an address to which a connect neither succeeds nor fails: a
// listener with a backlog of nothing, which nobody accepts from and which is
// full. It is closed at the end of the test, or by the function.
func FullPort(t testing.TB) (netip.AddrPort, func()) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) })
	if err != nil {
		t.Fatal(err)
	}
	var waiting []net.Conn
	closeAll := func() {
		for _, c := range waiting {
			c.Close()
		}
		l.Close()
	}
	t.Cleanup(closeAll)
	// The kernel keeps one connection more than it was told, some kernels a
	// few more; the first that does not come through says full.
	for range 16 {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond)
		if err != nil {
			return l.Addr().(*net.TCPAddr).AddrPort(), closeAll
		}
		waiting = append(waiting, c)
	}
	t.Fatal("a listener with a backlog of 0 has taken 16 connections")
	panic("unreachable")
}
