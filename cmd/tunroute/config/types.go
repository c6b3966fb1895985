package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// enum is the texts of a type with few values; the value is the index.
type enum []string

// parse returns the value of a text, or -1 and a hint.
func (e enum) parse(s string) (int, string) {
	for i, text := range e {
		if text != "" && strings.EqualFold(s, text) {
			return i, ""
		}
	}
	var known []string
	for _, text := range e {
		if text != "" {
			known = append(known, text)
		}
	}
	return -1, didYouMean(s, known)
}

func (e enum) text(i int) string {
	if i < 0 || i >= len(e) {
		return fmt.Sprintf("invalid (%d)", i)
	}
	return e[i]
}

// Scheme is how an upstream is spoken to.
type Scheme uint8

// The schemes. The zero Scheme is none.
const (
	Socks4  Scheme = iota + 1
	Socks4a        // SOCKS4 with names
	Socks5         // with addresses: names are resolved here
	Socks5h        // SOCKS5 with names
	HTTP           // CONNECT, with names
	Direct         // no server: out of this machine
)

var schemes = enum{"", "socks4", "socks4a", "socks5", "socks5h", "http", "direct"}

// String returns the scheme as URLs have it.
func (s Scheme) String() string { return schemes.text(int(s)) }

// TakesNames tells whether names are sent to the server.
func (s Scheme) TakesNames() bool { return s == Socks4a || s == Socks5h || s == HTTP }

// Transport is what an upstream is spoken to over.
type Transport uint8

// The transports.
const (
	TCP  Transport = iota
	TLS            // over TCP
	Unix           // a socket of this machine
)

var transports = enum{"", "tls", "unix"}

// Protection is how what goes to a server by GSSAPI is protected.
type Protection uint8

// The protections. The zero Protection is none that was chosen.
const (
	Bare Protection = iota + 1
	Integrity
	Confidentiality
)

var protections = enum{"", "none", "integrity", "confidentiality"}

// String returns the protection as the config has it.
func (p Protection) String() string { return protections.text(int(p)) }

// MarshalText returns what String does.
func (p Protection) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Compatibility is what another implementation does in its own way, as Dante names it.
type Compatibility uint8

// The ways of others. The zero Compatibility is by the RFC.
const (
	NECGSSAPI Compatibility = iota + 1
)

var compatibilities = enum{"", "necgssapi"}

// String returns the way as the config has it.
func (c Compatibility) String() string { return compatibilities.text(int(c)) }

// MarshalText returns what String does.
func (c Compatibility) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Mode is where a name is resolved.
type Mode uint8

// The modes of names.
const (
	Remote          Mode = iota // at the far end; the program gets a fake address
	Local                       // here; the program gets the true address
	LocalThenRemote             // here, and where that fails at the far end
)

var modes = enum{"remote", "local", "local-then-remote"}

// String returns the mode as the config has it.
func (m Mode) String() string { return modes.text(int(m)) }

// MarshalText returns what String does.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Proto is a [flow.Network] as the config writes it.
type Proto flow.Network

var protos = enum{"", "tcp", "udp"}

// String returns "tcp" or "udp".
func (p Proto) String() string { return flow.Network(p).String() }

// MarshalText returns what String does.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// ListenAt is where a listener is: an address and port, or the path of a socket.
type ListenAt struct {
	Addr netip.AddrPort // where Path is ""
	Path string
}

// unixPrefix is what the path of a socket begins with in a config.
const unixPrefix = "unix:"

// String returns the place as the config has it.
func (a ListenAt) String() string {
	if a.Path != "" {
		return unixPrefix + a.Path
	}
	return a.Addr.String()
}

// MarshalText returns what String does.
func (a ListenAt) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Auth is how a client says who it is: one of ours, or we to an upstream.
type Auth uint8

// The ways.
const (
	AuthNone Auth = iota
	AuthPassword
	AuthGSSAPI // RFC 1961, with Kerberos
	AuthIdent  // of clients only
)

var auths = enum{"none", "password", "gssapi", "ident"}

// String returns the way as the config has it.
func (a Auth) String() string { return auths.text(int(a)) }

// MarshalText returns what String does.
func (a Auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// FileMode is the mode of a file.
type FileMode uint32

// String returns the mode as the config has it.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText returns what String does.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Command is a [flow.Command] as the config writes it.
type Command flow.Command

var commands = enum{"", "connect", "bind", "udp"}

// String returns "connect", "bind" or "udp".
func (c Command) String() string { return flow.Command(c).String() }

// MarshalText returns what String does.
func (c Command) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Helper is a [rule.Helper] as the config writes it.
type Helper rule.Helper

var helpers = enum{"", "ftp"}

// String returns "ftp".
func (h Helper) String() string { return rule.Helper(h).String() }

// MarshalText returns what String does.
func (h Helper) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Format is how a message is logged.
type Format uint8

// The formats.
const (
	Text Format = iota
	JSON
)

var formats = enum{"text", "json"}

// String returns "text" or "json".
func (f Format) String() string { return formats.text(int(f)) }

// MarshalText returns what String does.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// Level is a [slog.Level] as the config writes it.
type Level slog.Level

var (
	levels      = enum{"error", "warn", "info", "debug"}
	levelValues = [...]slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelDebug}
)

// String returns "error", "warn", "info" or "debug".
func (l Level) String() string { return levels.text(slices.Index(levelValues[:], slog.Level(l))) }

// MarshalText returns what String does.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Mark is a firewall mark: the bits of a packet or socket within Mask.
type Mark struct{ Value, Mask uint32 }

// String returns the mark as the config has it: "0x10/0xf0", or "0x10" where the
// mask is full.
func (m Mark) String() string {
	if m.Mask == ^uint32(0) {
		return fmt.Sprintf("%#x", m.Value)
	}
	return fmt.Sprintf("%#x/%#x", m.Value, m.Mask)
}

// MarshalText returns what String does.
func (m Mark) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// Strategy is how one of several resolvers is chosen.
type Strategy uint8

// The strategies.
const (
	Failover Strategy = iota
	Race
)

var strategies = enum{"failover", "race"}

// String returns the strategy as the config has it.
func (s Strategy) String() string { return strategies.text(int(s)) }

// MarshalText returns what String does.
func (s Strategy) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Policy is how a group chooses.
type Policy uint8

// The policies, as package group has them.
const (
	Fallback Policy = iota
	Random
	RoundRobin
	LeastFlows
	Hash
	Fastest
)

var policies = enum{"fallback", "random", "round-robin", "least-flows", "hash", "fastest"}

// String returns the policy as the config has it.
func (p Policy) String() string { return policies.text(int(p)) }

// MarshalText returns what String does.
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// HashBy is what the policy hash goes by.
type HashBy uint8

// What it can go by.
const (
	BySource HashBy = iota
	ByTarget
)

var hashBys = enum{"source", "target"}

// String returns "source" or "target".
func (b HashBy) String() string { return hashBys.text(int(b)) }

// Probe is how the members of a group are probed.
type Probe struct {
	ConnectOnly bool
	Target      flow.Target // if not zero, what a member has to reach
}

// String returns the probe as the config has it.
func (p Probe) String() string {
	switch {
	case p.Target != flow.Target{}:
		return p.Target.String()
	case p.ConnectOnly:
		return "connect"
	}
	return "negotiate"
}

// Weights are those of the members of a group, by name.
type Weights map[string]int

// Endpoint is an address and a port of this machine.
type Endpoint netip.AddrPort

// String returns ADDRESS:PORT.
func (e Endpoint) String() string { return netip.AddrPort(e).String() }

// MarshalText returns what String does.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// HTTPS is what is said of HTTPS and SVCB records.
type HTTPS uint8

// What can be said.
const (
	Fetch HTTPS = iota
	NoData
)

var httpses = enum{"fetch", "nodata"}

// String returns "fetch" or "nodata".
func (h HTTPS) String() string { return httpses.text(int(h)) }

// MarshalText returns what String does.
func (h HTTPS) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// ECH is what is done with keys for an encrypted ClientHello.
type ECH uint8

// What can be done.
const (
	Keep ECH = iota
	Strip
)

var echs = enum{"keep", "strip"}

// String returns "keep" or "strip".
func (e ECH) String() string { return echs.text(int(e)) }

// MarshalText returns what String does.
func (e ECH) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// Rejected is what a rejected name gets.
type Rejected uint8

// What it can get.
const (
	Lease Rejected = iota
	NXDomain
)

var rejecteds = enum{"lease", "nxdomain"}

// String returns "lease" or "nxdomain".
func (r Rejected) String() string { return rejecteds.text(int(r)) }

// MarshalText returns what String does.
func (r Rejected) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Answer is which addresses a name gets.
type Answer uint8

// The answers.
const (
	Fake Answer = iota
	Real
)

var answers = enum{"fake", "real"}

// String returns "fake" or "real".
func (a Answer) String() string { return answers.text(int(a)) }

// MarshalText returns what String does.
func (a Answer) MarshalText() ([]byte, error) { return []byte(a.String()), nil }
