package outboundtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopback6 = netip.IPv6Loopback()
)

// Names is an [outbound.Resolver] of fixed names.
type Names map[string][]netip.Addr

// LookupNetIP returns the addresses of host, or a DNS error that says not found.
func (n Names) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, a := range n[host] {
		if network == "ip" || (network == "ip4") == a.Is4() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return out, nil
}

// Serve accepts connections at a free port of ip until the end of the test and
// runs handle for each in a goroutine of its own. Connections are closed after
// handle, and at the end of the test, which waits for all of them.
func Serve(t testing.TB, ip netip.Addr, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	return serveAll(t, []netip.Addr{ip}, handle)
}

// serveAll is Serve at the same port of several addresses.
func serveAll(t testing.TB, ips []netip.Addr, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	var listeners []*net.TCPListener
	var port uint16
	listen := func() error { // all or nothing
		for _, ip := range ips {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, port)))
			if err != nil {
				for _, l := range listeners {
					l.Close()
				}
				listeners, port = nil, 0
				return err
			}
			listeners = append(listeners, l)
			port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		}
		return nil
	}
	err := listen()
	for range 20 { // a port that is free at one address may be taken at another
		if err == nil {
			break
		}
		err = listen()
	}
	if err != nil {
		t.Fatal(err)
	}

	all := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		all[i] = l
	}
	accept(t, all, func(c net.Conn) { handle(c.(*net.TCPConn)) })
	return netip.AddrPortFrom(ips[0], port)
}

// ServeUnix is [Serve] at a unix socket, whose path it returns.
func ServeUnix(t testing.TB, handle func(*net.UnixConn)) string {
	t.Helper()
	// Not t.TempDir, in which the name of the test may be longer than the
	// path of a socket can be.
	dir, err := os.MkdirTemp("", "socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	accept(t, []net.Listener{l}, func(c net.Conn) { handle(c.(*net.UnixConn)) })
	return path
}

// accept runs handle for each connection to one of the listeners, and closes all
// at the end of the test.
func accept(t testing.TB, listeners []net.Listener, handle func(net.Conn)) {
	var mu sync.Mutex // guards conns; nil once the test is over
	conns := map[net.Conn]bool{}
	var running sync.WaitGroup
	for _, l := range listeners {
		running.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				mu.Lock()
				if conns == nil {
					conn.Close()
					mu.Unlock()
					return
				}
				conns[conn] = true
				running.Go(func() {
					defer func() {
						conn.Close()
						mu.Lock()
						delete(conns, conn)
						mu.Unlock()
					}()
					handle(conn)
				})
				mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		conns = nil
		mu.Unlock()
		running.Wait()
	})
}

// ClosedPort returns an address of ip where nobody listens.
func ClosedPort(t testing.TB, ip netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// ServeUDP hands the datagrams at a free port of ip to handle, one at a time,
// until the end of the test. The payload is valid until handle returns.
func ServeUDP(t testing.TB, ip netip.Addr, handle func(conn *net.UDPConn, from netip.AddrPort, payload []byte)) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				handle(conn, from, buf[:n])
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		running.Wait()
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// needIPv6 skips a test on a machine without ::1, and fails it where everything has to
// run.
func needIPv6(t testing.TB) {
	t.Helper()
	if hasIPv6(t) {
		return
	}
	const reason = "no IPv6 on the loopback interface"
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// hasIPv6 says whether this machine has ::1. Without it the tests of IPv6 are
// left out, but not where everything has to run.
func hasIPv6(t testing.TB) bool {
	t.Helper()
	l, err := net.ListenTCP("tcp6", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback6, 0)))
	if err == nil {
		l.Close()
		return true
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no IPv6 on the loopback interface: %v", err)
	}
	return false
}

// openFiles returns how many file descriptors this process has open, or an
// errors.ErrUnsupported.
func openFiles() (int, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return len(fds), nil
}
