package lab

import (
	"fmt"
	"net/netip"
	"testing"
)

// Switch joins more than two nodes: it is a node of its own with a bridge for each
// network.
type Switch struct{ *Node }

// NewSwitch makes a switch with some networks, which lives until the test ends.
func NewSwitch(t testing.TB, networks ...string) Switch {
	t.Helper()
	sw := Switch{NewNode(t, "switch", netip.IPv4Unspecified())}
	sw.Sysctl(t, "net.ipv6.conf.default.disable_ipv6", "1") // of its own it has nothing to say
	for _, name := range networks {
		sw.IP(t, "link add "+name+" type bridge")
		sw.IP(t, "link set "+name+" up")
	}
	return sw
}

// Attach gives n an interface that is called like the network which it leads to, with
// some IPv4 addresses. At the switch the other end of the cable is called n-network.
func (sw Switch) Attach(t testing.TB, n *Node, network string, addrs ...netip.Prefix) {
	t.Helper()
	port := n.Name + "-" + network
	sw.IP(t, fmt.Sprintf("link add %s type veth peer name %s netns %s", port, network, nsPath(n.net)))
	sw.IP(t, fmt.Sprintf("link set %s master %s up", port, network))
	n.Sysctl(t, "net.ipv6.conf."+network+".addr_gen_mode", "1") // none of IPv6
	for _, a := range addrs {
		n.IP(t, fmt.Sprintf("addr add %s dev %s", a, network))
	}
	n.IP(t, "link set "+network+" up")
}
