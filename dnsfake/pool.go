package dnsfake

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
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
	defaultMax        = 1 << 20
	defaultQuarantine = time.Hour

	// The most leases: what the cells of an index can number, and a gigabyte.
	maxMax = 1 << 23

	maxReserved = 1 << 16

	// A range with fewer addresses than this has no room to spare, and no
	// more reserved ones than needed if PoolOptions.Reserved is zero.
	smallRange = 64

	// Places of the reserved addresses. The first of a range is its network
	// address (v4) or the routers' anycast address (v6).
	resolverSlot = 1
	deviceSlot   = 2
)

// PoolOptions say what a [Pool] leases. The zero value is useful.
type PoolOptions struct {
	// V4 and V6 are the ranges, of any size that has room for a lease; zero
	// means [DefaultV4] and [DefaultV6]. A lease has an address in each, at
	// the same place, so the smaller one says how many places there are. The
	// last address of V4 (its broadcast address) is not leased.
	V4, V6 netip.Prefix

	// Reserved is how many addresses at the start of each range are never
	// leased: the network address, the resolver, the device, and room for
	// more. Zero means 16, or 3 where a range has less than 64 addresses; the
	// least is 3, the most 65536.
	Reserved int

	// Max bounds the number of leases where the ranges have more places, and
	// with it the memory: some 90 octets each, and the name. Zero means
	// 1048576; the most is 2^23.
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

	// Logger gets what is unusual about the file of leases. Nil discards.
	Logger *slog.Logger
}

var (
	// ErrExhausted says that every address is in use or in quarantine.
	ErrExhausted = errors.New("no fake address left: all are in use or were in use a short while ago (a larger range or a shorter quarantine gives more)")

	// ErrName says that a name cannot have a fake address: it is not a host
	// name, or reads as an address.
	ErrName = errors.New("not a host name that can have a fake address")
)

// Pool leases fake addresses to names. All methods are safe for concurrent use.
// None but Open and Lease, which says so, blocks for I/O.
type Pool struct {
	ranges
	max        int
	quarantine int64 // nanoseconds, at least 1
	key        [16]byte
	now        func() time.Time
	epoch      time.Time // when the pool was made; uses are counted from here, by the monotonic clock
	base       int64     // and from here, where a file says what was before
	log        *slog.Logger
	store      *store // nil where leases are not kept

	// mu guards writes to leases, the heap in them and lease.seen. Leases are
	// found, used, pinned and released without it.
	mu     sync.Mutex
	leases *table

	pins      atomic.Int64
	evicted   atomic.Uint64
	exhausted atomic.Uint64
}

// lease is a name and its place in both ranges.
//
// Whoever uses it and whoever evicts it meet without a lock. To pin raises pins
// unless it is dead; to evict makes it dead only from zero. And who uses it
// without a pin sets used first and looks at pins then, whereas who evicts makes
// pins dead first and looks at used then: one of them sees the other.
type lease struct {
	name string
	slot uint32
	pins atomic.Int32 // flows on it, or dead
	used atomic.Int64 // the last use, as of Pool.stamp
	seen int64        // what the heap knows of used; guarded by Pool.mu

	// saved is the last use that the file knows of, in seconds; 0 means that
	// the file does not know of the lease.
	saved atomic.Uint32

	// hidden is true of a lease that leads nowhere: one that was dropped, or
	// one without a name, which only keeps a place from others.
	hidden atomic.Bool
}

// dead is the pins of a lease that has ended, or is about to: it may come back to
// life while Pool.mu is held, never after.
const dead = -1

// use notes a use at now. It returns false if the lease is dead: then it has not
// been used.
func (l *lease) use(now int64) bool {
	l.used.Store(now)
	return l.pins.Load() != dead
}

// pin pins the lease. It returns false if the lease is dead.
func (l *lease) pin() bool {
	for {
		n := l.pins.Load()
		if n == dead {
			return false
		}
		if l.pins.CompareAndSwap(n, n+1) {
			return true
		}
	}
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
	if o.Max == 0 {
		o.Max = defaultMax
	}
	if o.Quarantine == 0 {
		o.Quarantine = defaultQuarantine
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := makeRanges(o.V4, o.V6, o.Reserved)
	switch {
	case err != nil:
		return nil, err
	case o.Max < 1 || o.Max > maxMax:
		return nil, fmt.Errorf("%d leases at most: must be 1 to %d", o.Max, maxMax)
	case o.Quarantine < 0:
		return nil, fmt.Errorf("quarantine of %v is negative", o.Quarantine)
	}
	most := int(min(r.limit()-uint64(r.reserved), uint64(o.Max)))
	return &Pool{
		ranges:     r,
		max:        most,
		quarantine: int64(o.Quarantine),
		key:        o.Key,
		now:        o.Now,
		epoch:      o.Now(),
		log:        o.Logger,
		leases:     newTable(most),
	}, nil
}

// Lease returns the fake address of name, IPv4 or IPv6. The same name has the
// same address for as long as its lease lives, whatever its letter case and with
// or without the trailing dot. It returns [ErrName] for a name that cannot have
// one, and [ErrExhausted] when none is left. Where leases are kept in a file it
// waits until a new one is in there, but no longer than 200 milliseconds.
func (p *Pool) Lease(name string, v6 bool) (netip.Addr, error) {
	name, ok := canonical(name)
	if !ok {
		return netip.Addr{}, ErrName
	}
	return p.lease(name, v6)
}

// lease is Lease for a name that is canonical and may be leased.
func (p *Pool) lease(name string, v6 bool) (netip.Addr, error) {
	if a, ok := p.leased(name, v6); ok {
		return a, nil
	}
	l, saving, err := p.grant(name)
	if err != nil {
		return netip.Addr{}, err
	}
	p.store.wait(saving)
	return p.addr(l.slot, v6), nil
}

// leased is lease for a name that has a lease which may be told of at once, and
// else returns false. It takes no lock and does not allocate.
func (p *Pool) leased(name string, v6 bool) (netip.Addr, bool) {
	l := p.leases.named(name)
	if l == nil || l.hidden.Load() {
		return netip.Addr{}, false
	}
	now := p.stamp()
	if !p.store.knows(l, now) || !l.use(now) {
		return netip.Addr{}, false
	}
	return p.addr(l.slot, v6), true
}

// waits reports whether lease may wait for the disk.
func (p *Pool) waits() bool { return p.store != nil && !p.store.failing.Load() }

// grant makes the lease of name, which it copies, if there is none, and returns
// what is to be waited for before anybody is told of it; nil is nothing.
func (p *Pool) grant(name string) (*lease, *notes, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.stamp()
	if l := p.leases.named(name); l != nil {
		l.used.Store(now)
		if l.hidden.Load() {
			l.hidden.Store(false)
			return l, p.store.note(entryLease, l, now), nil
		}
		return l, p.store.noteUse(l, now), nil
	}
	freed := int64(-1)
	for p.leases.len() >= p.max { // more, if a file had more
		l := p.evict(now)
		if l == nil {
			p.exhausted.Add(1)
			return nil, nil, ErrExhausted
		}
		freed = int64(l.slot)
	}
	l := &lease{name: strings.Clone(name), slot: p.place(name, freed), seen: now}
	l.used.Store(now)
	p.leases.insert(l)
	return l, p.store.note(entryLease, l, now), nil
}

// place returns a free slot for name: where its hash says or the next one after
// that. If there is but one, freed is known to be it; else freed is of no
// consequence. The caller holds mu and has seen to it that there is one.
func (p *Pool) place(name string, freed int64) uint32 {
	n := p.limit() - uint64(p.reserved)
	if uint64(p.leases.len()) == n-1 && freed >= 0 {
		return uint32(freed)
	}
	// To fill the default range to the last place costs some 200 steps per
	// name.
	i := p.hash(name) % n
	for p.leases.placed(uint32(uint64(p.reserved)+i)) != nil {
		if i++; i == n {
			i = 0
		}
	}
	return uint32(uint64(p.reserved) + i)
}

// hash is the same in every run and on every machine with the same key.
func (p *Pool) hash(name string) uint64 {
	var b [len(p.key) + maxName]byte
	sum := sha256.Sum256(append(append(b[:0], p.key[:]...), name...))
	return binary.BigEndian.Uint64(sum[:])
}

// evict ends the lease that was unused for longest and returns it: the one place
// where leases end. It returns nil if none may end. The caller holds mu, and there
// is a lease.
//
// The heap is put right only here, not whenever a lease is used: seen is never
// later than the last use, so a lease that comes up first and was used since
// only has to sink to its place, and when seen is right for the first one it is
// the least of all.
func (p *Pool) evict(now int64) *lease {
	for {
		l := p.leases.oldest()
		if now-l.seen < p.quarantine {
			return nil
		}
		if !l.pins.CompareAndSwap(0, dead) {
			l.seen = now // by a flow
		} else if used := l.used.Load(); used > l.seen {
			l.seen = used
			l.pins.Store(0)
		} else {
			p.leases.removeOldest()
			p.evicted.Add(1)
			p.store.note(entryEnd, l, now)
			return l
		}
		p.leases.sink()
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
	l := p.leases.placed(slot)
	if l == nil || l.hidden.Load() {
		return "", nil, false
	}
	if !l.pin() {
		// While mu is held nothing is about to end.
		p.mu.Lock()
		l = p.leases.placed(slot)
		ok = l != nil && !l.hidden.Load() && l.pin()
		p.mu.Unlock()
		if !ok {
			return "", nil, false
		}
	}
	p.pins.Add(1)
	p.noteFlow(l)
	var released atomic.Bool
	return l.name, func() {
		if released.CompareAndSwap(false, true) {
			p.noteFlow(l)
			l.pins.Add(-1)
			p.pins.Add(-1)
		}
	}, true
}

// noteFlow notes that a flow uses l, which is pinned, now. A flow does not wait for
// the file: it is told within the millisecond or so that writing takes.
func (p *Pool) noteFlow(l *lease) {
	now := p.stamp()
	l.used.Store(now)
	if !p.store.knows(l, now) {
		p.mu.Lock()
		p.store.noteUse(l, now)
		p.mu.Unlock()
	}
}

// Name returns the name behind a fake address without pinning it; false if addr
// is no fake address or an orphan. It runs at packet tempo: no lock, no
// allocation.
func (p *Pool) Name(addr netip.Addr) (string, bool) {
	slot, ok := p.slot(addr)
	if !ok {
		return "", false
	}
	l := p.leases.placed(slot)
	if l == nil || l.hidden.Load() {
		return "", false
	}
	return l.name, true
}

// Owns reports whether addr lies in one of the ranges, leased or not: reserved
// addresses and orphans are owned too. It runs at packet tempo.
func (p *Pool) Owns(addr netip.Addr) bool {
	return p.owns(addr.Unmap())
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
	Unsaved   uint64 // answers that did not wait any longer for the file
	Failing   bool   // there should be a file, and cannot be written
}

// Stats returns the figures of this moment.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	leases := p.leases.len()
	p.mu.Unlock()
	s := PoolStats{
		Capacity:  p.max,
		Leases:    leases,
		Pins:      int(p.pins.Load()),
		Evicted:   p.evicted.Load(),
		Exhausted: p.exhausted.Load(),
	}
	if p.store != nil {
		s.Unsaved, s.Failing = p.store.unsaved.Load(), p.store.failing.Load()
	}
	return s
}

// stamp returns the time since the pool was made. The monotonic clock counts: a
// router that learns the date after its start must not end all quarantines.
func (p *Pool) stamp() int64 { return p.base + int64(p.now().Sub(p.epoch)) }
