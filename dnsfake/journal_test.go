package dnsfake

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"
)

// FuzzJournal reads any file. What is read can be leased, and written and read
// again it is the same.
func FuzzJournal(f *testing.F) {
	r := newPool(f, PoolOptions{}).ranges
	header := appendHeader(nil, r)
	whole, _ := fileOf(f, 4)
	var kinds []byte
	for kind := range byte(7) {
		kinds = appendEntry(kinds, kind, 20, 7, "")
		kinds = appendEntry(kinds, kind, 20+uint32(kind), 9, "a.example")
	}
	small := newPool(f, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/29"), V6: netip.MustParsePrefix("fd00::/120")}).ranges
	for _, b := range [][]byte{
		nil, header, whole, whole[:len(whole)-3],
		append(bytes.Clone(whole[:100]), whole[101:]...),
		append(bytes.Clone(header), kinds...),
		append(appendHeader(nil, small), kinds...),
		appendEntry(bytes.Clone(header), entryLease, 3, 1, "reserved.example"),
		appendEntry(bytes.Clone(header), entryLease, 1<<20, 1, "far.example"),
		appendEntry(bytes.Clone(header), entryLease, 33, 1, "10.0.0.1"),
		appendEntry(bytes.Clone(header), entryClock, 0, 1<<32-1, ""),
	} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= headerLen { // else checksums keep nearly everything out
			b = sealed(b)
		}
		j, err := readJournal(bytes.NewReader(b))
		if err != nil {
			return
		}
		if j.good < headerLen || j.good+j.tail != int64(len(b)) || j.lost > j.good-headerLen {
			t.Fatalf("%d octets: good up to %d, %d lost, %d behind", len(b), j.good, j.lost, j.tail)
		}
		again := appendHeader(nil, j.ranges)
		n := 0
		j.leases.all(func(l *lease) {
			n++
			if !j.leasable(l.slot) || j.leases.placed(l.slot) != l || l.saved.Load() > j.clock {
				t.Fatalf("lease %+v", l)
			}
			if l.name == "" {
				if !l.hidden.Load() {
					t.Fatalf("a place without a name leads somewhere: %+v", l)
				}
			} else if name, ok := canonical(l.name); !ok || name != l.name || j.leases.named(l.name) != l {
				t.Fatalf("lease %+v", l)
			}
			again = appendEntry(again, entryLease, l.slot, l.saved.Load(), l.name)
			if l.hidden.Load() {
				again = appendEntry(again, entryDrop, l.slot, l.saved.Load(), "")
			}
		})
		if n != j.leases.len() {
			t.Fatalf("%d leases, counted %d", n, j.leases.len())
		}
		j2, err := readJournal(bytes.NewReader(again))
		if err != nil || j2.lost+j2.tail > 0 || !maps.Equal(contents(j), contents(j2)) {
			t.Fatalf("%v, %v lost: %v became %v", err, j2.lost+j2.tail, contents(j), contents(j2))
		}
		// Another daemon may have other ranges.
		p := newPool(t, PoolOptions{V4: netip.MustParsePrefix("198.18.0.0/26")})
		p.base = int64(j.clock)
		p.migrate(j)
		p.leases.all(func(l *lease) {
			if !p.leasable(l.slot) {
				t.Fatalf("lease %+v", l)
			}
		})
	})
}

type leaseOf struct {
	slot, saved uint32
	hidden      bool
	name        string
}

func contents(j *journal) map[leaseOf]bool {
	all := make(map[leaseOf]bool)
	j.leases.all(func(l *lease) { all[leaseOf{l.slot, l.saved.Load(), l.hidden.Load(), l.name}] = true })
	return all
}

// sealed returns b as a file whose checksums are right: its first octets, taken
// for a header, and as many entries as their lengths give.
func sealed(b []byte) []byte {
	r, err := makeRanges(netip.PrefixFrom(netip.AddrFrom4([4]byte(b[24:28])), int(b[17]%33)),
		netip.PrefixFrom(netip.AddrFrom16([16]byte(b[28:44])), int(b[18])%129), int(b[20]))
	if err != nil {
		r, _ = makeRanges(DefaultV4, DefaultV6, 0)
	}
	out := appendHeader(nil, r)
	for rest := b[headerLen:]; len(rest) >= entryLen; {
		n := entryLen + int(rest[5])
		if n > len(rest) {
			break
		}
		slot := uint32(rest[6]) | uint32(rest[7])<<8
		out = appendEntry(out, rest[4]%8, slot, uint32(rest[10]), string(rest[entryLen:n]))
		rest = rest[n:]
	}
	return out
}
