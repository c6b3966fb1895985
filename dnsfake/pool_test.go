package dnsfake

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// clock is a clock that a test turns.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

func newPool(t testing.TB, o PoolOptions) *Pool {
	t.Helper()
	p, err := NewPool(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustLease(t testing.TB, p *Pool, name string, v6 bool) netip.Addr {
	t.Helper()
	a, err := p.Lease(name, v6)
	if err != nil {
		t.Fatalf("Lease(%q, %v): %v", name, v6, err)
	}
	return a
}

func TestNewPoolRefuses(t *testing.T) {
	v4, v6 := netip.MustParsePrefix, netip.MustParsePrefix
	for _, tt := range []struct {
		name string
		o    PoolOptions
		want string // in the error; "" for none
	}{
		{"zero options", PoolOptions{}, ""},
		{"v6 for v4", PoolOptions{V4: v4("fd00::/64")}, "not an IPv4 prefix"},
		{"v4 for v6", PoolOptions{V6: v6("10.0.0.0/8")}, "not an IPv6 prefix"},
		{"mapped v4 for v6", PoolOptions{V6: v6("::ffff:10.0.0.0/104")}, "not an IPv6 prefix"},
		{"mapped v4 for v4", PoolOptions{V4: v6("::ffff:10.0.0.0/104")}, "not an IPv4 prefix"},
		{"bits out of range", PoolOptions{V4: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)}, "not an IPv4 prefix"},
		{"only reserved in v4", PoolOptions{V4: v4("10.0.0.0/28"), Reserved: 16}, "10.0.0.0/28 is too small"},
		{"only reserved and broadcast in v4", PoolOptions{V4: v4("10.0.0.0/28"), Reserved: 15}, "too small"},
		{"one address in v4", PoolOptions{V4: v4("10.0.0.0/28"), Reserved: 14}, ""},
		{"network, resolver, device and broadcast in v4", PoolOptions{V4: v4("10.0.0.0/30")}, "too small"},
		{"the smallest v4", PoolOptions{V4: v4("10.0.0.0/29")}, ""},
		{"single v4", PoolOptions{V4: v4("10.0.0.1/32")}, "too small"},
		{"only reserved in v6", PoolOptions{V6: v6("fd00::/124"), Reserved: 16}, "too small"},
		{"a single v6", PoolOptions{V6: v6("fd00::/128")}, "too small"},
		{"the smallest v6", PoolOptions{V6: v6("fd00::/126")}, ""},
		{"whole families", PoolOptions{V4: v4("0.0.0.0/0"), V6: v6("::/0")}, ""},
		{"no room for the device", PoolOptions{Reserved: 2}, "2 reserved addresses"},
		{"negative reserve", PoolOptions{Reserved: -1}, "reserved addresses"},
		{"huge reserve", PoolOptions{Reserved: 1 << 30}, "reserved addresses"},
		{"negative limit", PoolOptions{Max: -1}, "leases at most"},
		{"huge limit", PoolOptions{Max: 1 << 30}, "leases at most"},
		{"negative quarantine", PoolOptions{Quarantine: -1}, "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewPool(tt.o)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestPoolCapacityIsThatOfTheSmallerRange(t *testing.T) {
	for _, tt := range []struct {
		o    PoolOptions
		want int
	}{
		{PoolOptions{}, 1<<17 - 16 - 1},
		{PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/26")}, 64 - 16 - 1},
		{PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/27")}, 32 - 3 - 1},
		{PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/29")}, 4},
		{PoolOptions{V6: netip.MustParsePrefix("fd00::/126")}, 1},
		{PoolOptions{V4: netip.MustParsePrefix("0.0.0.0/0"), V6: netip.MustParsePrefix("::/0")}, 1 << 20},
		{PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/24")}, 256 - 16 - 1},
		{PoolOptions{V6: netip.MustParsePrefix("fd00::/120")}, 256 - 16},
		{PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8"), Max: 100}, 100},
	} {
		if got := newPool(t, tt.o).Stats().Capacity; got != tt.want {
			t.Errorf("%+v: capacity %d, want %d", tt.o, got, tt.want)
		}
	}
}

func TestReservedAddresses(t *testing.T) {
	p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("10.1.2.99/24")}) // masked
	for _, tt := range []struct {
		name, want string
		got        netip.Addr
	}{
		{"Resolver4", "10.1.2.1", p.Resolver4()},
		{"Device4", "10.1.2.2", p.Device4()},
		{"Resolver6", "fd74:756e:726f::1", p.Resolver6()},
		{"Device6", "fd74:756e:726f::2", p.Device6()},
	} {
		if tt.got != netip.MustParseAddr(tt.want) {
			t.Errorf("%s is %v, want %s", tt.name, tt.got, tt.want)
		}
		if !p.Owns(tt.got) {
			t.Errorf("%s %v is not owned", tt.name, tt.got)
		}
		if name, _, ok := p.Acquire(tt.got); ok {
			t.Errorf("%s %v is leased to %q", tt.name, tt.got, name)
		}
	}
}

func TestLeaseIsTheSameEachTime(t *testing.T) {
	p := newPool(t, PoolOptions{})
	a4 := mustLease(t, p, "example.org", false)
	a6 := mustLease(t, p, "Example.ORG.", true)
	if again := mustLease(t, p, "EXAMPLE.org", false); again != a4 {
		t.Errorf("second lease is %v, first was %v", again, a4)
	}
	if !DefaultV4.Contains(a4) || !DefaultV6.Contains(a6) {
		t.Errorf("leases %v and %v are outside of their ranges", a4, a6)
	}
	for _, a := range []netip.Addr{a4, a6, netip.AddrFrom16(a4.As16())} {
		if name, ok := p.Name(a); !ok || name != "example.org" {
			t.Errorf("Name(%v) = %q, %v", a, name, ok)
		}
	}
	if n := p.Stats().Leases; n != 1 {
		t.Errorf("%d leases for one name", n)
	}
	if b := mustLease(t, p, "example.com", false); b == a4 {
		t.Errorf("two names share %v", b)
	}
}

// The places are part of what two gateways and two releases have to agree on. The
// ones here were worked out without this package.
func TestLeasePlacesAreFixed(t *testing.T) {
	p := newPool(t, PoolOptions{})
	for name, want := range map[string]string{
		"example.org":     "198.19.27.245",
		"www.example.com": "198.19.66.79",
		"a":               "198.19.80.56",
	} {
		if got := mustLease(t, p, name, false); got.String() != want {
			t.Errorf("%s is at %v, want %s", name, got, want)
		}
	}
	other := newPool(t, PoolOptions{Key: [16]byte{1}})
	if a, b := mustLease(t, p, "a", false), mustLease(t, other, "a", false); a == b {
		t.Errorf("another key gives the same place %v", a)
	}
}

func TestLeaseRefusesNames(t *testing.T) {
	p := newPool(t, PoolOptions{})
	long := strings.Repeat("a", 63)
	for _, name := range []string{
		"", ".", "..", "a..b", ".a", "a b", "a\x00b", "a\tb", "a\x7f", `a\b`,
		long + "a.b", strings.Join([]string{long, long, long, long}, "."),
		"10.0.0.20", "10.0.0.20.", "127.1", "0x7f.1", "0X7F.0x1", "2130706433", "0x", "::1", "fe80::1%eth0", "[::1]", "a.5",
	} {
		if a, err := p.Lease(name, false); !errors.Is(err, ErrName) {
			t.Errorf("Lease(%q) = %v, %v", name, a, err)
		}
	}
	for _, name := range []string{"a", "_sip._tcp.example.org", "x-1", "1.example", "xn--nxa", "bücher.example", "0xg", "a.0xfoo",
		strings.Join([]string{long, long, long, long[:61]}, ".")} {
		if _, err := p.Lease(name, false); err != nil {
			t.Errorf("Lease(%q): %v", name, err)
		}
	}
}

func TestOrphans(t *testing.T) {
	p := newPool(t, PoolOptions{})
	mustLease(t, p, "example.org", false)
	for _, tt := range []struct {
		addr string
		owns bool
	}{
		{"198.18.0.0", true}, {"198.18.0.1", true}, {"198.18.0.15", true},
		{"198.19.255.255", true}, {"198.20.0.0", false}, {"198.17.255.255", false},
		{"::ffff:198.18.0.7", true},
		{"fd74:756e:726f::", true}, {"fd74:756e:726f::1:0:0", true}, {"fd74:756e:726f:0:1::", true},
		{"fd74:756e:726f::ffff:ffff", true}, {"fd74:756e:726f:1::", false},
		{"fd74:756e:726f::1%eth0", false},
		{"127.0.0.1", false}, {"::1", false},
	} {
		a := netip.MustParseAddr(tt.addr)
		if got := p.Owns(a); got != tt.owns {
			t.Errorf("Owns(%v) = %v", a, got)
		}
		if name, ok := p.Name(a); ok {
			t.Errorf("Name(%v) = %q", a, name)
		}
		if name, release, ok := p.Acquire(a); ok || release != nil {
			t.Errorf("Acquire(%v) = %q", a, name)
		}
	}
	if p.Owns(netip.Addr{}) {
		t.Error("the zero address is owned")
	}
}

func TestPinnedLeaseIsNotReused(t *testing.T) {
	var c clock
	p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/29"), Reserved: 6, Quarantine: time.Minute, Now: c.now})
	a := mustLease(t, p, "a", false)
	name, release, ok := p.Acquire(a)
	if !ok || name != "a" {
		t.Fatalf("Acquire(%v) = %q, %v", a, name, ok)
	}
	_, second, _ := p.Acquire(mustLease(t, p, "a", true))

	c.advance(time.Hour)
	if b, err := p.Lease("b", false); !errors.Is(err, ErrExhausted) {
		t.Fatalf("with two pins: Lease = %v, %v", b, err)
	}
	release()
	release() // of no effect: the other pin is not ours
	c.advance(time.Hour)
	if b, err := p.Lease("b", false); !errors.Is(err, ErrExhausted) {
		t.Fatalf("with one pin: Lease = %v, %v", b, err)
	}
	second()
	c.advance(time.Minute - 1)
	if b, err := p.Lease("b", false); !errors.Is(err, ErrExhausted) {
		t.Fatalf("in quarantine: Lease = %v, %v", b, err)
	}
	c.advance(1)
	if b := mustLease(t, p, "b", false); b != a {
		t.Errorf("the only address is %v, now %v", a, b)
	}
	if name, _ := p.Name(a); name != "b" {
		t.Errorf("%v leads to %q", a, name)
	}
	if got, want := p.Stats(), (PoolStats{Capacity: 1, Leases: 1, Evicted: 1, Exhausted: 3}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

// A range that is larger than what is leased of it is used as a whole, and names
// go where their hash says.
func TestPlacesOfAllTheRange(t *testing.T) {
	var c clock
	p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8"), Max: 10, Quarantine: 1, Now: c.now})
	high := 0
	for i := range 100 {
		c.advance(1)
		name := fmt.Sprintf("n%d.example", i)
		slot, _ := p.slot(mustLease(t, p, name, i%2 == 0))
		if want := uint64(p.reserved) + p.hash(name)%(p.limit()-uint64(p.reserved)); uint64(slot) != want {
			t.Errorf("%s is at %d, its hash says %d", name, slot, want)
		}
		if slot >= 1<<23 {
			high++
		}
	}
	if high < 20 || high > 80 {
		t.Errorf("%d of 100 in the upper half of the range", high)
	}
	if got, want := p.Stats(), (PoolStats{Capacity: 10, Leases: 10, Evicted: 90}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

// oraclePool is a pool as slow and obvious as can be.
type oraclePool struct {
	places, max int
	quarantine  time.Duration
	leases      map[string]*oracleLease
}

type oracleLease struct {
	name string
	slot int
	pins int
	used time.Time
}

func (o *oraclePool) at(slot int) *oracleLease {
	for _, l := range o.leases {
		if l.slot == slot {
			return l
		}
	}
	return nil
}

func (o *oraclePool) lease(name string, start int, now time.Time) (slot int, ok bool) {
	if l := o.leases[name]; l != nil {
		l.used = now
		return l.slot, true
	}
	if len(o.leases) == o.max {
		var victim *oracleLease
		for _, l := range o.leases {
			if l.pins == 0 && now.Sub(l.used) >= o.quarantine && (victim == nil || l.used.Before(victim.used)) {
				victim = l
			}
		}
		if victim == nil {
			return 0, false
		}
		delete(o.leases, victim.name)
	}
	slot = start
	for o.at(slot) != nil {
		slot = (slot + 1) % o.places
	}
	o.leases[name] = &oracleLease{name: name, slot: slot, used: now}
	return slot, true
}

func TestPoolAgainstOracle(t *testing.T) {
	evictions, refusals := 0, 0
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			var c clock
			reserved := 3 + rnd.IntN(27)
			places := 31 - reserved
			size := 1 + rnd.IntN(places)
			quarantine := time.Duration(1 + rnd.IntN(300))
			p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/27"), Reserved: reserved, Max: size, Quarantine: quarantine, Now: c.now})
			o := &oraclePool{places: places, max: size, quarantine: quarantine, leases: map[string]*oracleLease{}}
			type pin struct {
				release func()
				lease   *oracleLease
			}
			var pins []pin
			for step := range 3000 {
				// Uses differ in time, so that the oldest is one.
				c.advance(time.Duration(1 + rnd.IntN(20)))
				switch op := rnd.IntN(10); {
				case op < 5:
					name := fmt.Sprintf("n%d.example", rnd.IntN(2*size+1))
					v6 := rnd.IntN(2) == 0
					full := len(o.leases) == size && o.leases[name] == nil
					slot, ok := o.lease(name, int(p.hash(name)%uint64(places)), c.now())
					got, err := p.Lease(name, v6)
					if !ok {
						refusals++
						if !errors.Is(err, ErrExhausted) {
							t.Fatalf("step %d: Lease(%s) = %v, %v, want ErrExhausted", step, name, got, err)
						}
						continue
					}
					if full {
						evictions++
					}
					if want := p.addr(uint32(reserved+slot), v6); got != want || err != nil {
						t.Fatalf("step %d: Lease(%s) = %v, %v, want %v", step, name, got, err, want)
					}
				case op < 7:
					slot := rnd.IntN(places)
					want := o.at(slot)
					name, release, ok := p.Acquire(p.addr(uint32(reserved+slot), rnd.IntN(2) == 0))
					if ok != (want != nil) || ok && name != want.name {
						t.Fatalf("step %d: Acquire of slot %d = %q, %v, want %+v", step, slot, name, ok, want)
					}
					if ok {
						want.pins++
						pins = append(pins, pin{release, want})
					}
				case len(pins) > 0:
					i := rnd.IntN(len(pins))
					pins[i].release()
					if rnd.IntN(4) == 0 {
						pins[i].release()
					}
					pins[i].lease.pins--
					pins[i].lease.used = c.now()
					pins = append(pins[:i], pins[i+1:]...)
				}
				if got := p.Stats(); got.Leases != len(o.leases) || got.Pins != len(pins) {
					t.Fatalf("step %d: stats %+v, want %d leases, %d pins", step, got, len(o.leases), len(pins))
				}
			}
			for slot := range places {
				name, ok := p.Name(p.addr(uint32(reserved+slot), false))
				if want := o.at(slot); ok != (want != nil) || ok && name != want.name {
					t.Errorf("slot %d is %q, want %+v", slot, name, want)
				}
			}
		})
	}
	if evictions < 1000 || refusals < 1000 {
		t.Errorf("%d evictions and %d refusals: the test did not get far", evictions, refusals)
	}
}

// While a flow holds an address it leads to the same name, whatever others do.
func TestPinHoldsUnderChurn(t *testing.T) {
	p := newPool(t, PoolOptions{Max: 8, Quarantine: 1})
	var wg sync.WaitGroup
	var held atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for range 5000 {
				name := fmt.Sprintf("n%d.example", rnd.IntN(32))
				a, err := p.Lease(name, rnd.IntN(2) == 0)
				if err != nil {
					continue // all pinned
				}
				name, release, ok := p.Acquire(a) // another name's by now, perhaps
				if !ok {
					continue
				}
				held.Add(1)
				for range 4 {
					_, _ = p.Lease(fmt.Sprintf("n%d.example", rnd.IntN(32)), false)
					if got, ok := p.Name(a); !ok || got != name {
						t.Errorf("%v was acquired for %s and leads to %q, %v", a, name, got, ok)
					}
				}
				release()
			}
		})
	}
	wg.Wait()
	stats := p.Stats()
	if stats.Pins != 0 || stats.Evicted == 0 || held.Load() == 0 {
		t.Errorf("%d pins held, stats %+v", held.Load(), stats)
	}
}

func TestLookUpsDoNotAllocate(t *testing.T) {
	p := newPool(t, PoolOptions{})
	a := mustLease(t, p, "example.org", true)
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := p.Name(a); !ok || !p.Owns(a) {
			t.Error("no name")
		}
		if b, err := p.lease("example.org", true); b != a || err != nil {
			t.Errorf("lease at %v, %v; was at %v", b, err, a)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// heap returns the octets of the heap that are in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A lease takes the octets of its name and at most 100 more.
func TestMillionLeases(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const most = 1 << 20
	var names []string
	total := 0
	for i := range most {
		name := fmt.Sprintf("%x.%s.example", i, strings.Repeat("x", i%40))
		names = append(names, strings.ReplaceAll(name, "..", "."))
		total += len(names[i])
	}
	before := heap()
	p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8")})
	worst := 0.0
	for i, name := range names {
		if _, err := p.Lease(strings.Clone(name), i%2 == 0); err != nil { // as a question has it
			t.Fatal(err)
		}
		// The tables grow in steps.
		if n := i + 1; n >= most/4 && n%(most/16) == 0 {
			each := float64(heap()-before) / float64(n)
			worst = max(worst, each-float64(total)/most)
		}
	}
	t.Logf("%d leases with names of %d octets: at worst %.0f octets more for each", most, total/most, worst)
	if worst > 100 {
		t.Errorf("%.0f octets for each lease besides its name, want 100", worst)
	}
	for i, name := range names {
		if l := p.leases.named(name); l == nil || p.leases.placed(l.slot) != l {
			t.Fatalf("lease %d of %s is not found", i, name)
		}
	}
	if _, err := p.Lease("one.more.example", false); !errors.Is(err, ErrExhausted) {
		t.Errorf("one more: %v", err)
	}
	runtime.KeepAlive(names)
}

// Readers of a table find what is there all the time, whatever comes and goes
// beside it.
func TestTableIsReadWhileItIsWritten(t *testing.T) {
	const stay, come = 300, 5000
	var c clock
	p := newPool(t, PoolOptions{Max: stay + 50, Quarantine: 1, Now: c.now})
	var addrs []netip.Addr
	for i := range stay {
		a := mustLease(t, p, fmt.Sprintf("stays%d.example", i), false)
		if _, _, ok := p.Acquire(a); !ok {
			t.Fatal("no lease")
		}
		addrs = append(addrs, a)
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for n := 0; !done.Load() || n < stay; n++ {
				i := n % stay
				want := fmt.Sprintf("stays%d.example", i)
				if name, ok := p.Name(addrs[i]); !ok || name != want {
					t.Errorf("%v is %q, %v, want %s", addrs[i], name, ok, want)
				}
				if l := p.leases.named(want); l == nil || p.addr(l.slot, false) != addrs[i] {
					t.Errorf("%s has no lease", want)
				}
			}
		})
	}
	for i := range come {
		c.advance(1)
		mustLease(t, p, fmt.Sprintf("comes%d.example", i), false)
	}
	done.Store(true)
	readers.Wait()
	if n := p.Stats().Evicted; n != come-50 {
		t.Errorf("%d evicted, want %d", n, come-50)
	}
}

func BenchmarkPoolLease(b *testing.B) {
	p := newPool(b, PoolOptions{})
	names := make([]string, 1024)
	for i := range names {
		names[i] = fmt.Sprintf("n%d.example", i)
		mustLease(b, p, names[i], false)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			_, _ = p.lease(names[i%len(names)], false)
		}
	})
}

func BenchmarkPoolAcquire(b *testing.B) {
	p := newPool(b, PoolOptions{})
	addrs := make([]netip.Addr, 1024)
	for i := range addrs {
		addrs[i] = mustLease(b, p, fmt.Sprintf("n%d.example", i), i%2 == 0)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			_, release, _ := p.Acquire(addrs[i%len(addrs)])
			release()
		}
	})
}

func BenchmarkPoolName(b *testing.B) {
	p := newPool(b, PoolOptions{})
	addrs := make([]netip.Addr, 1024)
	for i := range addrs {
		addrs[i] = mustLease(b, p, fmt.Sprintf("n%d.example", i), i%2 == 0)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			p.Name(addrs[i%len(addrs)])
		}
	})
}

// BenchmarkPoolLeaseNew leases a new name each time: in an empty pool, which
// places it by its hash, and in a full one, which has to evict.
func BenchmarkPoolLeaseNew(b *testing.B) {
	for _, full := range []bool{false, true} {
		b.Run(fmt.Sprintf("full=%v", full), func(b *testing.B) {
			var c clock
			o := PoolOptions{Quarantine: 1, Now: c.now}
			if !full {
				o.V4, o.Max = netip.MustParsePrefix("10.0.0.0/8"), 1<<22
			}
			p := newPool(b, o)
			n := 0
			lease := func() {
				c.advance(1)
				n++
				if _, err := p.Lease(fmt.Sprintf("n%d.example", n), false); err != nil {
					b.Fatal(err)
				}
			}
			for full && n < p.Stats().Capacity {
				lease()
			}
			b.ReportAllocs()
			for b.Loop() {
				lease()
			}
		})
	}
}
