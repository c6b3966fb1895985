package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// Addresses of the lab.
var (
	// Proxy4 and Proxy6 are where SOCKS servers listen, on srv.
	Proxy4 = netip.MustParseAddr("192.0.2.10")
	Proxy6 = netip.MustParseAddr("2001:db8:2::10")
	// Host4 and Host6 are where host's own connections come from.
	Host4 = netip.MustParseAddr("10.77.0.2")
	Host6 = netip.MustParseAddr("fd77::2")
	// Lan4 and Lan6 are the client's behind host.
	Lan4 = netip.MustParseAddr("10.78.0.2")
	Lan6 = netip.MustParseAddr("fd78::2")

	// NoHost4 and NoHost6 are those of a host that is down: srv says that
	// they are unreachable, to others and to its own programs.
	NoHost4 = netip.MustParseAddr("203.0.113.200")
	NoHost6 = netip.MustParseAddr("2001:db8:113::200")
	// NoNet4 and NoNet6 are in a network to which srv has no route.
	NoNet4 = netip.MustParseAddr("198.51.100.1")
	NoNet6 = netip.MustParseAddr("2001:db8:51::1")

	dns4 = netip.MustParseAddr("203.0.113.53")
	dns6 = netip.MustParseAddr("2001:db8:113::53")
)

// Targets is how many addresses of each IP version srv's servers have.
const Targets = 8

// Target4 returns the IPv4 address of target i, from 1 on.
func Target4(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }

// Target6 returns the IPv6 address of target i, from 1 on.
func Target6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01, 0x13, 15: byte(i)})
}

// Names that resolvers of the lab know.
const (
	// SecretName is known to the DNS of srv alone: Target4(1) and
	// Target6(1).
	SecretName = "only-the-proxy-knows.test"
	// PublicName is known to that of host too, and means the same.
	PublicName = "everybody-knows.test"
	// NoName is a name that does not exist.
	NoName = "nobody-knows.test"
)

// Lab is the hosts of the drawing, with all servers running.
type Lab struct {
	Host, Srv, Lan *Node
	Servers        *Servers
	// DNS is the one that host and lan ask; what only srv may ask is not
	// logged.
	DNS *DNS
}

// New makes a lab, which lives until the test ends. Where there can be none the
// test is skipped, or fails: see [Missing].
func New(t testing.TB) *Lab {
	t.Helper()
	needLab(t)
	Need(t, "ip", "iproute2")
	Need(t, "nsenter", "util-linux")
	l := &Lab{
		Host: newNode(t, "host", dns4.String()),
		Srv:  newNode(t, "srv", "127.0.0.1"),
		Lan:  newNode(t, "lan", dns4.String()),
	}
	link(t, l.Host, "up0", []netip.Addr{Host4, Host6}, l.Srv, "srv0", []netip.Addr{parse("10.77.0.1"), parse("fd77::1")})
	link(t, l.Lan, "lan0", []netip.Addr{Lan4, Lan6}, l.Host, "lan1", []netip.Addr{parse("10.78.0.1"), parse("fd78::1")})
	for _, line := range []string{"route add default via 10.77.0.1", "route add default via fd77::1"} {
		l.Host.IP(t, line)
	}
	for _, line := range []string{"route add default via 10.78.0.1", "route add default via fd78::1"} {
		l.Lan.IP(t, line)
	}
	own := []netip.Addr{Proxy4, Proxy6, dns4, dns6}
	for i := range Targets {
		own = append(own, Target4(i+1), Target6(i+1))
	}
	for _, a := range own {
		line := fmt.Sprintf("addr add %s dev lo", netip.PrefixFrom(a, a.BitLen()))
		if a.Is6() {
			line += " nodad" // or it can be bound to a moment later only
		}
		l.Srv.IP(t, line)
	}
	for _, line := range []string{
		// To lan as well: a packet that host forwards past tunroute is
		// answered, and the test that it belongs to fails.
		"route add 10.78.0.0/24 via 10.77.0.2", "route add fd78::/64 via fd77::2",
		"route add unreachable " + NoHost4.String(), "route add unreachable " + NoHost6.String(),
	} {
		l.Srv.IP(t, line)
	}
	l.Servers = serve(t, l.Srv)
	l.DNS = newDNS(t, l.Srv, []netip.Addr{dns4, dns6}, PublicName)
	newDNS(t, l.Srv, []netip.Addr{parse("127.0.0.1")}, PublicName, SecretName)
	return l
}

func parse(s string) netip.Addr { return netip.MustParseAddr(s) }

// link joins two nodes.
func link(t testing.TB, a *Node, aName string, aAddrs []netip.Addr, b *Node, bName string, bAddrs []netip.Addr) {
	t.Helper()
	a.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", aName, bName, nsPath(b.net)))
	ends := []struct {
		node  *Node
		name  string
		addrs []netip.Addr
	}{{a, aName, aAddrs}, {b, bName, bAddrs}}
	for _, end := range ends {
		end.node.Sysctl(t, "net.ipv6.conf."+end.name+".addr_gen_mode", "1") // its link-local address follows
		end.node.IP(t, "link set "+end.name+" up")
	}
	for i, end := range ends {
		// The kernel's own would come up later. Without one, it resolves no
		// neighbour for what it forwards, and does not see whether one that it
		// knows is still there (net/ipv6/ndisc.c, ndisc_send_ns).
		linkLocal := parse(fmt.Sprintf("fe80::%d", i+1))
		for _, addr := range append([]netip.Addr{linkLocal}, end.addrs...) {
			bits, flags := 24, ""
			if addr.Is6() {
				// There is nobody else who could have it.
				bits, flags = 64, " nodad"
			}
			end.node.IP(t, fmt.Sprintf("addr add %s/%d dev %s%s", addr, bits, end.name, flags))
		}
	}
}

// Dir returns a new directory that every user can read, also on the nodes. It is
// in memory, and removed at the end of the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// File writes a file in a directory of its own and returns its path.
func File(t testing.TB, name, content string) string {
	t.Helper()
	file := filepath.Join(Dir(t), name)
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
