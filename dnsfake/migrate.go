package dnsfake

// migrate leases what a file has whose ranges were others. A lease keeps its
// place if there still is one, so that it keeps its address in a range that has
// not changed, or only its length. Where ranges overlap otherwise, a place may
// have an address that was another name's: nobody gets it for a quarantine, and
// a lease that would keep it goes elsewhere, by its hash, as one does whose place
// is no more.
func (p *Pool) migrate(j *journal) {
	was := make(map[uint32]*lease) // who had an address of a place
	j.leases.all(func(l *lease) {
		for _, v6 := range []bool{false, true} {
			if slot, ok := p.slot(j.addr(l.slot, v6)); ok && slot != l.slot {
				was[slot] = l
			}
		}
	})
	p.leases = newTable(maxMax)
	var others []*lease
	j.leases.all(func(l *lease) {
		if p.leasable(l.slot) && was[l.slot] == nil {
			p.leases.add(l)
		} else {
			others = append(others, l)
		}
	})
	room := func() bool {
		return p.leases.len() < maxMax && uint64(p.leases.len()) < p.limit()-uint64(p.reserved)
	}
	for slot, l := range was {
		if room() {
			held := &lease{slot: slot, seen: l.seen}
			held.used.Store(l.used.Load())
			held.hidden.Store(true)
			p.leases.add(held)
		}
	}
	for _, l := range others {
		if room() && l.name != "" {
			moved := &lease{name: l.name, slot: p.place(l.name, -1), seen: l.seen}
			moved.used.Store(l.used.Load())
			moved.hidden.Store(l.hidden.Load())
			p.leases.add(moved)
		}
	}
	p.leases.order()
}
