package socks

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// The first byte of a message.
const (
	Version4 = 4
	Version5 = 5

	version4Reply = 0 // "VN is the version of the reply code and should be 0"
	versionAuth   = 1 // RFC 1929 §2: of the sub-negotiation, not of SOCKS
)

// Command is what a client asks for. SOCKS4 has the first two.
type Command byte

// The commands of RFC 1928 §4.
const (
	Connect      Command = 1
	Bind         Command = 2
	UDPAssociate Command = 3
)

// Method is a way to authenticate (RFC 1928 §3).
type Method byte

// The methods that a client can offer. methodRefused is the server's "none of
// these".
const (
	MethodNone     Method = 0
	MethodGSSAPI   Method = 1
	MethodUserPass Method = 2
	methodRefused  Method = 0xFF
)

// AppendMethods appends a client's greeting. It takes 1 to 255 methods and
// panics on any other number.
func AppendMethods(b []byte, offer ...Method) []byte {
	if len(offer) < 1 || len(offer) > 255 {
		panic(fmt.Sprintf("socks: a greeting offers 1 to 255 methods, not %d", len(offer)))
	}
	b = append(b, Version5, byte(len(offer)))
	for _, m := range offer {
		b = append(b, byte(m))
	}
	return b
}

// ReadMethod reads the server's choice among the methods that were offered.
// [ErrNoMethod] says that it wants none of them, [ErrProtocol] that it chose
// another; the connection is of no use then.
func ReadMethod(r io.Reader, offer ...Method) (Method, error) {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	if err := checkVersion(b[0], Version5); err != nil {
		return 0, err
	}
	m := Method(b[1])
	switch {
	case m == methodRefused:
		return 0, ErrNoMethod
	case !slices.Contains(offer, m):
		return 0, fmt.Errorf("%w: the server chose method %d, which was not offered", ErrProtocol, m)
	}
	return m, nil
}

// AppendUserPass appends a client's user and password (RFC 1929 §2), of at most
// 255 bytes each. The RFC wants at least one byte; an empty string is written
// all the same, because tor takes it.
func AppendUserPass(b []byte, user, password string) ([]byte, error) {
	if len(user) > maxString || len(password) > maxString {
		return b, fmt.Errorf("user or password longer than %d bytes", maxString)
	}
	b = append(b, versionAuth, byte(len(user)))
	b = append(b, user...)
	b = append(b, byte(len(password)))
	return append(b, password...), nil
}

// ReadAuthStatus reads the server's answer to user and password. Any status but
// 0 is an [ErrAuth], after which the server closes the connection.
//
// Its version is that of the sub-negotiation, 1. Many a server has 5 there and means
// the same, as microsocks did until 2018; clients take both for that reason
// (tinyproxy/tinyproxy#174, curl), and so does this.
func ReadAuthStatus(r io.Reader) error {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	if b[0] != Version5 {
		if err := checkVersion(b[0], versionAuth); err != nil {
			return err
		}
	}
	if b[1] != 0 {
		return fmt.Errorf("%w (status %d)", ErrAuth, b[1])
	}
	return nil
}

// AppendRequest appends a SOCKS5 request (RFC 1928 §4). On an error ([ErrName],
// [ErrNoAddr], [ErrZone]) there is nothing to send.
func AppendRequest(b []byte, cmd Command, a Addr) ([]byte, error) {
	return appendAddr(append(b, Version5, byte(cmd), 0), a)
}

// ReadReply reads a SOCKS5 reply and returns its address, BND. A refusal is a
// [ReplyError], whatever follows it; an EOF before the first byte is io.EOF and
// one within the message io.ErrUnexpectedEOF.
func ReadReply(r io.Reader) (Addr, error) {
	var b [4]byte
	n, err := io.ReadAtLeast(r, b[:], 2)
	if err != nil {
		return Addr{}, err
	}
	if err := checkVersion(b[0], Version5); err != nil {
		return Addr{}, err
	}
	if reply := ReplyError(b[1]); reply != ReplySucceeded {
		return Addr{}, reply
	}
	if err := readRest(r, b[n:]); err != nil {
		return Addr{}, err
	}
	return readAddr(r, b[3])
}

// AppendRequest4 appends a SOCKS4 request or, for a name, a SOCKS4a one. The
// user, which may be "", is what the server compares with what identd says; it
// is no secret. On an error ([ErrNoIPv6] and others) there is nothing to send.
func AppendRequest4(b []byte, cmd Command, a Addr, user string) ([]byte, error) {
	ip := a.IP.Unmap()
	if a.Name != "" {
		if err := checkName(a.Name); err != nil {
			return b, err
		}
		ip = netip.AddrFrom4([4]byte{3: 1}) // 0.0.0.1: "the name follows"
	} else {
		switch {
		case !ip.IsValid():
			return b, ErrNoAddr
		case !ip.Is4():
			return b, ErrNoIPv6
		case marksName(ip):
			return b, ErrNotIPv4
		}
	}
	if len(user) > maxString || strings.IndexByte(user, 0) >= 0 {
		return b, fmt.Errorf("a SOCKS4 user has at most %d bytes and no NUL", maxString)
	}
	b = append(b, Version4, byte(cmd))
	b = binary.BigEndian.AppendUint16(b, a.Port)
	ip4 := ip.As4()
	b = append(b, ip4[:]...)
	b = append(append(b, user...), 0)
	if a.Name != "" {
		b = append(append(b, a.Name...), 0)
	}
	return b, nil
}

// marksName says whether an address is one of those that SOCKS4a uses to say
// that a name follows: 0.0.0.x, x not 0.
func marksName(ip netip.Addr) bool {
	b := ip.As4()
	return b[0] == 0 && b[1] == 0 && b[2] == 0 && b[3] != 0
}

// ReadReply4 reads a SOCKS4 reply and returns its address, which means something
// for [Bind] only. A refusal is a [ReplyError4], whatever follows it; EOFs are
// as [ReadReply] has them.
func ReadReply4(r io.Reader) (netip.AddrPort, error) {
	var b [8]byte
	n, err := io.ReadAtLeast(r, b[:], 2)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if err := checkVersion(b[0], version4Reply); err != nil {
		return netip.AddrPort{}, err
	}
	if reply := ReplyError4(b[1]); reply != Reply4Granted {
		return netip.AddrPort{}, reply
	}
	if err := readRest(r, b[n:]); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[2:])), nil
}
