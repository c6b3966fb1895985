//go:build unix

package outboundtest

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	closeAll := func() { l.Close() }
	t.Cleanup(func() { closeAll() })
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) })
	if err != nil {
		t.Fatal(err)
	}
	// A kernel keeps one connection more than it was told (Linux:
	// sk_acceptq_is_full in include/net/sock.h), so that the first one fills
	// the listener, as soon as that is ready to be accepted from.
	first, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	closeAll = func() {
		first.Close()
		l.Close()
	}
	var n int
	raw.Control(func(fd uintptr) {
		n, err = poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, patience)
	})
	if n != 1 {
		t.Fatalf("a listener that has been connected to is not ready: %v", err)
	}
	return l.Addr().(*net.TCPAddr).AddrPort(), closeAll
}

// poll is poll(2) that is not disturbed by signals.
func poll(fds []unix.PollFd, limit time.Duration) (n int, err error) {
	for {
		if n, err = unix.Poll(fds, int(limit.Milliseconds())); err != unix.EINTR {
			return n, err
		}
	}
}
