package socks

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

// Request is what a client asks a server for.
type Request struct {
	Command Command // any byte: the server answers [ReplyCommand] to what it does not do
	Addr    Addr    // its Name may be anything, an address literal and the empty string too
	User    string  // SOCKS4 only: what the client says, not yet confirmed by identd
}

// ReadVersion reads the first byte of a connection: [Version4], [Version5], or
// something that is not SOCKS ('G' for "GET /").
func ReadVersion(r io.Reader) (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

// ReadMethods reads the rest of a client's greeting, after [ReadVersion], and
// returns the methods that it offers in its order. There may be none.
func ReadMethods(r io.Reader) ([]Method, error) {
	var b [256]byte
	if err := readRest(r, b[:1]); err != nil {
		return nil, err
	}
	offer := b[1 : 1+int(b[0])]
	if err := readRest(r, offer); err != nil {
		return nil, err
	}
	methods := make([]Method, len(offer))
	for i, m := range offer {
		methods[i] = Method(m)
	}
	return methods, nil
}

// AppendMethod appends a server's choice of method.
func AppendMethod(b []byte, m Method) []byte {
	return append(b, Version5, byte(m))
}

// AppendNoMethod appends a server's refusal of all methods, after which it
// closes the connection.
func AppendNoMethod(b []byte) []byte {
	return AppendMethod(b, methodRefused)
}

// ReadUserPass reads a client's user and password, either of which may be "".
func ReadUserPass(r io.Reader) (user, password string, err error) {
	var b [1 + maxString]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return "", "", err
	}
	if err := checkVersion(b[0], versionAuth); err != nil {
		return "", "", err
	}
	for _, s := range []*string{&user, &password} {
		if err := readRest(r, b[:1]); err != nil {
			return "", "", err
		}
		text := b[1 : 1+int(b[0])]
		if err := readRest(r, text); err != nil {
			return "", "", err
		}
		*s = string(text)
	}
	return user, password, nil
}

// AppendAuthStatus appends a server's answer to user and password. After a
// refusal it closes the connection.
func AppendAuthStatus(b []byte, ok bool) []byte {
	if ok {
		return append(b, versionAuth, 0)
	}
	return append(b, versionAuth, 1)
}

// ReadRequest reads a SOCKS5 request. An error that As a [ReplyError] finds is
// the client's fault and has that answer.
func ReadRequest(r io.Reader) (Request, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Request{}, err
	}
	if err := checkVersion(b[0], Version5); err != nil {
		return Request{}, err
	}
	switch b[3] {
	case typeIPv4, typeName, typeIPv6:
	default:
		return Request{}, fmt.Errorf("%w: address type %d", ReplyAddressType, b[3])
	}
	a, err := readAddr(r, b[3])
	if err != nil {
		return Request{}, err
	}
	return Request{Command: Command(b[1]), Addr: a}, nil
}

// AppendReply appends a SOCKS5 reply. A bound address that is not valid is
// written as 0.0.0.0.
func AppendReply(b []byte, code ReplyError, bound netip.AddrPort) []byte {
	ip := bound.Addr().Unmap()
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified()
	}
	return appendIP(append(b, Version5, byte(code), 0), netip.AddrPortFrom(ip, bound.Port()))
}

// ReadRequest4 reads the rest of a SOCKS4 or SOCKS4a request, after
// [ReadVersion]. User and name may have 255 bytes each. It reads byte by byte
// where only a NUL says the end, so r should be buffered if the rest of the
// connection is read through the same buffer.
func ReadRequest4(r io.Reader) (Request, error) {
	var b [7]byte
	if err := readRest(r, b[:]); err != nil {
		return Request{}, err
	}
	req := Request{Command: Command(b[0]), Addr: Addr{
		IP:   netip.AddrFrom4([4]byte(b[3:])),
		Port: binary.BigEndian.Uint16(b[1:]),
	}}
	var err error
	if req.User, err = readNUL(r); err != nil {
		return Request{}, err
	}
	if marksName(req.Addr.IP) {
		req.Addr.IP = netip.Addr{}
		if req.Addr.Name, err = readNUL(r); err != nil {
			return Request{}, err
		}
	}
	return req, nil
}

// readNUL reads a string of at most maxString bytes and the NUL that ends it.
func readNUL(r io.Reader) (string, error) {
	var b [maxString + 1]byte
	for i := range b {
		if err := readRest(r, b[i:i+1]); err != nil {
			return "", err
		}
		if b[i] == 0 {
			return string(b[:i]), nil
		}
	}
	return "", fmt.Errorf("%w: a user or name of more than %d bytes", ErrProtocol, maxString)
}

// AppendReply4 appends a SOCKS4 reply. A bound address that is not IPv4 is
// written as 0.0.0.0.
func AppendReply4(b []byte, code ReplyError4, bound netip.AddrPort) []byte {
	b = append(b, version4Reply, byte(code))
	b = binary.BigEndian.AppendUint16(b, bound.Port())
	var ip [4]byte
	if a := bound.Addr().Unmap(); a.Is4() {
		ip = a.As4()
	}
	return append(b, ip[:]...)
}
