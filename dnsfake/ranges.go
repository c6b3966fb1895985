package dnsfake

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ranges are an IPv4 and an IPv6 range, and the places in them: a place is a
// number, and an address of each family at that offset.
type ranges struct {
	v4, v6   netip.Prefix // masked
	reserved int          // places at the start that are not leased
}

// makeRanges checks and masks them. Zero reserved means the default.
func makeRanges(v4, v6 netip.Prefix, reserved int) (ranges, error) {
	switch {
	case !v4.IsValid() || !v4.Addr().Is4():
		return ranges{}, fmt.Errorf("fake range %v is not an IPv4 prefix", v4)
	case !v6.IsValid() || !v6.Addr().Is6() || v6.Addr().Is4In6():
		return ranges{}, fmt.Errorf("fake range %v is not an IPv6 prefix", v6)
	}
	places4, places6 := places(v4), places(v6)
	if reserved == 0 {
		reserved = defaultReserved
		if min(places4, places6) < smallRange {
			reserved = deviceSlot + 1
		}
	}
	switch {
	case reserved <= deviceSlot || reserved > maxReserved:
		return ranges{}, fmt.Errorf("%d reserved addresses: must be %d (network, resolver, device) to %d", reserved, deviceSlot+1, maxReserved)
	case places4-1 <= uint64(reserved): // less the broadcast address
		return ranges{}, fmt.Errorf("fake range %v is too small: the first %d addresses are reserved, and the last one", v4, reserved)
	case places6 <= uint64(reserved):
		return ranges{}, fmt.Errorf("fake range %v is too small: the first %d addresses are reserved", v6, reserved)
	}
	return ranges{v4.Masked(), v6.Masked(), reserved}, nil
}

// places returns how many addresses of a prefix can be a place, which has 32
// bits: all of IPv4.
func places(p netip.Prefix) uint64 { return 1 << min(p.Addr().BitLen()-p.Bits(), 32) }

// limit returns the first place after those that may be leased.
func (r ranges) limit() uint64 { return min(places(r.v4)-1, places(r.v6)) }

// leasable reports whether a place may be leased.
func (r ranges) leasable(slot uint32) bool {
	return slot >= uint32(r.reserved) && uint64(slot) < r.limit()
}

// owns reports whether addr lies in one of the ranges.
func (r ranges) owns(addr netip.Addr) bool { return r.v4.Contains(addr) || r.v6.Contains(addr) }

// addr returns the address at slot.
func (r ranges) addr(slot uint32, v6 bool) netip.Addr {
	if v6 {
		b := r.v6.Addr().As16()
		orUint32(b[12:], slot)
		return netip.AddrFrom16(b)
	}
	b := r.v4.Addr().As4()
	orUint32(b[:], slot)
	return netip.AddrFrom4(b)
}

func orUint32(b []byte, v uint32) {
	binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)|v)
}

// slot returns the place of a fake address that may be leased.
func (r ranges) slot(addr netip.Addr) (uint32, bool) {
	addr = addr.Unmap()
	var slot uint32
	switch {
	case r.v4.Contains(addr):
		a, base := addr.As4(), r.v4.Addr().As4()
		slot = binary.BigEndian.Uint32(a[:]) - binary.BigEndian.Uint32(base[:])
	case r.v6.Contains(addr):
		a, base := addr.As16(), r.v6.Addr().As16()
		if [12]byte(a[:]) != [12]byte(base[:]) {
			return 0, false // no slot is that far into the range
		}
		slot = binary.BigEndian.Uint32(a[12:]) - binary.BigEndian.Uint32(base[12:])
	default:
		return 0, false
	}
	return slot, r.leasable(slot)
}
