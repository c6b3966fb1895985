package dnsfake

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
)

// The file of leases is a header and entries, each with a checksum (CRC-32C) of
// what follows it; numbers are little-endian. Records are only ever appended, and
// each says what has happened after those before it:
//
//	header  magic 16 | version 1 | bits of v4 1 | bits of v6 1 | 0 1 |
//	        reserved 4 | v4 4 | v6 16 | checksum of all this 4
//	entry   checksum 4 | kind 1 | length of name 1 | slot 4 | time 4 | name
//
// It is a journal and not a database, bbolt for one, since nothing is ever looked up in
// it, and answers wait for it: to give one lease to the page cache took 1 µs, by bbolt
// without syncs 34 µs; a hundred, 34 µs and 2.7 ms; one that is synced, 0.26 and 0.71 ms.
// A lease took 41 octets, and 116 to 149.
//
// Time is in seconds in which a daemon has run on the file: the clock of a router
// may be wrong when it starts, and a quarantine that ends too late harms nobody.
const (
	journalMagic   = "tunroute leases\n"
	journalVersion = 1
	headerLen      = 48
	entryLen       = 14
)

// Kinds of entries.
const (
	entryLease = 1 + iota // name has slot, and did at time; without a name, slot is held for nobody
	entryUse              // slot was in use at time
	entryEnd              // slot has no lease
	entryDrop             // slot is kept for its name, which has to be asked for again
	entryClock            // it was time
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendHeader appends the header of a file whose places are in r.
func appendHeader(b []byte, r ranges) []byte {
	start := len(b)
	b = append(b, journalMagic...)
	b = append(b, journalVersion, byte(r.v4.Bits()), byte(r.v6.Bits()), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(r.reserved))
	v4, v6 := r.v4.Addr().As4(), r.v6.Addr().As16()
	b = append(append(b, v4[:]...), v6[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// readHeader returns the ranges of a file with the header b.
func readHeader(b []byte) (ranges, bool) {
	if len(b) != headerLen || string(b[:16]) != journalMagic || b[16] != journalVersion ||
		crc32.Checksum(b[:44], castagnoli) != binary.LittleEndian.Uint32(b[44:]) {
		return ranges{}, false
	}
	reserved := binary.LittleEndian.Uint32(b[20:])
	if reserved == 0 || reserved > maxReserved {
		return ranges{}, false
	}
	v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte(b[24:28])), int(b[17]))
	v6 := netip.PrefixFrom(netip.AddrFrom16([16]byte(b[28:44])), int(b[18]))
	r, err := makeRanges(v4, v6, int(reserved))
	return r, err == nil
}

// entry is an entry as read.
type entry struct {
	kind byte
	slot uint32
	time uint32
	name []byte // of the reader's buffer
}

func appendEntry(b []byte, kind byte, slot, time uint32, name string) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, kind, byte(len(name)))
	b = binary.LittleEndian.AppendUint32(b, slot)
	b = binary.LittleEndian.AppendUint32(b, time)
	b = append(b, name...)
	binary.LittleEndian.PutUint32(b[start:], crc32.Checksum(b[start+4:], castagnoli))
	return b
}

// parseEntry returns the entry that b starts with and its length; 0 if there is
// no whole one.
func parseEntry(b []byte) (entry, int) {
	if len(b) < entryLen {
		return entry{}, 0
	}
	n := entryLen + int(b[5])
	if len(b) < n || crc32.Checksum(b[4:n], castagnoli) != binary.LittleEndian.Uint32(b) {
		return entry{}, 0
	}
	return entry{b[4], binary.LittleEndian.Uint32(b[6:]), binary.LittleEndian.Uint32(b[10:]), b[entryLen:n]}, n
}

// journal is what a file of leases says.
type journal struct {
	ranges
	leases *table // without order
	clock  uint32 // the latest time
	good   int64  // where the last entry ends
	lost   int64  // octets before that which are no entry, or one that cannot be
	tail   int64  // octets after that
}

var errNoJournal = errors.New("not a file of leases of this version")

// maxClock is 68 years.
const maxClock = 1 << 31

// maxLost is how much of a damaged file is looked through for the next entry.
const maxLost = 1 << 20

// readJournal reads a file of leases. What cannot be read is passed over: an end
// that is not whole is what a crash leaves of entries that nobody was told of,
// and anything else is damage. It returns errNoJournal where there is no header,
// and errors of the reader.
func readJournal(from io.Reader) (*journal, error) {
	r := bufio.NewReaderSize(from, 1<<16)
	b, err := r.Peek(headerLen)
	if err != nil && err != io.EOF {
		return nil, err
	}
	where, ok := readHeader(b)
	if !ok {
		return nil, errNoJournal
	}
	j := &journal{ranges: where, leases: newTable(maxMax), good: headerLen}
	r.Discard(headerLen)
	for {
		b, err := r.Peek(entryLen + maxName)
		switch {
		case err != nil && err != io.EOF:
			return nil, err
		case len(b) == 0:
			return j, nil
		}
		rec, n := parseEntry(b)
		if n > 0 && j.apply(rec) {
			j.good += j.tail + int64(n)
			j.lost += j.tail
			j.tail = 0
		} else if n = 1; j.lost+j.tail >= maxLost {
			rest, err := io.Copy(io.Discard, r)
			if err != nil {
				return nil, err
			}
			j.tail += rest
			return j, nil
		} else {
			j.tail++
		}
		r.Discard(n)
	}
}

// damaged reports whether more is wrong than that the end is missing.
func (j *journal) damaged() bool { return j.lost > 0 || j.tail >= maxLost }

// apply does what an entry says; false if it cannot be.
func (j *journal) apply(r entry) bool {
	i, at := j.leases.number(r.slot)
	switch {
	case r.time >= maxClock:
		return false
	case r.kind == entryClock:
	case !j.leasable(r.slot):
		return false
	case r.kind == entryLease:
		if at == nil || at.name != string(r.name) {
			if len(r.name) > 0 {
				if name, ok := canonical(string(r.name)); !ok || name != string(r.name) {
					return false
				}
			}
			if at != nil {
				j.leases.remove(i)
			}
			if l := j.leases.named(string(r.name)); l != nil {
				was, _ := j.leases.number(l.slot)
				j.leases.remove(was)
			}
			if j.leases.len() == maxMax {
				return false
			}
			at = &lease{name: string(r.name), slot: r.slot}
			j.leases.add(at)
		}
		at.hidden.Store(len(r.name) == 0)
		at.saved.Store(max(at.saved.Load(), r.time))
	case r.kind == entryUse && at != nil:
		at.saved.Store(max(at.saved.Load(), r.time))
	case r.kind == entryDrop && at != nil:
		at.hidden.Store(true)
		at.saved.Store(max(at.saved.Load(), r.time))
	case r.kind == entryEnd:
		if at != nil {
			j.leases.remove(i)
		}
	case r.kind != entryUse && r.kind != entryDrop:
		return false // of a later version
	}
	j.clock = max(j.clock, r.time)
	return true
}
