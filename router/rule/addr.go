package rule

import (
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// ParseFrom parses one entry of a rule's From: an address or a prefix. Every
// error is a [*ParseError].
func ParseFrom(s string) (netip.Prefix, error) {
	p, ok, err := parseAddresses(s)
	if ok {
		return p, err
	}
	hint := "write an address or a prefix, as in 10.0.0.0/8"
	if s == "." || s == "*" || s == "any" || s == "all" {
		hint = "a rule without from matches every source"
	}
	return netip.Prefix{}, parseError(s, "is neither an address nor a prefix", hint)
}

// parseAddresses parses an address or a prefix. If s cannot have been meant as
// either, ok is false; otherwise err says whether it is one.
func parseAddresses(s string) (p netip.Prefix, ok bool, err error) {
	host, length, isPrefix := strings.Cut(s, "/")
	addr, addrErr := netip.ParseAddr(unbracket(host))
	if addrErr != nil {
		if !isPrefix {
			return netip.Prefix{}, false, nil
		}
		return netip.Prefix{}, looksNumeric(host), parseError(s, "is not a prefix", shortPrefix(host, length))
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, true, parseError(s, "names a zone, which rules do not know", "write "+addr.WithZone("").String())
	}
	if !isPrefix {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true, nil
	}
	n, err := strconv.ParseUint(length, 10, 8)
	if err != nil || length[0] == '0' && length != "0" {
		return netip.Prefix{}, true, parseError(s, "is not a prefix: after the slash comes a number of bits", maskHint(addr, length))
	}
	if int(n) > addr.BitLen() {
		return netip.Prefix{}, true, parseError(s, fmt.Sprintf("is not a prefix: such an address has %d bits", addr.BitLen()), fmt.Sprintf("write a length from 0 to %d", addr.BitLen()))
	}
	if addr.Is4In6() {
		// Flows carry IPv4 addresses as such.
		if n < 96 {
			return netip.Prefix{}, true, parseError(s, "is wider than the IPv4 addresses that it is written for", "0.0.0.0/0 is every IPv4 address")
		}
		addr, n = addr.Unmap(), n-96
	}
	p = netip.PrefixFrom(addr, int(n))
	if p != p.Masked() {
		return netip.Prefix{}, true, parseError(s, fmt.Sprintf("has bits set behind the first %d", n), fmt.Sprintf("write %s for the network or %s for the address", p.Masked(), addr))
	}
	return p, true, nil
}

// prefixString writes a prefix that is one address as that address.
func prefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// unbracket takes the brackets off an IPv6 literal.
func unbracket(s string) string {
	if len(s) > 2 && s[0] == '[' && s[len(s)-1] == ']' && strings.Contains(s, ":") {
		return s[1 : len(s)-1]
	}
	return s
}

const fullPrefix = "write an address, a slash and a number of bits, as in 10.0.0.0/8"

// looksNumeric tells whether the part before a slash was meant as an address.
func looksNumeric(s string) bool {
	return s != "" && strings.Trim(s, "0123456789.") == "" || strings.Contains(s, ":")
}

// shortPrefix returns the hint for a prefix whose last octets were left out
// ("10/8", "192.168/16").
func shortPrefix(host, length string) string {
	octets := strings.Split(host, ".")
	if len(octets) >= 4 || !looksNumeric(host) || strings.Contains(host, ":") {
		return fullPrefix
	}
	for len(octets) < 4 {
		octets = append(octets, "0")
	}
	p, err := netip.ParsePrefix(strings.Join(octets, ".") + "/" + length)
	if err != nil {
		return fullPrefix
	}
	return "write " + p.Masked().String()
}

// maskHint returns the hint for a prefix with a netmask behind the slash
// (10.0.0.0/255.0.0.0).
func maskHint(addr netip.Addr, mask string) string {
	m, err := netip.ParseAddr(mask)
	if err != nil || !m.Is4() || !addr.Is4() {
		return fullPrefix
	}
	var v uint32
	for _, octet := range m.As4() {
		v = v<<8 | uint32(octet)
	}
	n := bits.LeadingZeros32(^v)
	if v<<n != 0 {
		return fullPrefix // not ones and then zeros
	}
	return "write " + netip.PrefixFrom(addr, n).Masked().String()
}
