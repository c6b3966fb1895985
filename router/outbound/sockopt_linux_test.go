package outbound_test

import (
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

// option reads a socket option of conn.
func option(t *testing.T, conn any, level, name int) int {
	t.Helper()
	raw := must(conn.(syscall.Conn).SyscallConn())(t)
	var value int
	var err error
	raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) })
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestDirectSocketOptions(t *testing.T) {
	for _, ip := range []netip.Addr{loopback, netip.IPv6Loopback()} {
		target := flow.AddrTarget(outboundtest.Serve(t, ip, tellPeer))
		d := must(outbound.NewDirect(outbound.DirectOptions{Bind: ip, Interface: "lo"}))(t)
		conn := must(d.DialTCP(t.Context(), target))(t)
		defer conn.Close()
		for _, o := range []struct {
			name          string
			level, option int
			want          int
		}{
			{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
			{"IP_BIND_ADDRESS_NO_PORT", unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1},
			{"SO_BINDTOIFINDEX", unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1}, // lo is 1 in every namespace
		} {
			if got := option(t, conn, o.level, o.option); got != o.want {
				t.Errorf("%v: %s is %d, want %d", ip, o.name, got, o.want)
			}
		}
	}
}

func TestDirectInterfaceThatIsNotThere(t *testing.T) {
	d := must(outbound.NewDirect(outbound.DirectOptions{Interface: "nothere0"}))(t)
	if conn, err := d.DialTCP(t.Context(), flow.Target{Addr: loopback, Port: 9}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("DialTCP: %v, %v, want ENODEV", conn, err)
	}
	if conn, err := d.OpenUDP(t.Context()); !errors.Is(err, unix.ENODEV) {
		t.Errorf("OpenUDP: %v, %v, want ENODEV", conn, err)
	}
	if _, err := outbound.NewDirect(outbound.DirectOptions{Interface: "a-name-of-16-byte"}); err == nil {
		t.Error("NewDirect took an interface name that no interface can have")
	}
}

func TestDirectMark(t *testing.T) {
	const mark = 0x7411
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, tellPeer))
	d := must(outbound.NewDirect(outbound.DirectOptions{Mark: mark}))(t)
	conn, err := d.DialTCP(t.Context(), target)
	if errors.Is(err, unix.EPERM) {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("marks need CAP_NET_ADMIN: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := option(t, conn, unix.SOL_SOCKET, unix.SO_MARK); got != mark {
		t.Errorf("the mark is %#x, want %#x", got, mark)
	}
	udp := must(d.OpenUDP(t.Context()))(t)
	defer udp.Close()
}
