package socks

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// MaxUDPHeader is the length of the longest UDP header: RSV, FRAG, ATYP, a
// length octet, 255 bytes of name, a port.
const MaxUDPHeader = 2 + 1 + 1 + 1 + maxString + 2

// ErrUDPHeader says that a datagram does not begin with a SOCKS5 UDP header.
var ErrUDPHeader = errors.New("no SOCKS5 UDP header")

// UDPHeader is what stands before the payload of a relayed datagram (RFC 1928
// §7): where it goes to, or where it comes from.
type UDPHeader struct {
	Frag byte           // 0, or the datagram is a fragment: drop it unless you put fragments together
	Name []byte         // a part of the datagram; nil where the header has an address
	Addr netip.AddrPort // never 4-in-6; with a Name the port only, and an address that is not valid
}

// AppendUDPHeader appends the header of a datagram to or from a; the payload
// follows it. It does not allocate if b has room for [MaxUDPHeader] bytes. The
// errors are those of [AppendRequest].
func AppendUDPHeader(b []byte, a Addr) ([]byte, error) {
	return appendAddr(append(b, 0, 0, 0), a)
}

// ParseUDP splits a datagram into header and payload, which is a part of p. It
// does not allocate, whatever p holds: the only error is [ErrUDPHeader].
//
// RSV is not looked at, and a name may be empty, as in [ReadReply].
func ParseUDP(p []byte) (h UDPHeader, payload []byte, err error) {
	if len(p) < 5 {
		return h, nil, ErrUDPHeader
	}
	h.Frag = p[2]
	typ, rest := p[3], p[4:]
	n := 0
	switch typ {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		n, rest = int(rest[0]), rest[1:]
	default:
		return UDPHeader{}, nil, ErrUDPHeader
	}
	if len(rest) < n+2 {
		return UDPHeader{}, nil, ErrUDPHeader
	}
	var ip netip.Addr
	switch typ {
	case typeIPv4:
		ip = netip.AddrFrom4([4]byte(rest))
	case typeIPv6:
		ip = netip.AddrFrom16([16]byte(rest)).Unmap()
	case typeName:
		h.Name = rest[:n:n]
	}
	h.Addr = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(rest[n:]))
	return h, rest[n+2:], nil
}
