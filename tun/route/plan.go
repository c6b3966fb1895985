package route

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// Protocol is the number that all our routes and rules carry (rtm_protocol,
// FRA_PROTOCOL), by which they are found again. /etc/iproute2/rt_protos of
// iproute2 does not have it.
const Protocol = 116

// What an [Options] with zero values uses. The mark takes the upper byte only
// and leaves the rest to others: Kubernetes uses 0xc000, Tailscale 0xff0000, and
// mwan3 0x3f00.
const (
	DefaultTable    = 1080
	DefaultMark     = 0x74000000
	DefaultMarkMask = 0xff000000
)

const (
	// tables is how many tables a plan may use from Options.Table on: one for
	// each length that a prefix can have.
	tables = 129
	// priorities is how many priorities a plan may use: two for own packets
	// and answers, one for DNS, and two for each length.
	priorities = 3 + 2*tables
	// firstPriority is where those of DefaultTable begin, and blocks how many
	// plans have room from there to the rule that looks up main.
	firstPriority = 7400
	blocks        = (priorityMain - firstPriority) / priorities

	dnsPort = 53

	protoTCP = 6 // IPPROTO_TCP
	protoUDP = 17

	tableMain     = 254   // RT_TABLE_MAIN, include/uapi/linux/rtnetlink.h
	priorityMain  = 32766 // of the rule that looks up main, net/ipv4/fib_rules.c
	metricBehind  = 1 << 30
	noSuppression = -1
)

// Options say what goes into the TUN, and which numbers the plan may use.
type Options struct {
	Device string // the name of the TUN interface

	// Addresses of the TUN interface. With a prefix shorter than /31 the
	// kernel takes the last address of the network for a broadcast address,
	// and packets to it never reach the TUN.
	Addresses []netip.Prefix

	// Routes into the TUN; none means all of IPv4 and IPv6.
	Routes []netip.Prefix

	// Exclude are networks within Routes that stay where they are. Of a route
	// and an exclusion the longer prefix wins.
	Exclude []netip.Prefix

	// Table is the first of 129 routing tables that are ours. 0 means
	// [DefaultTable]. The 261 priorities of our policy rules go with it: plans
	// whose tables do not meet do not meet in priorities either, but for one
	// in 97.
	Table int

	// Mark and MarkMask tell packets of our own sockets. Both 0 mean
	// [DefaultMark] and [DefaultMarkMask].
	Mark, MarkMask uint32

	// CaptureDNS sends queries (port 53, UDP and TCP) into the TUN even if main
	// has a route for the server: most resolvers are a neighbour of the host,
	// and whoever asks one passes the names by that the TUN is there to keep.
	// It holds for an IP version whose default route is among Routes, and not
	// for servers in Exclude.
	CaptureDNS bool

	// Strict closes what is open for convenience: a program that binds to an
	// address of the host does not pass the TUN by, and if all of one IP
	// version is routed and nothing of the other, the other is unreachable.
	// Connections from outside to the host break, unless they come from a
	// network that main has a route for.
	Strict bool
}

// Host is what a plan must know of the host.
type Host struct {
	// Addresses that other interfaces than TUNs like ours have, except those of
	// the loopback and of one link only.
	Addresses []netip.Addr
	// IPv6 says whether any interface has IPv6, or will have. If not, what a
	// plan has to say about it is left out.
	IPv6 bool
	// Ephemeral is the first port that the host gives to sockets that ask for
	// none (net.ipv4.ip_local_port_range); 0 means 32768, as Linux has it.
	Ephemeral uint16
}

// Plan is all that will be done to a host, in this order: addresses, link up,
// routes, rules. It is made by [New].
type Plan struct {
	Device    string
	Addresses []netip.Prefix
	Routes    []Route
	Rules     []Rule
	// Warnings are about what the plan does not do, a line each.
	Warnings []string
}

// Kind is what a route does with a packet.
type Kind uint8

// The kinds of a [Route].
const (
	Into        Kind = iota // into the TUN
	Unreachable             // refused with EHOSTUNREACH
	Throw                   // as if the table had no route for it
)

// Route is a route in one of our tables.
type Route struct {
	Kind   Kind
	Dst    netip.Prefix
	Table  int
	Metric int // 0 is asked first
}

// Rule is a policy rule. What a field does not name, it does not ask for.
type Rule struct {
	Priority   int
	IPv6       bool
	Mark, Mask uint32
	Iif        string
	From       netip.Prefix
	Proto      int    // IPPROTO_TCP or IPPROTO_UDP; 0: both, and others
	SportTo    uint16 // source ports from 1 to this; 0: any
	Dport      uint16 // 0: any
	Table      int
	Suppress   int // routes in Table with a prefix of this length or shorter do not count; -1: all do
	// Unreachable refuses the packet instead of looking into a table.
	Unreachable bool
}

// New makes a plan. It does not look at the host and needs no privilege; the
// same options and the same host make the same plan.
func New(o Options, h Host) (Plan, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Device: o.Device}
	for _, a := range o.Addresses {
		if h.IPv6 || a.Addr().Is4() {
			p.Addresses = append(p.Addresses, a)
		}
	}
	for _, v6 := range []bool{false, true} {
		if v6 && !h.IPv6 {
			break
		}
		p.family(o, h, v6)
	}
	if len(p.Rules) == 0 {
		return Plan{}, errors.New("nothing to route: all routes are IPv6, and this host has no IPv6")
	}
	return p, nil
}

// family plans for one IP version.
func (p *Plan) family(o Options, h Host, v6 bool) {
	routes := ofFamily(o.Routes, v6)
	closed := false
	if len(routes) == 0 {
		if !slices.ContainsFunc(o.Routes, func(r netip.Prefix) bool { return r.Bits() == 0 }) {
			return
		}
		if !o.Strict {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s passes the tun by: no route names any of it", familyName(v6)))
			return
		}
		closed = true
		routes = []netip.Prefix{all(v6)}
	}
	exclude := ofFamily(o.Exclude, v6)

	for _, r := range routes {
		table := o.Table + r.Bits()
		if !closed {
			p.Routes = append(p.Routes, Route{Into, r, table, 0})
		}
		p.Routes = append(p.Routes, Route{Unreachable, r, table, metricBehind})
		for _, x := range exclude {
			if r.Contains(x.Addr()) && r.Bits() < x.Bits() {
				p.Routes = append(p.Routes, Route{Throw, x, table, 0})
			}
		}
	}

	rule := func(priority int, r Rule) {
		r.Priority, r.IPv6 = priority, v6
		p.Rules = append(p.Rules, r)
	}
	next := o.priority()
	// Of one priority, the kernel asks the rules in the order in which they
	// were added.
	rule(next, Rule{Mark: o.Mark, Mask: o.MarkMask, Table: tableMain, Suppress: noSuppression})
	rule(next, Rule{Mark: o.Mark, Mask: o.MarkMask, Unreachable: true, Suppress: noSuppression})
	next++
	rule(next, Rule{Iif: o.Device, Table: tableMain, Suppress: noSuppression})
	rule(next, Rule{Iif: o.Device, Unreachable: true, Suppress: noSuppression})
	if !o.Strict {
		lastService := cmp.Or(h.Ephemeral, 32768) - 1
		for _, a := range h.Addresses {
			if a.Is6() != v6 {
				continue
			}
			from := Rule{From: netip.PrefixFrom(a, a.BitLen()), Table: tableMain, Suppress: noSuppression}
			if !v6 {
				rule(next, from)
				continue
			}
			// Where there is no route, IPv6 chooses a source address and asks
			// again with that (ip6_dst_lookup_tail, net/ipv6/ip6_output.c), so
			// that this rule would be a way past a TUN that is gone. Answers
			// have a source port of a service; what asks again has none yet.
			if lastService == 0 { // not a rule for all ports, then
				p.Warnings = append(p.Warnings, "answers of this host over IPv6 go into the tun: "+
					"net.ipv4.ip_local_port_range begins at 1 and leaves services no port of their own")
				break
			}
			for _, proto := range []int{protoTCP, protoUDP} {
				from.Proto, from.SportTo = proto, lastService
				rule(next, from)
			}
		}
	}
	if o.CaptureDNS && slices.Contains(routes, all(v6)) {
		next++
		for _, proto := range []int{protoTCP, protoUDP} {
			rule(next, Rule{Proto: proto, Dport: dnsPort, Table: o.Table, Suppress: noSuppression})
		}
	}
	for _, bits := range lengths(routes) {
		next++
		rule(next, Rule{Table: tableMain, Suppress: bits})
		next++
		rule(next, Rule{Table: o.Table + bits, Suppress: noSuppression})
	}
}

// lengths returns the different lengths of prefixes, the longest first.
func lengths(prefixes []netip.Prefix) []int {
	var ls []int
	for _, p := range prefixes {
		ls = append(ls, p.Bits())
	}
	slices.SortFunc(ls, func(a, b int) int { return cmp.Compare(b, a) })
	return slices.Compact(ls)
}

func ofFamily(prefixes []netip.Prefix, v6 bool) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is6() == v6 {
			ps = append(ps, p)
		}
	}
	return ps
}

func all(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// withDefaults checks the options and returns them complete: prefixes masked,
// sorted, each once.
func (o Options) withDefaults() (Options, error) {
	if o.Device == "" {
		return o, errors.New("no tun device named")
	}
	if o.Table == 0 {
		o.Table = DefaultTable
	}
	if o.Mark == 0 && o.MarkMask == 0 {
		o.Mark, o.MarkMask = DefaultMark, DefaultMarkMask
	}
	switch {
	// 253 to 255 are default, main and local.
	case o.Table < 1 || o.Table > math.MaxInt32-tables || o.Table <= 255 && o.Table+tables > 253:
		return o, fmt.Errorf("table %d: the %d tables from it on must not meet 253 to 255 and must fit into 31 bits", o.Table, tables)
	case o.Mark == 0 || o.Mark&^o.MarkMask != 0:
		return o, fmt.Errorf("mark %#x/%#x: must not be 0 and must lie within its mask", o.Mark, o.MarkMask)
	}
	var err error
	if o.Routes, err = tidy("route", o.Routes); err != nil {
		return o, err
	}
	if o.Exclude, err = tidy("exclude", o.Exclude); err != nil {
		return o, err
	}
	if len(o.Routes) == 0 {
		o.Routes = []netip.Prefix{all(false), all(true)}
	}
	for _, x := range o.Exclude {
		if slices.Contains(o.Routes, x) {
			return o, fmt.Errorf("%s is both routed and excluded", x)
		}
	}
	seen := make(map[netip.Addr]bool)
	for _, a := range o.Addresses {
		if !a.IsValid() || a.Addr().Is4In6() || seen[a.Addr()] {
			return o, fmt.Errorf("address %s: not an address with a prefix length, or there twice", a)
		}
		seen[a.Addr()] = true
	}
	return o, nil
}

// priority returns the first of our priorities. Tables that are [tables] apart
// have the next ones, round the circle of all that there is room for.
func (o Options) priority() int {
	const around = blocks * tables
	return firstPriority + int((int64(o.Table)+around-DefaultTable)%around/tables)*priorities
}

func tidy(what string, prefixes []netip.Prefix) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s %s: not a network", what, p)
		}
		ps = append(ps, p.Masked())
	}
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(ps), nil
}

// String returns the plan as commands of ip(8), a line each, that would do the
// same; warnings first, as comments.
func (p Plan) String() string {
	var b strings.Builder
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "# %s\n", w)
	}
	for _, a := range p.Addresses {
		nodad := ""
		if a.Addr().Is6() {
			nodad = " nodad"
		}
		fmt.Fprintf(&b, "ip addr add %s dev %s noprefixroute%s\n", a, p.Device, nodad)
	}
	fmt.Fprintf(&b, "ip link set %s up\n", p.Device)
	for _, r := range p.Routes {
		fmt.Fprintf(&b, "ip route add %s\n", r.describe(p.Device))
	}
	for _, r := range p.Rules {
		fmt.Fprintf(&b, "ip %srule add %s\n", flag6(r.IPv6), r)
	}
	return b.String()
}

func flag6(v6 bool) string {
	if v6 {
		return "-6 "
	}
	return ""
}

func (r Route) describe(device string) string {
	s := ""
	switch r.Kind {
	case Into:
		s = r.Dst.String() + " dev " + device
	case Unreachable:
		s = "unreachable " + r.Dst.String()
	case Throw:
		s = "throw " + r.Dst.String()
	}
	s += fmt.Sprintf(" table %d", r.Table)
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s + fmt.Sprintf(" protocol %d", Protocol)
}

// String returns the rule in the words of ip-rule(8).
func (r Rule) String() string {
	s := fmt.Sprintf("priority %d", r.Priority)
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.Mask != 0 {
		s += fmt.Sprintf(" fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.Iif != "" {
		s += " iif " + r.Iif
	}
	switch r.Proto {
	case protoTCP:
		s += " ipproto tcp"
	case protoUDP:
		s += " ipproto udp"
	}
	if r.SportTo != 0 {
		s += fmt.Sprintf(" sport 1-%d", r.SportTo)
	}
	if r.Dport != 0 {
		s += fmt.Sprintf(" dport %d", r.Dport)
	}
	switch {
	case r.Unreachable:
		s += " unreachable"
	case r.Table == tableMain:
		s += " lookup main"
	default:
		s += fmt.Sprintf(" lookup %d", r.Table)
	}
	if r.Suppress != noSuppression {
		s += fmt.Sprintf(" suppress_prefixlength %d", r.Suppress)
	}
	return s + fmt.Sprintf(" protocol %d", Protocol)
}
