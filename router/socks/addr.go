package socks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
)

// Addr is an address as a SOCKS message carries it: a name or an IP address, and
// a port. It is comparable.
type Addr struct {
	Name string     // where it is not "", the address is this name and IP is not looked at
	IP   netip.Addr // never 4-in-6 when it comes from a Read function
	Port uint16
}

// String returns host:port.
func (a Addr) String() string {
	host := a.Name
	if host == "" && a.IP.IsValid() {
		host = a.IP.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(a.Port)))
}

// The address types of RFC 1928 §5.
const (
	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4
)

// maxString is the longest name, user or password: one length octet.
const maxString = 255

// Reasons for which a message is not written.
var (
	ErrName    = errors.New("a name in a SOCKS message has 1 to 255 bytes, no space and no control character")
	ErrNoAddr  = errors.New("neither a name nor an address")
	ErrZone    = errors.New("an address with a zone means nothing to another machine")
	ErrNoIPv6  = errors.New("SOCKS4 carries no IPv6 address")
	ErrNotIPv4 = errors.New("SOCKS4 reads 0.0.0.1 to 0.0.0.255 as the mark of a name")
)

// checkName refuses what no server may be sent.
func checkName(name string) error {
	if name == "" || len(name) > maxString {
		return ErrName
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f {
			return ErrName
		}
	}
	return nil
}

// appendAddr appends ATYP, address and port (RFC 1928 §5). It does not allocate
// if b has room.
func appendAddr(b []byte, a Addr) ([]byte, error) {
	if a.Name != "" {
		if err := checkName(a.Name); err != nil {
			return b, err
		}
		b = append(b, typeName, byte(len(a.Name)))
		b = append(b, a.Name...)
		return binary.BigEndian.AppendUint16(b, a.Port), nil
	}
	ip := a.IP.Unmap()
	switch {
	case !ip.IsValid():
		return b, ErrNoAddr
	case ip.Zone() != "":
		return b, ErrZone
	}
	return appendIP(b, netip.AddrPortFrom(ip, a.Port)), nil
}

// appendIP appends ATYP, address and port of an address that is valid and not
// 4-in-6.
func appendIP(b []byte, ap netip.AddrPort) []byte {
	if ap.Addr().Is4() {
		ip := ap.Addr().As4()
		b = append(append(b, typeIPv4), ip[:]...)
	} else {
		ip := ap.Addr().As16()
		b = append(append(b, typeIPv6), ip[:]...)
	}
	return binary.BigEndian.AppendUint16(b, ap.Port())
}

// readAddr reads what appendAddr appends, from the byte after ATYP on.
//
// It takes an empty name and odd bytes in a name: danted sends back what it was
// asked for.
func readAddr(r io.Reader, typ byte) (Addr, error) {
	var buf [maxString + 2]byte
	n := 0
	switch typ {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		if err := readRest(r, buf[:1]); err != nil {
			return Addr{}, err
		}
		n = int(buf[0])
	default:
		return Addr{}, fmt.Errorf("%w: address type %d", ErrProtocol, typ)
	}
	b := buf[:n+2]
	if err := readRest(r, b); err != nil {
		return Addr{}, err
	}
	a := Addr{Port: binary.BigEndian.Uint16(b[n:])}
	if typ == typeName {
		a.Name = string(b[:n])
	} else {
		ip, _ := netip.AddrFromSlice(b[:n])
		a.IP = ip.Unmap()
	}
	return a, nil
}

// readRest fills b with the next bytes of a message that has begun, so that an
// EOF in it is unexpected.
func readRest(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// checkVersion returns an error unless got is want.
func checkVersion(got, want byte) error {
	if got != want {
		return fmt.Errorf("%w: version %d where %d belongs", ErrProtocol, got, want)
	}
	return nil
}
