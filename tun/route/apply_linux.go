package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ReadHost reads what a plan must know of this host. device is the TUN, whose
// own addresses do not count, nor do those of another run's: what the host opens
// by way of that TUN has them, and is no answer to anybody outside.
func ReadHost(device string) (Host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Host{}, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	host := Host{IPv6: hasIPv6(device)}
	links, err := retry(h.LinkList)
	if err != nil {
		return Host{}, fmt.Errorf("list interfaces: %w", err)
	}
	tuns := make(map[int]bool) // by index: device, and those of others like us
	for _, l := range links {
		if l.Attrs().Name == device {
			tuns[l.Attrs().Index] = true
		}
	}
	for _, family := range families() {
		routes, err := ourRoutes(h, family)
		if err != nil {
			return Host{}, err
		}
		for _, r := range routes {
			tuns[r.LinkIndex] = true
		}
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return Host{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		// What is for this link or this host only has no use for a default
		// route.
		if !ok || tuns[a.LinkIndex] || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		host.Addresses = append(host.Addresses, ip)
		host.IPv6 = host.IPv6 || ip.Is6()
	}
	slices.SortFunc(host.Addresses, netip.Addr.Compare)
	host.Addresses = slices.Compact(host.Addresses)
	// Without the file it is what Linux has where nobody has set it.
	ports, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	fmt.Sscan(string(ports), &host.Ephemeral)
	return host, nil
}

// confIPv6 has a directory of settings for each interface, for all, and for those
// that come, default.
const confIPv6 = "/proc/sys/net/ipv6/conf/"

// hasIPv6 says whether an interface other than device has IPv6, or one that comes
// will have it. all is nothing to go by: it is what was last written to all, and
// in a container of Docker's it is off beside an interface that has IPv6.
func hasIPv6(device string) bool {
	dirs, _ := os.ReadDir(confIPv6) // none: not built in, or not loaded
	return slices.ContainsFunc(dirs, func(d os.DirEntry) bool {
		switch d.Name() {
		case "all", "lo", device:
			return false
		}
		return !ipv6Off(d.Name())
	})
}

// ipv6Off says whether an interface, or default, has IPv6 turned off.
func ipv6Off(name string) bool {
	off, err := os.ReadFile(confIPv6 + name + "/disable_ipv6")
	return err != nil || len(off) == 0 || off[0] != '0'
}

// turnIPv6 turns IPv6 of an interface on ("0") or off ("1").
func turnIPv6(device, off string) error {
	return os.WriteFile(confIPv6+device+"/disable_ipv6", []byte(off), 0)
}

// Applied is a plan that has been carried out.
type Applied struct {
	// Warnings are about what could not be done and fails closed, a line each.
	Warnings []string

	undo []step // in the order in which it was done
}

// step takes back one thing that was done.
type step struct {
	what string
	undo func(*netlink.Handle) error
}

// Apply carries out a plan, all of it or nothing: what was done before an error
// is undone. It changes nothing if somebody else uses the numbers of the plan
// ([ErrConflict]), or if an earlier run has left something ([ErrLeftover], see
// [Clean]). It needs CAP_NET_ADMIN. ctx is asked between the steps, each of
// which takes microseconds, but for IPv6 addresses: it waits until they work.
//
// The rules that send packets into the TUN come last, so that nothing is lost
// on the way.
func Apply(ctx context.Context, p Plan) (*Applied, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(p.Device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", p.Device, err)
	}
	if err := conflicts(h, p); err != nil {
		return nil, err
	}
	a := new(Applied)
	if err := a.apply(ctx, h, p, link); err != nil {
		return nil, errors.Join(explain(err), a.undoWith(h))
	}
	return a, nil
}

func (a *Applied) apply(ctx context.Context, h *netlink.Handle, p Plan, link netlink.Link) error {
	// do does one thing and remembers how to take it back. What is there
	// already is not ours to take back.
	do := func(what string, do, undo func(*netlink.Handle) error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(h); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		a.undo = append(a.undo, step{what, undo})
		return nil
	}

	// A new interface has IPv6 off where net.ipv6.conf.default says so, and the
	// kernel refuses it addresses and routes of IPv6 then (EACCES).
	no6 := p.usesIPv6() && ipv6Off(p.Device)
	if no6 {
		err := do("IPv6 of "+p.Device,
			func(*netlink.Handle) error { return turnIPv6(p.Device, "0") },
			func(*netlink.Handle) error { return turnIPv6(p.Device, "1") })
		if no6 = err != nil; no6 {
			a.Warnings = append(a.Warnings, fmt.Sprintf("IPv6 that would go into the tun is unreachable instead: %v: "+
				"set net.ipv6.conf.default.disable_ipv6=0 before the start (of a container: with --sysctl)", err))
		}
	}
	for _, prefix := range p.Addresses {
		if no6 && prefix.Addr().Is6() {
			continue
		}
		addr := address(prefix)
		err := do("address "+prefix.String(),
			func(h *netlink.Handle) error { return h.AddrAdd(link, addr) },
			func(h *netlink.Handle) error { return h.AddrDel(link, addr) })
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := do("set "+p.Device+" up",
			func(h *netlink.Handle) error { return h.LinkSetUp(link) },
			func(h *netlink.Handle) error { return h.LinkSetDown(link) }); err != nil {
			return err
		}
	}
	for _, prefix := range p.Addresses {
		if prefix.Addr().Is6() && !no6 {
			awaitLocal(h, prefix.Addr())
		}
	}
	for _, r := range p.Routes {
		if no6 && r.Kind == Into && r.Dst.Addr().Is6() {
			continue
		}
		route := r.netlink(link.Attrs().Index)
		if err := do("route "+r.describe(p.Device),
			func(h *netlink.Handle) error { return h.RouteAdd(route) },
			func(h *netlink.Handle) error { return h.RouteDel(route) }); err != nil {
			return err
		}
	}
	for _, r := range p.Rules {
		rule := r.netlink()
		if err := do("rule "+r.String(),
			func(h *netlink.Handle) error { return h.RuleAdd(rule) },
			func(h *netlink.Handle) error { return h.RuleDel(rule) }); err != nil {
			return err
		}
	}
	return nil
}

// usesIPv6 says whether the plan needs IPv6 on the TUN.
func (p Plan) usesIPv6() bool {
	return slices.ContainsFunc(p.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) ||
		slices.ContainsFunc(p.Routes, func(r Route) bool { return r.Kind == Into && r.Dst.Addr().Is6() })
}

// awaitLocal waits until the kernel takes packets for an IPv6 address of a link
// that is up. It gives an address its route later, in a work queue
// (addrconf_dad_work of net/ipv6/addrconf.c), and tells of the address before. It
// takes microseconds, and tens of milliseconds on a busy machine.
func awaitLocal(h *netlink.Handle, addr netip.Addr) {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

// Undo takes back what Apply has done, the last first, and leaves the host as it
// was before. What is gone already is no error: with its device, the routes into
// it are. Undo goes on after an error and returns all of them; a second call
// does nothing.
func (a *Applied) Undo() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return a.undoWith(h)
}

func (a *Applied) undoWith(h *netlink.Handle) error {
	var errs []error
	for _, s := range slices.Backward(a.undo) {
		if err := s.undo(h); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.what, err))
		}
	}
	a.undo = nil
	return explain(errors.Join(errs...))
}

// isGone says whether the kernel answers that there is nothing to remove: no
// rule or address, no route, no device.
func isGone(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// explain adds the remedy to the one error that is about who runs this.
func explain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: routes need CAP_NET_ADMIN: run as root, or start the container with `--cap-add NET_ADMIN`", err)
	}
	return err
}

// Clean removes the routes and rules that an earlier run has left which could
// not undo them, and nothing else: only what carries our [Protocol], and the
// tables and priorities of o or of a run with the same device. It may be called
// again, and when there is nothing to do.
//
// If another process is using one of them right now, with a TUN of another name
// than o.Device, it removes nothing and returns [ErrConflict].
func Clean(o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()

	var routes []netlink.Route
	var rules []netlink.Rule
	for _, family := range families() {
		all, err := ourRoutes(h, family)
		if err != nil {
			return err
		}
		us, err := ruleList(h, family)
		if err != nil {
			return err
		}
		us = slices.DeleteFunc(us, func(u netlink.Rule) bool { return u.Protocol != Protocol })
		// Where the rule about the device is, P+1, are those of a run with
		// another table, too: there is only one at a time that has the device.
		firsts := []int{o.priority()}
		for _, u := range us {
			if u.IifName == o.Device {
				firsts = append(firsts, u.Priority-1)
			}
		}
		looked := make(map[int]bool) // the tables of rules that are to be removed
		for _, u := range us {
			if slices.ContainsFunc(firsts, func(p int) bool { return p <= u.Priority && u.Priority < p+priorities }) {
				rules = append(rules, u)
				looked[u.Table] = true
			}
		}
		for _, r := range all {
			if !looked[r.Table] && (r.Table < o.Table || r.Table >= o.Table+tables) {
				continue
			}
			routes = append(routes, r)
			if r.Type != unix.RTN_UNICAST {
				continue
			}
			// A route into a device that is there means that its process is, too.
			if link, err := h.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().Name != o.Device {
				return fmt.Errorf("%w: table %d is in use by another tunroute with the interface %s: give this one a table that is %d away or more", ErrConflict, r.Table, link.Attrs().Name, tables)
			}
		}
	}

	var errs []error
	for _, r := range rules {
		if err := h.RuleDel(&r); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("remove rule %d: %w", r.Priority, err))
		}
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("remove route %s in table %d: %w", r.Dst, r.Table, err))
		}
	}
	return explain(errors.Join(errs...))
}

// ourRoutes returns the routes in all tables but main that carry our protocol.
func ourRoutes(h *netlink.Handle, family int) ([]netlink.Route, error) {
	all, err := routeList(h, family)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Protocol != Protocol || r.Table == tableMain }), nil
}

// address, netlink and netlink are the parts of a plan in the words of netlink.

func address(p netip.Prefix) *netlink.Addr {
	// No route of the network in main: our routes are in our tables. And no
	// duplicate address detection: nobody else is on the link, and until it
	// ends nothing can be sent from the address.
	flags := unix.IFA_F_NOPREFIXROUTE
	if p.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	return &netlink.Addr{IPNet: ipNet(p), Flags: flags}
}

func (r Route) netlink(device int) *netlink.Route {
	n := &netlink.Route{
		Family:   family(r.Dst.Addr().Is6()),
		Dst:      ipNet(r.Dst),
		Table:    r.Table,
		Priority: r.Metric,
		Protocol: Protocol,
	}
	switch r.Kind {
	case Into:
		n.Type = unix.RTN_UNICAST
		n.LinkIndex = device
		n.Scope = unix.RT_SCOPE_LINK
	case Unreachable:
		n.Type = unix.RTN_UNREACHABLE
	case Throw:
		n.Type = unix.RTN_THROW
	}
	return n
}

func (r Rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Family = family(r.IPv6)
	n.Priority = r.Priority
	n.Table = r.Table
	n.SuppressPrefixlen = r.Suppress
	n.Protocol = Protocol
	n.IifName = r.Iif
	if r.Mask != 0 {
		n.Mark, n.Mask = r.Mark, &r.Mask
	}
	if r.From.IsValid() {
		n.Src = ipNet(r.From)
	}
	n.IPProto = r.Proto
	if r.SportTo != 0 {
		n.Sport = netlink.NewRulePortRange(1, r.SportTo)
	}
	if r.Dport != 0 {
		n.Dport = netlink.NewRulePortRange(r.Dport, r.Dport)
	}
	if r.Unreachable {
		n.Type = nl.FR_ACT_UNREACHABLE
	}
	return n
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// families are those that this kernel has.
func families() []int {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

func ruleList(h *netlink.Handle, family int) ([]netlink.Rule, error) {
	rules, err := retry(func() ([]netlink.Rule, error) { return h.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("list policy rules: %w", err)
	}
	return rules, nil
}

// routeList returns the routes of all tables.
func routeList(h *netlink.Handle, family int) ([]netlink.Route, error) {
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// retry repeats a dump that a change of the host has interrupted: what it gave
// may lack entries.
func retry[T any](list func() ([]T, error)) ([]T, error) {
	for attempt := 0; ; attempt++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == 10 {
			return all, err
		}
	}
}
