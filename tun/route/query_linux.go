package route

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Via asks the kernel by which interface a packet to dst would leave if its
// socket had this mark, and with which source address where it has none yet.
// local says that dst is an address of this host; ifname is the loopback then.
// It needs no privilege, and sends nothing.
//
// Where there is no route the error Is what connect would return: ENETUNREACH, or
// EHOSTUNREACH, EACCES, EINVAL for a route that says so.
func Via(dst netip.Addr, mark uint32) (ifname string, src netip.Addr, local bool, err error) {
	fail := func(err error) (string, netip.Addr, bool, error) {
		return "", netip.Addr{}, false, fmt.Errorf("route to %s: %w", dst, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	routes, err := h.RouteGetWithOptions(dst.Unmap().AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return fail(err)
	}
	if len(routes) == 0 {
		return fail(unix.ENETUNREACH)
	}
	r := routes[0]
	link, err := h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return fail(err)
	}
	src, _ = netip.AddrFromSlice(r.Src)
	return link.Attrs().Name, src.Unmap(), r.Type == unix.RTN_LOCAL, nil
}

const sysctlRoot = "/proc/sys/net"

// Forwarding reports what keeps this host from being a gateway for others, or
// drops packets when marked sockets and others take different ways. Whether it
// matters is for the caller to know: a host that forwards nothing needs none of
// it.
func Forwarding() ([]Warning, error) { return forwarding(sysctlRoot) }

// forwarding reads the settings below root, as /proc/sys/net has them.
func forwarding(root string) ([]Warning, error) {
	var ws []Warning
	read := func(name string) (string, error) {
		b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		return strings.TrimSpace(string(b)), err
	}
	v4, err := read("ipv4/ip_forward")
	if err != nil {
		return nil, fmt.Errorf("is IPv4 forwarded: %w", err)
	}
	if v4 == "0" {
		ws = append(ws, Warning{"IPv4 of other hosts is not forwarded", "sysctl -w net.ipv4.ip_forward=1"})
	}
	if v6, err := read("ipv6/conf/all/forwarding"); err == nil && v6 == "0" {
		ws = append(ws, Warning{"IPv6 of other hosts is not forwarded", "sysctl -w net.ipv6.conf.all.forwarding=1"})
	}

	// The stricter of "all" and the interface counts: the larger, but for 2,
	// which is loose (Documentation/networking/ip-sysctl.rst, rp_filter).
	overall, err := read("ipv4/conf/all/rp_filter")
	if err != nil {
		return nil, fmt.Errorf("is the source of packets checked: %w", err)
	}
	dirs, err := os.ReadDir(filepath.Join(root, "ipv4/conf"))
	if err != nil {
		return nil, fmt.Errorf("is the source of packets checked: %w", err)
	}
	slices.SortFunc(dirs, func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, d := range dirs {
		name := d.Name()
		if name == "all" || name == "default" || name == "lo" {
			continue
		}
		own, err := read("ipv4/conf/" + name + "/rp_filter")
		if err != nil {
			continue // the interface went away
		}
		if max(own, overall) == "1" {
			ws = append(ws, Warning{
				"packets that come in by " + name + " are dropped if an answer without our mark would leave by another interface",
				// Not net.ipv4.conf.NAME: a name may have a dot.
				"sysctl -w net/ipv4/conf/" + name + "/rp_filter=2",
			})
		}
	}
	return ws, nil
}
