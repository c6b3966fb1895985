package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tunroute/tun"
)

// Setup makes the namespaces of the calling process, which [Start] has started,
// what they are for: the TUN is the only way out and names are asked there. It
// returns the open TUN, to be sent to R, and what could not be done but is not
// necessary, a line each.
//
// What forbids it is a [*tun.Obstacle], see [Diagnose].
func Setup(c Config) (device *os.File, warnings []string, err error) {
	device, warnings, err = setup(c)
	if err != nil {
		return nil, nil, Diagnose(fmt.Errorf("set up the namespace: %w", err))
	}
	return device, warnings, nil
}

func setup(c Config) (device *os.File, warnings []string, err error) {
	// Nothing that is mounted here is to be seen outside. Not private: what
	// the host mounts later, such as a home directory on first use, has to
	// appear here (mount_namespaces(7)).
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, nil, &fs.PathError{Op: opMount, Path: "/", Err: err}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("set lo up: %w", err)
	}

	made, err := tun.Create(tun.Config{Name: c.Device, MTU: c.MTU})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			made.Close()
		}
	}()
	if warnings, err = addresses(h, made.Name(), c.Addresses); err != nil {
		return nil, nil, err
	}
	if err := allowPing(); err != nil {
		warnings = append(warnings, fmt.Sprintf("ping needs root here: %v", err))
	}
	if err := shadow(c); err != nil {
		return nil, nil, err
	}
	return made, warnings, nil
}

// addresses gives the TUN its addresses and makes it the default route of each
// IP version that has one.
func addresses(h *netlink.Handle, name string, prefixes []netip.Prefix) (warnings []string, err error) {
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	v6 := false
	for _, p := range prefixes {
		v6 = v6 || p.Addr().Is6()
	}
	if v6 {
		if err := enableIPv6(h, link); err != nil {
			v6 = false
			warnings = append(warnings, fmt.Sprintf("no IPv6 in the namespace: %v", err))
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up: %w", name, err)
	}
	routed := make(map[bool]bool)
	for _, p := range prefixes {
		is6 := p.Addr().Is6()
		if is6 && !v6 {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if is6 {
			// Nobody else is on the link, and until the detection of
			// duplicates ends nothing can be sent from the address.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("address %s: %w", p, err)
		}
		if is6 {
			awaitLocal(h, p.Addr())
		}
		if routed[is6] {
			continue
		}
		routed[is6] = true
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if is6 {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Scope: unix.RT_SCOPE_LINK}
		if err := h.RouteAdd(route); err != nil {
			return nil, fmt.Errorf("default route %s: %w", all, err)
		}
	}
	return warnings, nil
}

// awaitLocal waits until the kernel takes packets for an IPv6 address. It gives
// an address its route later, in a work queue (addrconf_dad_work of
// net/ipv6/addrconf.c), and tells of the address before: the answer to the first
// packet of CMD could be lost. It takes microseconds, and tens of milliseconds on
// a busy machine.
func awaitLocal(h *netlink.Handle, addr netip.Addr) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

// enableIPv6 makes a link that is still down ready for IPv6.
func enableIPv6(h *netlink.Handle, link netlink.Link) error {
	conf := "/proc/sys/net/ipv6/conf/" + link.Attrs().Name + "/"
	off, err := os.ReadFile(conf + "disable_ipv6")
	if err != nil {
		return errors.New("the kernel has none")
	}
	if off[0] != '0' {
		// The default of a new namespace can be that it is off.
		if err := os.WriteFile(conf+"disable_ipv6", []byte("0"), 0); err != nil {
			return err
		}
	}
	// No link-local address, and no solicitation of routers from it: there is
	// no router that would answer. Kernels before 4.1 make one all the same.
	_ = h.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	return nil
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

// allowPing lets every group of this namespace open ICMP echo sockets. A new
// namespace lets none (icmp(7), ping_group_range).
func allowPing() error {
	low, high := math.MaxInt, 0
	for _, r := range idRanges("/proc/self/gid_map") {
		low, high = min(low, r.first), max(high, r.first+r.size-1)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "%d %d", low, high), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
