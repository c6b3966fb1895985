package dnsfake

import (
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of [PoolOptions].
var (
	// DefaultV4 is set aside for benchmarks between networks (RFC 2544), is
	// not routed on the Internet, and is what others of this kind use.
	DefaultV4 = netip.MustParsePrefix("198.18.0.0/15")

	// DefaultV6 is a unique local prefix (RFC 4193) whose global ID spells
	// "tunro". It is fixed, not random as the RFC would have it, because two
	// runs and two gateways have to agree; a random prefix of somebody's
	// network meets it once in 2^40, and it is easily told in a dump.
	DefaultV6 = netip.MustParsePrefix("fd74:756e:726f::/64")
)

const (
	defaultReserved   = 16
	defaultMax        = 1 << 17 // as many as DefaultV4 has addresses
	defaultQuarantine = time.Hour

	// The largest table that NewPool will make: 2^24 places are a /8 and
	// 128 MiB before the first lease.
	maxMax = 1 << 24

	maxReserved = 1 << 16

	// Places of the reserved addresses. The first of a range is its network
	// address (v4) or the routers' anycast address (v6).
	resolverSlot = 1
	deviceSlot   = 2
)

// PoolOptions say what a [Pool] leases. The zero value is useful.
type PoolOptions struct {
	// V4 and V6 are the ranges; zero means [DefaultV4] and [DefaultV6]. The
	// smaller one bounds the number of leases, since a lease has an address
	// in each. The last address of V4 (its broadcast address) is not leased.
	V4, V6 netip.Prefix

	// Reserved is how many addresses at the start of each range are never
	// leased: the network address, the resolver, the device, and room for
	// more. Zero means 16; the least is 3, the most 65536.
	Reserved int

	// Max bounds the number of leases, and with it the memory: 8 octets each
	// at once and about 200 when leased. Zero means 131072, the whole of
	// DefaultV4; the most is 2^24.
	Max int

	// Quarantine is how long after its last use (the last answer with it or
	// the last flow on it) an address is kept for its name even if the range
	// is full. Zero means an hour.
	Quarantine time.Duration

	// Key changes the places that names get. Gateways that are to agree have
	// the same Key; all zeros is one as well.
	Key [16]byte

	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

var (
	// ErrExhausted says that every address is in use or in quarantine.
	ErrExhausted = errors.New("no fake address left: all are in use or were in use a short while ago (a larger range or a shorter quarantine gives more)")

	// ErrName says that a name cannot have a fake address: it is not a host
	// name, or reads as an address.
	ErrName = errors.New("not a host name that can have a fake address")
)

// Pool leases fake addresses to names. All methods are safe for concurrent use
// and none blocks for I/O.
type Pool struct {
	v4, v6     netip.Prefix // masked
	reserved   int
	quarantine int64 // nanoseconds, at least 1
	key        [16]byte
	now        func() time.Time
	epoch      time.Time // when the pool was made; uses are counted from here, by the monotonic clock

	// table[slot] is the lease of the addresses at that offset, nil where
	// there is none. It is written under mu only, but may be read without:
	// Name is asked at packet tempo, which shares no lock with the others.
	table []atomic.Pointer[lease]

	// mu guards names, byUse and writes to table; a lease is pinned or
	// touched under the read lock and evicted under the write lock, so that
	// it cannot be both. On two cores BenchmarkPoolAcquire takes 0.1 µs, the
	// flow behind it hundreds: shards would not show.
	mu    sync.RWMutex
	names map[string]*lease
	byUse useHeap // all leases, the least recently used one first

	pins      atomic.Int64
	evicted   atomic.Uint64
	exhausted atomic.Uint64
}

// lease is a name and its place in both ranges.
type lease struct {
	name string
	slot uint32
	pins atomic.Int32 // raised under Pool.mu, lowered anywhere
	used atomic.Int64 // the last use, nanoseconds after Pool.epoch
	seen int64        // what the heap knows of used; guarded by Pool.mu
}

// NewPool returns an empty pool. It fails where a range is of the wrong family
// or has no room beyond the reserved addresses.
func NewPool(o PoolOptions) (*Pool, error) {
	if o.V4 == (netip.Prefix{}) {
		o.V4 = DefaultV4
	}
	if o.V6 == (netip.Prefix{}) {
		o.V6 = DefaultV6
	}
	if o.Reserved == 0 {
		o.Reserved = defaultReserved
	}
	if o.Max == 0 {
		o.Max = defaultMax
	}
	if o.Quarantine == 0 {
		o.Quarantine = defaultQuarantine
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case !o.V4.IsValid() || !o.V4.Addr().Is4():
		return nil, fmt.Errorf("fake range %v is not an IPv4 prefix", o.V4)
	case !o.V6.IsValid() || !o.V6.Addr().Is6() || o.V6.Addr().Is4In6():
		return nil, fmt.Errorf("fake range %v is not an IPv6 prefix", o.V6)
	case o.Reserved <= deviceSlot || o.Reserved > maxReserved:
		return nil, fmt.Errorf("%d reserved addresses: must be %d (network, resolver, device) to %d", o.Reserved, deviceSlot+1, maxReserved)
	case o.Max < 1 || o.Max > maxMax:
		return nil, fmt.Errorf("%d leases at most: must be 1 to %d", o.Max, maxMax)
	case o.Quarantine < 0:
		return nil, fmt.Errorf("quarantine of %v is negative", o.Quarantine)
	}
	slots := o.Max + o.Reserved
	for _, r := range []struct {
		prefix netip.Prefix
		unused int // at the end
	}{{o.V4, 1}, {o.V6, 0}} {
		bits := r.prefix.Addr().BitLen() - r.prefix.Bits()
		if bits >= 30 {
			continue // more than maxMax
		}
		room := 1<<bits - r.unused
		if room <= o.Reserved {
			return nil, fmt.Errorf("fake range %v is too small: the first %d addresses are reserved", r.prefix, o.Reserved)
		}
		slots = min(slots, room)
	}
	return &Pool{
		v4:         o.V4.Masked(),
		v6:         o.V6.Masked(),
		reserved:   o.Reserved,
		quarantine: int64(o.Quarantine),
		key:        o.Key,
		now:        o.Now,
		epoch:      o.Now(),
		table:      make([]atomic.Pointer[lease], slots),
		names:      make(map[string]*lease),
	}, nil
}

// Lease returns the fake address of name, IPv4 or IPv6. The same name has the
// same address for as long as its lease lives, whatever its letter case and with
// or without the trailing dot. It returns [ErrName] for a name that cannot have
// one, and [ErrExhausted] when none is left.
func (p *Pool) Lease(name string, v6 bool) (netip.Addr, error) {
	name, ok := canonical(name)
	if !ok {
		return netip.Addr{}, ErrName
	}
	return p.lease(name, v6)
}

// lease is Lease for a name that is canonical and may be leased.
func (p *Pool) lease(name string, v6 bool) (netip.Addr, error) {
	p.mu.RLock()
	l := p.names[name]
	if l != nil {
		l.used.Store(p.stamp())
	}
	p.mu.RUnlock()
	if l == nil {
		var err error
		if l, err = p.grant(name); err != nil {
			return netip.Addr{}, err
		}
	}
	return p.addr(l.slot, v6), nil
}

// grant makes the lease of name, unless somebody has made it meanwhile.
func (p *Pool) grant(name string) (*lease, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.stamp()
	if l := p.names[name]; l != nil {
		l.used.Store(now)
		return l, nil
	}
	slot, ok := p.place(name, now)
	if !ok {
		p.exhausted.Add(1)
		return nil, ErrExhausted
	}
	return p.insert(name, slot, now), nil
}

// place returns a free slot for name: where its hash says or the next one
// after that, or else the one of the lease that has to go. The caller holds mu.
func (p *Pool) place(name string, now int64) (uint32, bool) {
	n := len(p.table) - p.reserved
	if len(p.names) == n {
		return p.evict(now)
	}
	// Only a free place ends the search and there is one. Filling the
	// default range to the last place costs some 200 steps per name.
	i := int(p.hash(name) % uint64(n))
	for p.table[p.reserved+i].Load() != nil {
		if i++; i == n {
			i = 0
		}
	}
	return uint32(p.reserved + i), true
}

// hash is the same in every run and on every machine with the same key.
func (p *Pool) hash(name string) uint64 {
	var b [len(p.key) + maxName]byte
	sum := sha256.Sum256(append(append(b[:0], p.key[:]...), name...))
	return binary.BigEndian.Uint64(sum[:])
}

// insert makes a lease: the one place where leases begin. The caller holds mu
// and knows that the slot is free and the name without a lease.
func (p *Pool) insert(name string, slot uint32, now int64) *lease {
	l := &lease{name: name, slot: slot, seen: now}
	l.used.Store(now)
	p.names[name] = l
	p.table[slot].Store(l)
	heap.Push(&p.byUse, l)
	return l
}

// evict ends the lease that was unused for longest and returns its slot: the one
// place where leases end. It returns false if none may end. The caller holds mu.
//
// The heap is put right only here, not whenever a lease is used: seen is never
// later than the last use, so a lease that comes up first and was used since
// only has to sink to its place, and when seen is right for the first one it is
// the least of all.
func (p *Pool) evict(now int64) (uint32, bool) {
	for {
		l := p.byUse[0]
		if now-l.seen < p.quarantine {
			return 0, false
		}
		// Pins before use: release sets the use first, then lowers the pins.
		if l.pins.Load() > 0 {
			l.seen = now
		} else if used := l.used.Load(); used > l.seen {
			l.seen = used
		} else {
			heap.Pop(&p.byUse)
			delete(p.names, l.name)
			p.table[l.slot].Store(nil)
			p.evicted.Add(1)
			return l.slot, true
		}
		heap.Fix(&p.byUse, 0)
	}
}

// Acquire returns the name behind a fake address and pins the lease: until
// release is called the address stays the name's. Release may be called more
// than once and from any goroutine. ok is false if addr is no fake address or
// an orphan; release is then nil.
func (p *Pool) Acquire(addr netip.Addr) (name string, release func(), ok bool) {
	slot, ok := p.slot(addr)
	if !ok {
		return "", nil, false
	}
	p.mu.RLock()
	l := p.table[slot].Load()
	if l != nil {
		l.pins.Add(1)
	}
	p.mu.RUnlock()
	if l == nil {
		return "", nil, false
	}
	p.pins.Add(1)
	var released atomic.Bool
	return l.name, func() {
		if released.CompareAndSwap(false, true) {
			l.used.Store(p.stamp())
			l.pins.Add(-1)
			p.pins.Add(-1)
		}
	}, true
}

// Name returns the name behind a fake address without pinning it; false if addr
// is no fake address or an orphan. It runs at packet tempo: no lock, no
// allocation.
func (p *Pool) Name(addr netip.Addr) (string, bool) {
	slot, ok := p.slot(addr)
	if !ok {
		return "", false
	}
	l := p.table[slot].Load()
	if l == nil {
		return "", false
	}
	return l.name, true
}

// Owns reports whether addr lies in one of the ranges, leased or not: reserved
// addresses and orphans are owned too. It runs at packet tempo.
func (p *Pool) Owns(addr netip.Addr) bool {
	addr = addr.Unmap()
	return p.v4.Contains(addr) || p.v6.Contains(addr)
}

// V4 returns the IPv4 range.
func (p *Pool) V4() netip.Prefix { return p.v4 }

// V6 returns the IPv6 range.
func (p *Pool) V6() netip.Prefix { return p.v6 }

// Resolver4 returns the IPv4 address that is set aside for the DNS server: the
// second of the range.
func (p *Pool) Resolver4() netip.Addr { return p.addr(resolverSlot, false) }

// Resolver6 returns the IPv6 address that is set aside for the DNS server.
func (p *Pool) Resolver6() netip.Addr { return p.addr(resolverSlot, true) }

// Device4 returns the IPv4 address that is set aside for the TUN device: the
// third of the range.
func (p *Pool) Device4() netip.Addr { return p.addr(deviceSlot, false) }

// Device6 returns the IPv6 address that is set aside for the TUN device.
func (p *Pool) Device6() netip.Addr { return p.addr(deviceSlot, true) }

// PoolStats are the figures of a [Pool].
type PoolStats struct {
	Capacity  int    // leases at most
	Leases    int    // now
	Pins      int    // flows on fake addresses now
	Evicted   uint64 // leases that ended for another name
	Exhausted uint64 // names that got no lease
}

// Stats returns the figures of this moment.
func (p *Pool) Stats() PoolStats {
	p.mu.RLock()
	leases := len(p.names)
	p.mu.RUnlock()
	return PoolStats{
		Capacity:  len(p.table) - p.reserved,
		Leases:    leases,
		Pins:      int(p.pins.Load()),
		Evicted:   p.evicted.Load(),
		Exhausted: p.exhausted.Load(),
	}
}

// addr returns the address at slot.
func (p *Pool) addr(slot uint32, v6 bool) netip.Addr {
	if v6 {
		b := p.v6.Addr().As16()
		orUint32(b[12:], slot)
		return netip.AddrFrom16(b)
	}
	b := p.v4.Addr().As4()
	orUint32(b[:], slot)
	return netip.AddrFrom4(b)
}

func orUint32(b []byte, v uint32) {
	binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)|v)
}

// slot returns the place of a fake address that may be leased.
func (p *Pool) slot(addr netip.Addr) (uint32, bool) {
	addr = addr.Unmap()
	var slot uint32
	switch {
	case p.v4.Contains(addr):
		a, base := addr.As4(), p.v4.Addr().As4()
		slot = binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:])
	case p.v6.Contains(addr):
		a, base := addr.As16(), p.v6.Addr().As16()
		if [12]byte(a[:]) != [12]byte(base[:]) {
			return 0, false // no slot is that far into the range
		}
		slot = binary.BigEndian.Uint32(a[12:]) - binary.BigEndian.Uint32(base[12:])
	default:
		return 0, false
	}
	return slot, slot >= uint32(p.reserved) && slot < uint32(len(p.table))
}

// stamp returns the time since the pool was made. The monotonic clock counts: a
// router that learns the date after its start must not end all quarantines.
func (p *Pool) stamp() int64 { return int64(p.now().Sub(p.epoch)) }

// useHeap orders leases by what is known of their last use (container/heap).
type useHeap []*lease

func (h useHeap) Len() int           { return len(h) }
func (h useHeap) Less(i, j int) bool { return h[i].seen < h[j].seen }
func (h useHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *useHeap) Push(l any)        { *h = append(*h, l.(*lease)) }
func (h *useHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return l
}
