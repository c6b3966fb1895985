package flow

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Network is the transport of a flow.
type Network uint8

// The transports that a flow can have. The zero Network is neither.
const (
	TCP Network = iota + 1
	UDP
)

// String returns "tcp", "udp" or, for anything else, "network(N)".
func (n Network) String() string {
	switch n {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("network(%d)", uint8(n))
}

// Command is what a client asks for.
type Command uint8

// The commands. The zero Command is the one that the network of the flow says:
// Connect for TCP, Associate for UDP.
const (
	Connect   Command = iota + 1
	Bind              // to be connected to
	Associate         // to exchange datagrams
)

// String returns "connect", "bind", "udp" or, for anything else, "command(N)".
func (c Command) String() string {
	switch c {
	case Connect:
		return "connect"
	case Bind:
		return "bind"
	case Associate:
		return "udp"
	}
	return fmt.Sprintf("command(%d)", uint8(c))
}

// Tun is the Inbound of what comes from the TUN.
const Tun = "tun"

// Flow is one TCP connection or one UDP conversation, as the rules see it.
type Flow struct {
	Network Network
	Command Command        // see [Flow.Asks]
	Source  netip.AddrPort // who opened it; not valid for a client on a unix socket
	Inbound string         // where it came in: [Tun], or the name of a listener
	Target  Target         // where it wants to go; for a Bind, who may connect

	// Whose it is, where the inbound asks that, and the groups that the user is
	// in; whoever holds a Flow must not change them.
	User   string
	Groups []string
}

// Asks returns the flow's command.
func (f *Flow) Asks() Command {
	switch {
	case f.Command != 0:
		return f.Command
	case f.Network == UDP:
		return Associate
	}
	return Connect
}

// Target is a name, an address or both, and a port.
//
// A fake address is never a Target: whoever makes the Target replaces it by the
// name behind it. Target is comparable.
type Target struct {
	Name string     // canonical (see [CanonicalName]), never an address literal; "" where only the address is known
	Addr netip.Addr // unmapped (4-in-6 becomes 4); the zero Addr where only the name is known
	Port uint16
}

// AddrTarget returns the Target of an address and a port.
func AddrTarget(ap netip.AddrPort) Target {
	return Target{Addr: ap.Addr().Unmap(), Port: ap.Port()}
}

// NewTarget returns the Target of a host and a port. A host that is an address
// literal, bracketed or not, becomes an address: a rule about addresses must
// not be passed by writing the address as a name. For the same reason one that only
// some programs read as an address is [ErrNumber].
func NewTarget(host string, port uint16) (Target, error) {
	if a, err := parseLiteral(host); err == nil {
		return Target{Addr: a.Unmap(), Port: port}, nil
	}
	name, err := CanonicalName(host)
	if err != nil {
		return Target{}, err
	}
	// "10.0.0.20." is the address to whoever connects to it in the end.
	if a, err := parseLiteral(name); err == nil {
		return Target{Addr: a.Unmap(), Port: port}, nil
	}
	if EndsInNumber(name) {
		return Target{}, ErrNumber
	}
	return Target{Name: name, Port: port}, nil
}

// EndsInNumber says that the last label of a canonical name is a number. Whoever connects
// by inet_aton(3) reads such a name as an IPv4 address ("10.1", "0x0a000001",
// "2130706433"), so that it would pass by a rule about addresses; WHATWG's URLs have the
// same test. No top-level domain is a number (RFC 3696 §2): no real name is lost.
func EndsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// parseLiteral parses an address, in brackets or without.
func parseLiteral(host string) (netip.Addr, error) {
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	return netip.ParseAddr(host)
}

// ParseTarget parses host:port, where port is a number.
func ParseTarget(hostport string) (Target, error) {
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return Target{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return Target{}, fmt.Errorf("port %q is not a number from 0 to 65535", service)
	}
	return NewTarget(host, uint16(port))
}

// Host returns the name, or the address where there is no name.
func (t Target) Host() string {
	if t.Name != "" {
		return t.Name
	}
	return t.Addr.String()
}

// String returns host:port, the host as [Target.Host] has it.
func (t Target) String() string {
	return net.JoinHostPort(t.Host(), strconv.Itoa(int(t.Port)))
}

// AddrPort returns the address and the port; it is not valid where only the
// name is known.
func (t Target) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(t.Addr, t.Port)
}

// MaxName is the longest name that a SOCKS request can carry (RFC 1928 §5: one
// length octet). A DNS name in text form has at most 253 octets.
const MaxName = 255

// Reasons for which a name is not taken.
var (
	ErrEmptyName = errors.New("empty name")
	ErrLongName  = errors.New("name longer than 255 bytes")
	ErrBadName   = errors.New("name with a space or control character")
	ErrBadLabel  = errors.New("name with nothing between two dots")
	ErrNumber    = errors.New("name that ends in a number, as only addresses do")
)

// CanonicalName returns name in lower case and without the one trailing dot
// that a fully qualified name may have. Letters beyond ASCII stay as they are.
//
// It refuses what no server may be sent: an empty name or label, a name over
// [MaxName] bytes, and one with a space, a control character or NUL (servers written in C
// cut a name at the NUL and connect to what is left).
func CanonicalName(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	switch {
	case name == "":
		return "", ErrEmptyName
	case len(name) > MaxName:
		return "", ErrLongName
	case name[0] == '.', name[len(name)-1] == '.', strings.Contains(name, ".."):
		return "", ErrBadLabel
	}
	lower := true
	for i := range len(name) {
		c := name[i]
		if c <= ' ' || c == 0x7f {
			return "", ErrBadName
		}
		if 'A' <= c && c <= 'Z' {
			lower = false
		}
	}
	if lower {
		return name, nil
	}
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b), nil
}
