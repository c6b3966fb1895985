package dnsfake

import (
	"iter"
	"net/netip"
	"time"
)

// Lease is what a pool knows of a name.
type Lease struct {
	Name   string
	V4, V6 netip.Addr
	Unused time.Duration // since the last answer with it or flow on it; 0 while there is a flow
	Flows  int           // on it now

	// Dropped leases lead nowhere; their addresses are kept for their names,
	// and from others, as if they were just used.
	Dropped bool
}

// Leases returns all leases, in no order. What comes or goes meanwhile may be
// among them or not. It takes no lock.
func (p *Pool) Leases() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		more := true
		p.leases.all(func(l *lease) {
			if more && l.name != "" {
				more = yield(p.describe(l))
			}
		})
	}
}

// FindName returns the lease of a name, and whether it has one.
func (p *Pool) FindName(name string) (Lease, bool) {
	name, ok := canonical(name)
	if !ok {
		return Lease{}, false
	}
	l := p.leases.named(name)
	if l == nil {
		return Lease{}, false
	}
	return p.describe(l), true
}

// FindAddr returns the lease of a fake address of either family, and whether
// there is one.
func (p *Pool) FindAddr(addr netip.Addr) (Lease, bool) {
	slot, ok := p.slot(addr)
	if !ok {
		return Lease{}, false
	}
	l := p.leases.placed(slot)
	if l == nil || l.name == "" {
		return Lease{}, false
	}
	return p.describe(l), true
}

func (p *Pool) describe(l *lease) Lease {
	d := Lease{
		Name:    l.name,
		V4:      p.addr(l.slot, false),
		V6:      p.addr(l.slot, true),
		Flows:   max(int(l.pins.Load()), 0),
		Dropped: l.hidden.Load(),
	}
	if d.Flows == 0 {
		d.Unused = max(time.Duration(p.stamp()-l.used.Load()), 0)
	}
	return d
}

// Drop makes the addresses of a name lead nowhere, until the name is asked for
// again: then it has the same ones. Nobody else has them for a quarantine. Flows
// that are open go on. It returns false if the name has no lease.
func (p *Pool) Drop(name string) bool {
	name, ok := canonical(name)
	if !ok {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.leases.named(name)
	if l == nil || l.hidden.Load() {
		return false
	}
	now := p.stamp()
	l.used.Store(now)
	l.hidden.Store(true)
	p.store.note(entryDrop, l, now)
	return true
}
