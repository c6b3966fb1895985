package dnsfake

import (
	"net/netip"
	"strings"
)

// maxName is the longest name in text form: 255 octets on the wire (RFC 1035
// §2.3.4) less the first length octet and the root.
const maxName = 253

// plainByte reports whether c may stand in a label of a name that is leased.
// Control characters, space and NUL are what no server may be sent (one written
// in C cuts the name there); a dot or backslash inside a label would read as
// another name. Octets beyond ASCII pass, as they do in the rules.
func plainByte(c byte) bool {
	return c > ' ' && c != 0x7f && c != '.' && c != '\\'
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// canonical returns name in lower case and without the trailing dot, and whether
// it may be leased.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxName {
		return "", false
	}
	same := true
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
			continue
		case !plainByte(c):
			return "", false
		case c != lower(c):
			same = false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	if label == 0 || isAddress(name) {
		return "", false
	}
	if same {
		return name, true
	}
	b := []byte(name)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b), true
}

// isAddress reports whether a name in lower case would be read as an address by
// somebody: an IPv6 address has a colon, and everything that inet_aton takes for
// IPv4 ("10.1", "0x7f.1", "2130706433") ends in a number. No top-level domain is
// one (RFC 3696 §2), so no real name is lost.
func isAddress(name string) bool {
	if strings.IndexByte(name, ':') >= 0 {
		return true
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}

// under reports whether name is domain or below it; both are in lower case.
func under(name, domain string) bool {
	rest, ok := strings.CutSuffix(name, domain)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}

// reverseAddr returns the address that a reverse name in lower case stands for
// (RFC 1035 §3.5, RFC 3596 §2.5). A part of one stands for none.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		var b [4]byte
		for i := 3; i >= 0; i-- {
			label, more, found := strings.Cut(rest, ".")
			if found != (i > 0) || len(label) == 0 || len(label) > 3 || label[0] == '0' && len(label) > 1 {
				return netip.Addr{}, false
			}
			n := 0
			for _, c := range []byte(label) {
				if c < '0' || c > '9' {
					return netip.Addr{}, false
				}
				n = 10*n + int(c-'0')
			}
			if n > 255 {
				return netip.Addr{}, false
			}
			b[i], rest = byte(n), more
		}
		return netip.AddrFrom4(b), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 { // 32 digits and the dots between
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		if i > 0 && rest[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		n := strings.IndexByte("0123456789abcdef", rest[2*i])
		if n < 0 {
			return netip.Addr{}, false
		}
		// The first digit is the lower half of the last octet.
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

// QuestionName returns the name that a message with one question asks for, in lower
// case and without trailing dot; "." is the root. It is "" where there is none.
func QuestionName(msg []byte) string {
	q := new(query)
	if q.parse(msg) == ignore || q.question == nil {
		return ""
	}
	return q.name
}
