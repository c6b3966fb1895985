package route

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func prefixes(s string) []netip.Prefix {
	var ps []netip.Prefix
	for _, f := range strings.Fields(s) {
		ps = append(ps, netip.MustParsePrefix(f))
	}
	return ps
}

func addrs(s string) []netip.Addr {
	var as []netip.Addr
	for _, f := range strings.Fields(s) {
		as = append(as, netip.MustParseAddr(f))
	}
	return as
}

// What a user sees of a plan, in full: this is what will be done to the host.
func TestPlanAsCommands(t *testing.T) {
	dual := Host{Addresses: addrs("192.0.2.2 2001:db8::2"), IPv6: true}
	for _, tt := range []struct {
		name string
		o    Options
		h    Host
		want string
	}{{
		name: "everything",
		o:    Options{Device: "tun0", Addresses: prefixes("198.18.0.1/32 fd00::1/128")},
		h:    dual,
		want: `
ip addr add 198.18.0.1/32 dev tun0 noprefixroute
ip addr add fd00::1/128 dev tun0 noprefixroute nodad
ip link set tun0 up
ip route add 0.0.0.0/0 dev tun0 table 1080 protocol 116
ip route add unreachable 0.0.0.0/0 table 1080 metric 1073741824 protocol 116
ip route add ::/0 dev tun0 table 1080 protocol 116
ip route add unreachable ::/0 table 1080 metric 1073741824 protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip rule add priority 7401 iif tun0 lookup main protocol 116
ip rule add priority 7401 iif tun0 unreachable protocol 116
ip rule add priority 7401 from 192.0.2.2/32 lookup main protocol 116
ip rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip rule add priority 7403 lookup 1080 protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip -6 rule add priority 7401 iif tun0 lookup main protocol 116
ip -6 rule add priority 7401 iif tun0 unreachable protocol 116
ip -6 rule add priority 7401 from 2001:db8::2/128 ipproto tcp sport 1-32767 lookup main protocol 116
ip -6 rule add priority 7401 from 2001:db8::2/128 ipproto udp sport 1-32767 lookup main protocol 116
ip -6 rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip -6 rule add priority 7403 lookup 1080 protocol 116
`}, {
		name: "queries are captured, by the table of the default route",
		o:    Options{Device: "tun0", Routes: prefixes("0.0.0.0/0 fd00::/64"), CaptureDNS: true},
		h:    Host{Addresses: addrs("192.0.2.2"), IPv6: true},
		want: `
ip link set tun0 up
ip route add 0.0.0.0/0 dev tun0 table 1080 protocol 116
ip route add unreachable 0.0.0.0/0 table 1080 metric 1073741824 protocol 116
ip route add fd00::/64 dev tun0 table 1144 protocol 116
ip route add unreachable fd00::/64 table 1144 metric 1073741824 protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip rule add priority 7401 iif tun0 lookup main protocol 116
ip rule add priority 7401 iif tun0 unreachable protocol 116
ip rule add priority 7401 from 192.0.2.2/32 lookup main protocol 116
ip rule add priority 7402 ipproto tcp dport 53 lookup 1080 protocol 116
ip rule add priority 7402 ipproto udp dport 53 lookup 1080 protocol 116
ip rule add priority 7403 lookup main suppress_prefixlength 0 protocol 116
ip rule add priority 7404 lookup 1080 protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip -6 rule add priority 7401 iif tun0 lookup main protocol 116
ip -6 rule add priority 7401 iif tun0 unreachable protocol 116
ip -6 rule add priority 7402 lookup main suppress_prefixlength 64 protocol 116
ip -6 rule add priority 7403 lookup 1144 protocol 116
`}, {
		name: "own numbers, explicit network, exclusion, no IPv6",
		o: Options{
			Device: "t", Routes: prefixes("0.0.0.0/0 10.1.2.3/16 ::/0"), Exclude: prefixes("10.1.9.0/24 203.0.113.0/24"),
			Table: 2000, Mark: 0x10, MarkMask: 0xf0,
		},
		h: Host{Addresses: addrs("192.0.2.2")},
		want: `
ip link set t up
ip route add 0.0.0.0/0 dev t table 2000 protocol 116
ip route add unreachable 0.0.0.0/0 table 2000 metric 1073741824 protocol 116
ip route add throw 10.1.9.0/24 table 2000 protocol 116
ip route add throw 203.0.113.0/24 table 2000 protocol 116
ip route add 10.1.0.0/16 dev t table 2016 protocol 116
ip route add unreachable 10.1.0.0/16 table 2016 metric 1073741824 protocol 116
ip route add throw 10.1.9.0/24 table 2016 protocol 116
ip rule add priority 9227 fwmark 0x10/0xf0 lookup main protocol 116
ip rule add priority 9227 fwmark 0x10/0xf0 unreachable protocol 116
ip rule add priority 9228 iif t lookup main protocol 116
ip rule add priority 9228 iif t unreachable protocol 116
ip rule add priority 9228 from 192.0.2.2/32 lookup main protocol 116
ip rule add priority 9229 lookup main suppress_prefixlength 16 protocol 116
ip rule add priority 9230 lookup 2016 protocol 116
ip rule add priority 9231 lookup main suppress_prefixlength 0 protocol 116
ip rule add priority 9232 lookup 2000 protocol 116
`}, {
		name: "strict, IPv4 only: IPv6 is closed",
		o:    Options{Device: "tun0", Routes: prefixes("0.0.0.0/0"), Strict: true},
		h:    dual,
		want: `
ip link set tun0 up
ip route add 0.0.0.0/0 dev tun0 table 1080 protocol 116
ip route add unreachable 0.0.0.0/0 table 1080 metric 1073741824 protocol 116
ip route add unreachable ::/0 table 1080 metric 1073741824 protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip rule add priority 7401 iif tun0 lookup main protocol 116
ip rule add priority 7401 iif tun0 unreachable protocol 116
ip rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip rule add priority 7403 lookup 1080 protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip -6 rule add priority 7401 iif tun0 lookup main protocol 116
ip -6 rule add priority 7401 iif tun0 unreachable protocol 116
ip -6 rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip -6 rule add priority 7403 lookup 1080 protocol 116
`}, {
		name: "IPv4 only: IPv6 passes by, with a warning",
		o:    Options{Device: "tun0", Routes: prefixes("0.0.0.0/0")},
		h:    Host{IPv6: true},
		want: `
# IPv6 passes the tun by: no route names any of it
ip link set tun0 up
ip route add 0.0.0.0/0 dev tun0 table 1080 protocol 116
ip route add unreachable 0.0.0.0/0 table 1080 metric 1073741824 protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip rule add priority 7401 iif tun0 lookup main protocol 116
ip rule add priority 7401 iif tun0 unreachable protocol 116
ip rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip rule add priority 7403 lookup 1080 protocol 116
`}, {
		name: "no ports are those of services: IPv6 has no rule for answers",
		o:    Options{Device: "tun0", Routes: prefixes("::/0")},
		h:    Host{Addresses: addrs("192.0.2.2 2001:db8::2"), IPv6: true, Ephemeral: 1},
		want: `
# IPv4 passes the tun by: no route names any of it
# answers of this host over IPv6 go into the tun: net.ipv4.ip_local_port_range begins at 1 and leaves services no port of their own
ip link set tun0 up
ip route add ::/0 dev tun0 table 1080 protocol 116
ip route add unreachable ::/0 table 1080 metric 1073741824 protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip -6 rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip -6 rule add priority 7401 iif tun0 lookup main protocol 116
ip -6 rule add priority 7401 iif tun0 unreachable protocol 116
ip -6 rule add priority 7402 lookup main suppress_prefixlength 0 protocol 116
ip -6 rule add priority 7403 lookup 1080 protocol 116
`}, {
		name: "one network only: the rest is no leak",
		o:    Options{Device: "tun0", Routes: prefixes("198.18.0.0/15"), Strict: true},
		h:    Host{IPv6: true},
		want: `
ip link set tun0 up
ip route add 198.18.0.0/15 dev tun0 table 1095 protocol 116
ip route add unreachable 198.18.0.0/15 table 1095 metric 1073741824 protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 lookup main protocol 116
ip rule add priority 7400 fwmark 0x74000000/0xff000000 unreachable protocol 116
ip rule add priority 7401 iif tun0 lookup main protocol 116
ip rule add priority 7401 iif tun0 unreachable protocol 116
ip rule add priority 7402 lookup main suppress_prefixlength 15 protocol 116
ip rule add priority 7403 lookup 1095 protocol 116
`}} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New(tt.o, tt.h)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), p.String()); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// Plans whose tables do not meet have priorities that do not, before those of
// main.
func TestPrioritiesGoWithTheTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		a := Options{Table: 1 + rnd.IntN(math.MaxInt32-tables)}
		p := a.priority()
		if p < firstPriority || p+priorities > priorityMain {
			t.Fatalf("table %d: priorities from %d on, want them within %d to %d", a.Table, p, firstPriority, priorityMain)
		}
		b := Options{Table: a.Table + tables + rnd.IntN((blocks-2)*tables)}
		if q := b.priority(); q < p+priorities && p < q+priorities {
			t.Fatalf("tables %d and %d: priorities from %d and %d on, want none in common", a.Table, b.Table, p, q)
		}
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "no tun device"},
		{Options{Device: "t", Table: 254}, "table 254"},
		{Options{Device: "t", Table: 200}, "table 200"},
		{Options{Device: "t", Table: -1}, "table -1"},
		{Options{Device: "t", Mark: 0x100, MarkMask: 0xff}, "mark 0x100/0xff"},
		{Options{Device: "t", MarkMask: 0xff}, "mark 0x0/0xff"},
		{Options{Device: "t", Routes: []netip.Prefix{{}}}, "route"},
		{Options{Device: "t", Routes: prefixes("::ffff:10.0.0.0/104")}, "route"},
		{Options{Device: "t", Exclude: []netip.Prefix{{}}}, "exclude"},
		{Options{Device: "t", Routes: prefixes("10.0.0.0/8"), Exclude: prefixes("10.1.0.0/8")}, "10.0.0.0/8 is both"},
		{Options{Device: "t", Addresses: []netip.Prefix{{}}}, "address"},
		{Options{Device: "t", Addresses: prefixes("10.0.0.1/32 10.0.0.1/24")}, "address"},
		{Options{Device: "t", Routes: prefixes("fd00::/8")}, "no IPv6"},
	} {
		_, err := New(tt.o, Host{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v) = %v, want an error with %q", tt.o, err, tt.want)
		}
	}
}

// The rules and tables of a plan, searched as the kernel does, must give the
// longest prefix of both the plan and main, ours where they are equal; and once
// the TUN has gone, the same but for an error in place of the TUN.
func TestPlanAgainstLongestPrefixOracle(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		v6 := seed%2 == 1
		main := append(randomPrefixes(rnd, v6, 6), all(v6))
		o := Options{Device: "tun0", Routes: randomPrefixes(rnd, v6, 1+rnd.IntN(5)), Exclude: randomPrefixes(rnd, v6, rnd.IntN(4))}
		if rnd.IntN(2) == 0 {
			o.Routes = append(o.Routes, all(v6))
		}
		o.Exclude = slices.DeleteFunc(o.Exclude, func(x netip.Prefix) bool { return slices.Contains(o.Routes, x) })
		p, err := New(o, Host{IPv6: true})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for range 200 {
			dst := randomAddr(rnd, v6)
			got, want := search(p, main, dst, true), longest(o, main, dst, "tun")
			if got != want {
				t.Fatalf("seed %d: %s goes to %s, want %s\nmain %v\nexclude %v\n%s", seed, dst, got, want, main, o.Exclude, p)
			}
			got, want = search(p, main, dst, false), longest(o, main, dst, "unreachable")
			if got != want {
				t.Fatalf("seed %d: without the tun %s goes to %s, want %s\nmain %v\nexclude %v\n%s", seed, dst, got, want, main, o.Exclude, p)
			}
		}
	}
}

// longest is what a user means by routes and exclusions.
func longest(o Options, main []netip.Prefix, dst netip.Addr, into string) string {
	ours, excluded, theirs := -1, false, -1
	for _, r := range o.Routes {
		if r.Contains(dst) && r.Bits() > ours {
			ours = r.Bits()
		}
	}
	for _, x := range o.Exclude {
		if x.Contains(dst) && x.Bits() > ours {
			excluded = true
		}
	}
	for _, m := range main {
		if m.Contains(dst) {
			theirs = max(theirs, m.Bits())
		}
	}
	if ours < 0 || excluded || theirs > ours {
		return fmt.Sprintf("main/%d", theirs)
	}
	return into
}

// search does what fib_rules_lookup and fib_table_lookup of the kernel do for a
// packet of this host without a mark or a source address.
func search(p Plan, main []netip.Prefix, dst netip.Addr, alive bool) string {
	for _, rule := range append(slices.Clone(p.Rules), Rule{IPv6: dst.Is6(), Table: tableMain, Suppress: noSuppression}) {
		if rule.IPv6 != dst.Is6() || rule.Mask != 0 || rule.Iif != "" || rule.From.IsValid() || rule.Dport != 0 {
			continue
		}
		if rule.Table == tableMain {
			best := -1
			for _, m := range main {
				if m.Contains(dst) {
					best = max(best, m.Bits())
				}
			}
			if best > rule.Suppress {
				return fmt.Sprintf("main/%d", best)
			}
			continue
		}
		var best *Route
		for _, r := range p.Routes {
			if r.Table != rule.Table || !r.Dst.Contains(dst) || r.Kind == Into && !alive {
				continue
			}
			if best == nil || r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric {
				best = &r
			}
		}
		switch {
		case best == nil || best.Kind == Throw:
		case best.Kind == Unreachable:
			return "unreachable" // suppress_prefixlength does not undo an error
		default:
			return "tun"
		}
	}
	return "nowhere"
}

// randomPrefixes are close together, so that they often contain one another.
func randomPrefixes(rnd *rand.Rand, v6 bool, n int) []netip.Prefix {
	var ps []netip.Prefix
	for range n {
		p, err := randomAddr(rnd, v6).Prefix(5 + rnd.IntN(12))
		if err != nil {
			panic(err)
		}
		if !slices.Contains(ps, p) {
			ps = append(ps, p)
		}
	}
	return ps
}

func randomAddr(rnd *rand.Rand, v6 bool) netip.Addr {
	a := [16]byte{0x20, byte(rnd.IntN(256))}
	if rnd.IntN(8) == 0 {
		a[0] = 0x24
	}
	if v6 {
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte(a[:4]))
}
