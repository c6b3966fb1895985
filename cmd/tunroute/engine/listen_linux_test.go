package engine_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/socks"
)

// markAt returns the mark of the UDP socket of this process at a port of 127.0.0.1.
func markAt(t *testing.T, port uint16) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		fd, _ := strconv.Atoi(f.Name())
		at, err := unix.Getsockname(fd)
		a, ok := at.(*unix.SockaddrInet4)
		if err != nil || !ok || a.Port != int(port) || a.Addr != [4]byte{127, 0, 0, 1} {
			continue
		}
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			continue
		}
		mark, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
		if err != nil {
			t.Fatal(err)
		}
		return mark
	}
	t.Fatalf("no socket at %d", port)
	return 0
}

// TestAssociationsAreMarked: with an interface beside it, what a listener sends to its
// clients would go there otherwise. Clients are told the port and the address that the
// config has.
func TestAssociationsAreMarked(t *testing.T) {
	const mark = 0x7412
	port := freePort(t) // of TCP; nobody has that of UDP
	at := serveWith(t, fmt.Sprintf("tun: off\nlisten: {socks: {at: SELF, udp: {ports: %d, announce: 203.0.113.1}}}\nrules: [{via: direct}]\n", port), engine.Options{Mark: mark})

	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(enginetest.Patience))
	b, err := socks.AppendRequest(socks.AppendMethods(nil, socks.MethodNone), socks.UDPAssociate, socks.Addr{IP: netip.IPv4Unspecified()})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(b)
	if _, err := socks.ReadMethod(c, socks.MethodNone); err != nil {
		t.Fatal(err)
	}
	relay, err := socks.ReadReply(c)
	if errors.Is(err, socks.ReplyRuleset) && os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("marks need CAP_NET_ADMIN")
		}
		t.Skip("marks need CAP_NET_ADMIN")
	}
	if err != nil {
		t.Fatal(err)
	}
	if want := (socks.Addr{IP: netip.MustParseAddr("203.0.113.1"), Port: port}); relay != want {
		t.Errorf("the relay is at %v, want %v", relay, want)
	}
	if got := markAt(t, relay.Port); got != mark {
		t.Errorf("the mark is %#x, want %#x", got, mark)
	}
}
