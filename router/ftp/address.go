package ftp

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parse returns the address in the arguments of PORT or EPRT.
func parse(command, args string) (netip.AddrPort, error) {
	args = strings.Trim(args, " \t")
	ap, ok := netip.AddrPort{}, false
	if command == "PORT" {
		ap, ok = parsePORT(args)
	} else {
		ap, ok = parseEPRT(args)
	}
	if !ok {
		return ap, ErrSyntax
	}
	return ap, nil
}

// parsePORT reads h1,h2,h3,h4,p1,p2 (RFC 959 §4.1.2).
func parsePORT(s string) (netip.AddrPort, bool) {
	parts := strings.Split(s, ",")
	if len(parts) != 6 {
		return netip.AddrPort{}, false
	}
	var b [6]byte
	for i, part := range parts {
		n, ok := number(part, 255)
		if !ok {
			return netip.AddrPort{}, false
		}
		b[i] = byte(n)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5])), true
}

// parseEPRT reads |1|h1.h2.h3.h4|port| and |2|IPv6|port| (RFC 2428 §2), in which any
// printable character may stand for the bar.
func parseEPRT(s string) (netip.AddrPort, bool) {
	if s == "" || s[0] <= ' ' || s[0] >= 0x7f {
		return netip.AddrPort{}, false
	}
	parts := strings.Split(s, s[:1])
	if len(parts) != 5 || parts[4] != "" {
		return netip.AddrPort{}, false
	}
	a, err := netip.ParseAddr(parts[2])
	port, ok := number(parts[3], 65535)
	if err != nil || !ok || a.Zone() != "" || parts[1] != family(a) {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), true
}

// family is the number of an address's family (RFC 2428 §2).
func family(a netip.Addr) string {
	if a.Is4() {
		return "1"
	}
	return "2"
}

// number reads decimal digits, of which there are few.
func number(s string, most int) (int, bool) {
	if len(s) > 5 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= most
}

// appendCommand appends the command by which the server is told of an address instead
// of at, of which the client has told it by command. It has no line end.
func appendCommand(b []byte, command string, at, instead netip.AddrPort) []byte {
	a, port := instead.Addr().Unmap(), instead.Port()
	if a.Is4() && (command == "PORT" || at.Addr().Is6()) {
		h := a.As4()
		return fmt.Appendf(b, "PORT %d,%d,%d,%d,%d,%d", h[0], h[1], h[2], h[3], port>>8, port&0xff)
	}
	return fmt.Appendf(b, "EPRT |%s|%s|%d|", family(a), a.WithZone(""), port)
}
