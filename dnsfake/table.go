package dnsfake

import (
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
)

// table holds leases and finds them by name, by place and by age. It is written
// by one goroutine at a time and may be read by any number meanwhile, without a
// lock.
//
// A lease takes 48 octets and its name, 8 for its number, 4 to 5 by age and 5 to
// 8 by name and by place each: TestMillionLeases measures it. Maps of Go would
// take 40 each, and could not be read while they are written.
type table struct {
	// chunks[i/chunkSize][i%chunkSize] is lease i, nil where there is none.
	chunks []atomic.Pointer[leaseChunk]
	next   int      // all from here on are nil
	free   []uint32 // those before next that are nil

	byName, bySlot index
	byUse          []uint32 // a heap, the least seen first
	octets         int      // of all names
	nameSeed       maphash.Seed
	slotSeed       uint64
}

const chunkSize = 1 << 10

type leaseChunk [chunkSize]atomic.Pointer[lease]

// newTable returns a table for so many leases.
func newTable(capacity int) *table {
	return &table{
		chunks:   make([]atomic.Pointer[leaseChunk], (capacity+chunkSize-1)/chunkSize),
		nameSeed: maphash.MakeSeed(),
		slotSeed: rand.Uint64(),
	}
}

// len returns the number of leases. It is for the writer.
func (t *table) len() int { return t.next - len(t.free) }

// at returns lease i, or nil.
func (t *table) at(i uint32) *lease {
	if c := t.chunks[i/chunkSize].Load(); c != nil {
		return c[i%chunkSize].Load()
	}
	return nil
}

// all calls f with every lease. While somebody writes, one that comes or goes
// meanwhile may be among them or not.
func (t *table) all(f func(l *lease)) {
	for i := range t.chunks {
		c := t.chunks[i].Load()
		if c == nil {
			return // they are filled in order
		}
		for j := range c {
			if l := c[j].Load(); l != nil {
				f(l)
			}
		}
	}
}

// named returns the lease of name, or nil. It does not allocate.
func (t *table) named(name string) *lease {
	p := t.byName.probe(t.hashName(name))
	for {
		i, ok := p.next()
		if !ok {
			return nil
		}
		if l := t.at(i); l != nil && l.name == name {
			return l
		}
	}
}

// placed returns the lease at slot, or nil. It does not allocate.
func (t *table) placed(slot uint32) *lease {
	_, l := t.number(slot)
	return l
}

// number returns the lease at slot and its number; nil if there is none.
func (t *table) number(slot uint32) (uint32, *lease) {
	p := t.bySlot.probe(t.hashSlot(slot))
	for {
		i, ok := p.next()
		if !ok {
			return 0, nil
		}
		if l := t.at(i); l != nil && l.slot == slot {
			return i, l
		}
	}
}

// insert adds a lease, whose name and slot no other has. One without a name is
// not found by name.
func (t *table) insert(l *lease) {
	t.byUse = append(t.byUse, t.add(l))
	t.up(len(t.byUse) - 1)
}

// add is insert, but for the order by use: until order is called the oldest one
// is not known.
func (t *table) add(l *lease) uint32 {
	i := uint32(t.next)
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		t.next++
	}
	c := t.chunks[i/chunkSize].Load()
	if c == nil {
		c = new(leaseChunk)
		t.chunks[i/chunkSize].Store(c)
	}
	c[i%chunkSize].Store(l) // before the indexes lead to it
	if l.name != "" {
		t.byName.insert(t.hashName(l.name), i, t.nameHash)
	}
	t.bySlot.insert(t.hashSlot(l.slot), i, t.slotHash)
	t.octets += len(l.name)
	return i
}

// remove removes lease i, but for the order by use.
func (t *table) remove(i uint32) {
	l := t.at(i)
	if l.name != "" {
		t.byName.remove(t.hashName(l.name), i)
	}
	t.bySlot.remove(t.hashSlot(l.slot), i)
	t.octets -= len(l.name)
	t.chunks[i/chunkSize].Load()[i%chunkSize].Store(nil)
	t.free = append(t.free, i)
}

// order orders all leases by seen.
func (t *table) order() {
	t.byUse = t.byUse[:0]
	for i := range uint32(t.next) {
		if t.at(i) != nil {
			t.byUse = append(t.byUse, i)
		}
	}
	for i := len(t.byUse)/2 - 1; i >= 0; i-- {
		t.down(i)
	}
}

// oldest returns the lease that was seen longest ago, or nil.
func (t *table) oldest() *lease {
	if len(t.byUse) == 0 {
		return nil
	}
	return t.at(t.byUse[0])
}

// sink puts the oldest lease where it belongs, after its seen has grown.
func (t *table) sink() { t.down(0) }

// removeOldest removes the oldest lease.
func (t *table) removeOldest() {
	i, last := t.byUse[0], len(t.byUse)-1
	t.byUse[0] = t.byUse[last]
	t.byUse = t.byUse[:last]
	t.down(0)
	t.remove(i)
}

func (t *table) nameHash(i uint32) uint64 { return t.hashName(t.at(i).name) }
func (t *table) slotHash(i uint32) uint64 { return t.hashSlot(t.at(i).slot) }

// Hashes are seeded, so that nobody can choose names that meet in one cell.
func (t *table) hashName(name string) uint64 { return maphash.String(t.nameSeed, name) }

// hashSlot is the finalizer of MurmurHash3, a sixth of maphash.Comparable.
func (t *table) hashSlot(slot uint32) uint64 {
	h := uint64(slot) ^ t.slotSeed
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func (t *table) less(i, j int) bool { return t.at(t.byUse[i]).seen < t.at(t.byUse[j]).seen }

func (t *table) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !t.less(i, parent) {
			return
		}
		t.byUse[i], t.byUse[parent] = t.byUse[parent], t.byUse[i]
		i = parent
	}
}

func (t *table) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(t.byUse) {
			return
		}
		if child+1 < len(t.byUse) && t.less(child+1, child) {
			child++
		}
		if !t.less(child, i) {
			return
		}
		t.byUse[i], t.byUse[child] = t.byUse[child], t.byUse[i]
		i = child
	}
}

// index leads from hashes to numbers of leases: open addressing with linear
// probing, in parts that grow one by one, so that none takes long. A reader that
// meets a writer may be led to a lease that has gone or been replaced, and has to
// look; it misses none that is there all the time, for nothing is moved but to new
// cells.
type index struct {
	parts [indexParts]struct {
		cells atomic.Pointer[[]atomic.Uint32]
		live  int // numbers in cells
		used  int // cells that are not empty
	}
}

const (
	indexParts = 64

	// A cell has the number of a lease, from cellFirst, and above it a part
	// of the hash, which spares most looks at leases of other hashes.
	cellEmpty   = 0
	cellRemoved = 1
	cellFirst   = 2
	cellBits    = 24
	cellMask    = 1<<cellBits - 1
)

// probe is a walk along the cells of a hash.
type probe struct {
	cells []atomic.Uint32
	i     int
	tag   uint32
}

func (x *index) probe(hash uint64) probe {
	cells := x.parts[hash%indexParts].cells.Load()
	if cells == nil {
		return probe{}
	}
	return probeCells(*cells, hash)
}

// probeCells starts where the upper half of hash says (Lemire's reduction: any
// number of cells will do).
func probeCells(cells []atomic.Uint32, hash uint64) probe {
	return probe{cells, int(hash >> 32 * uint64(len(cells)) >> 32), uint32(hash>>6) << cellBits}
}

// next returns the next number that may be the hash's; false after the last.
func (p *probe) next() (uint32, bool) {
	for len(p.cells) > 0 {
		v := p.cells[p.i].Load()
		if v == cellEmpty {
			break
		}
		if p.i++; p.i == len(p.cells) {
			p.i = 0
		}
		if v&cellMask >= cellFirst && v&^cellMask == p.tag {
			return v&cellMask - cellFirst, true
		}
	}
	return 0, false
}

// insert adds a number. Where the cells run short, hash is asked for those of the
// numbers that are there.
func (x *index) insert(hash uint64, number uint32, hashOf func(number uint32) uint64) {
	part := &x.parts[hash%indexParts]
	var cells []atomic.Uint32
	if p := part.cells.Load(); p != nil {
		cells = *p
	}
	if 4*(part.used+1) > 3*len(cells) {
		bigger := make([]atomic.Uint32, 2*part.live+8)
		for i := range cells {
			if v := cells[i].Load() & cellMask; v >= cellFirst {
				put(bigger, hashOf(v-cellFirst), v-cellFirst)
			}
		}
		part.used = part.live
		part.cells.Store(&bigger)
		cells = bigger
	}
	if put(cells, hash, number) {
		part.used++
	}
	part.live++
}

// put writes a number into a cell and says whether that was empty.
func put(cells []atomic.Uint32, hash uint64, number uint32) bool {
	p := probeCells(cells, hash)
	for {
		switch v := cells[p.i].Load(); v {
		case cellEmpty, cellRemoved:
			cells[p.i].Store(p.tag | number + cellFirst)
			return v == cellEmpty
		}
		if p.i++; p.i == len(cells) {
			p.i = 0
		}
	}
}

// remove removes a number, which is there.
func (x *index) remove(hash uint64, number uint32) {
	part := &x.parts[hash%indexParts]
	cells := *part.cells.Load()
	p := probeCells(cells, hash)
	for cells[p.i].Load() != p.tag|number+cellFirst {
		if p.i++; p.i == len(cells) {
			p.i = 0
		}
	}
	cells[p.i].Store(cellRemoved)
	part.live--
}
