package config

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

func (r *Rule) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	d.fields(n, reflect.ValueOf(r).Elem(), "a rule")
	r.Line, r.at = n.Line, at(n)
	r.atVia, r.atTo, r.atInbound = at(valueAt(n, "via")), at(valueAt(n, "to")), at(valueAt(n, "inbound"))
	r.atLimits, r.atBandwidth = at(valueAt(n, "limits")), at(valueAt(n, "bandwidth"))
	if len(d.errs) > before {
		return
	}
	if r.Via == "" {
		d.errorf(n, "write via: direct, reject, drop or the name of an upstream", "a rule without via")
	}
	// A list that is there and empty was filled by somebody's script from
	// nothing: to match everything then is the last thing that was meant.
	for _, key := range []string{"from", "to", "port", "proto", "command", "inbound", "user", "group"} {
		if v := valueAt(n, key); v != n && v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
			d.errorf(v, "leave the key out to match everything", "%s is an empty list", key)
		}
	}
	if v := valueAt(n, "log"); v != n && len(r.Log) == 0 {
		d.errorf(v, "write none to log nothing", "log is an empty list")
	}
	if len(r.Log) > 1 && slices.Contains(r.Log, LogNone) {
		d.errorf(valueAt(n, "log"), "write none alone, or leave it out", "log has none and something")
	}
}

func (m *Names) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(m).Elem(), "names")
	if n.Kind != yaml.MappingNode {
		return
	}
	m.atDefault, m.atLocalThenRemote = at(valueAt(n, "default")), at(valueAt(n, "local-then-remote"))
	type entry struct {
		key  string
		line int
	}
	seen := make(map[rule.Dest]entry)
	for _, key := range modes {
		list := valueAt(n, key)
		items := list.Content
		switch list.Kind {
		case yaml.MappingNode:
			continue // no such key: valueAt returned n
		case yaml.ScalarNode:
			items = []*yaml.Node{list}
		}
		for _, item := range items {
			item = follow(item)
			dest, err := rule.ParseDest(item.Value)
			if err != nil {
				continue // said already
			}
			first := seen[dest]
			switch {
			case dest.Kind == rule.EveryName:
				d.errorf(item, "write default: "+key, `"." is every name, which default is for`)
			case dest.Kind == rule.Addresses:
				d.errorf(item, "leave it out", "%q is an address, and only names have a mode", item.Value)
			case dest.Kind == rule.NamePattern:
				d.errorf(item, "write .example.org for everything below example.org", `%q has a "*", which only rules take`, item.Value)
			case first.key == key:
				d.errorf(item, "leave one of them out", "%q is in the list twice", item.Value)
			case first.key != "":
				d.errorf(item, "a name has one mode", "%q is in the list %s too (line %d)", item.Value, first.key, first.line)
			default:
				seen[dest] = entry{key, item.Line}
			}
		}
	}
}

func (t *TUN) decodeNode(d *decoder, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		if n.Value == "off" {
			t.Off, t.atOff = true, at(n)
			return
		}
		d.errorf(n, "write off for no interface, or its keys below it", "tun cannot be %q", short(n.Value))
		return
	}
	d.fields(n, reflect.ValueOf(t).Elem(), "tun")
	t.atExclude = at(valueAt(n, "exclude"))
	d.checkRange(n, "mtu", t.MTU, 1280, 65535) // RFC 8200 §5: IPv6 needs 1280
	d.checkRange(n, "queues", t.Queues, 1, 16) // as many as package tun takes
	if msg := badInterface(t.Name); msg != "" {
		d.errorf(valueAt(n, "name"), "write a short word, as in tunroute0", "name %s", msg)
	}
	switch t.Table {
	case 0, 253, 254, 255: // unspec, default, main, local
		d.errorf(valueAt(n, "table"), "choose another number, as in 1080", "table %d is one of the kernel's own", t.Table)
	}
	routed := make(map[string]bool)
	for _, p := range t.Routes {
		routed[p.String()] = true
	}
	for _, p := range t.Exclude {
		if routed[p.String()] {
			d.errorf(valueAt(n, "exclude"), "leave it out of one of them", "%s is in routes and in exclude", p)
		}
	}
}

// badInterface says why a text cannot be the name of a new interface, or "".
// The bounds are those of Linux (dev_valid_name in net/core/dev.c).
func badInterface(name string) string {
	if name == "" || name == "." || name == ".." {
		return "is not a name for an interface"
	}
	if len(name) > 15 {
		return "is longer than the 15 bytes that an interface's can have"
	}
	for _, c := range name {
		if c <= ' ' || c == '/' || c == ':' || c == '%' || c >= 0x7f {
			return "has a character in it that an interface's cannot have"
		}
	}
	return ""
}

// StateNone is the dns.state that keeps nothing.
const StateNone = "none"

// notFake are IPv4 addresses that programs use for something else.
var notFake = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"),
}

func (x *DNS) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(x).Elem(), "dns")
	if p := x.Range4; !p.Addr().Is4() || p.Bits() < 4 || p.Bits() > 29 || slices.ContainsFunc(notFake, p.Overlaps) {
		d.errorf(valueAt(n, "range4"), "write an IPv4 prefix from /4 to /29, as in 198.18.0.0/15", "%s cannot be a range of fake addresses", p)
	}
	if p := x.Range6; !p.Addr().Is6() || p.Bits() < 8 || p.Bits() > 125 || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified() {
		d.errorf(valueAt(n, "range6"), "write an IPv6 prefix from /8 to /125, as in fd74:756e:726f::/64", "%s cannot be a range of fake addresses", p)
	}
	if x.TTL < time.Second || x.TTL > time.Hour || x.TTL%time.Second != 0 {
		d.errorf(valueAt(n, "ttl"), "write whole seconds from 1s to 1h", "ttl cannot be %s", x.TTL)
	}
	if x.Quarantine < time.Second || x.Quarantine > 30*24*time.Hour {
		d.errorf(valueAt(n, "quarantine"), "write a duration from 1s to 720h", "quarantine cannot be %s", x.Quarantine)
	}
	switch v := valueAt(n, "state"); {
	case v != n && x.State == "":
		d.errorf(v, "write a path, or none", "state is empty")
	case strings.ContainsRune(x.State, 0):
		d.errorf(v, "write a path, or none", "state has a NUL in it")
	case x.State != "" && x.State != StateNone && !filepath.IsAbs(x.State):
		x.State = filepath.Join(filepath.Dir(d.file), x.State)
	}
	x.checkResolvers(d, n)
	for _, r := range x.RemoteResolvers {
		switch a := r.Addr(); {
		case a.IsUnspecified() || a.IsMulticast():
			d.errorf(valueAt(n, "remote-resolvers"), "write the address of a DNS server, as in 9.9.9.9", "resolver %s is not an address of a machine", r)
		case x.Range4.Contains(a) || x.Range6.Contains(a):
			d.errorf(valueAt(n, "remote-resolvers"), "name a server outside of dns.range4 and dns.range6", "resolver %s is within the range of fake addresses", r)
		}
	}
}

func (l *Limits) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(l).Elem(), "limits")
	d.checkRange(n, "flows", l.Flows, 1, maxLimit)
	d.checkRange(n, "half-open", l.HalfOpen, 1, maxLimit)
	d.checkRange(n, "half-open-per-source", l.HalfOpenPerSource, 1, maxLimit)
	d.checkRange(n, "udp-sessions", l.UDPSessions, 1, maxLimit)
	for key, value := range map[string]int{"per-source": l.PerSource, "per-user": l.PerUser} {
		if valueAt(n, key) != n {
			d.checkRange(n, key, value, 1, maxLimit)
		}
	}
}

func (a *Admin) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(a).Elem(), "admin")
	at := valueAt(n, "socket")
	switch s := a.Socket; {
	case s == "", s == adminOff:
	case !strings.HasPrefix(s, "/"):
		d.errorf(at, "write a path that starts with a slash, or off", "socket %q is not a whole path", short(s))
	case len(s) > maxSocketPath:
		d.errorf(at, "choose a shorter path", "socket has a path of %d bytes; the kernel takes %d", len(s), maxSocketPath)
	}
}

// maxSocketPath: sun_path has 108 bytes (unix(7)), the last of them a NUL, and the
// socket is made beside its place first.
const maxSocketPath = 80

const adminOff = "off"

// AdminSocket returns where the daemon of this config is to be found, "" for nowhere.
// It goes by the environment where the config says nothing.
func (c *Config) AdminSocket() string {
	switch {
	case c.Admin.Socket == adminOff:
		return ""
	case c.Admin.Socket != "":
		return c.Admin.Socket
	}
	dir := "/run"
	if os.Geteuid() != 0 {
		if dir = os.Getenv("XDG_RUNTIME_DIR"); dir == "" {
			return ""
		}
	}
	return filepath.Join(dir, "tunroute", c.Instance()+".sock")
}

// Instance returns the name of what belongs to one daemon of several: that of its
// interface or, where it has none, one that is made from the path of its file.
func (c *Config) Instance() string {
	if !c.TUN.Off {
		return c.TUN.Name
	}
	sum := sha256.Sum256([]byte(c.AbsFile()))
	return fmt.Sprintf("off-%x", sum[:4])
}

// AbsFile returns File from the root on.
func (c *Config) AbsFile() string {
	path, err := filepath.Abs(c.File)
	if err != nil {
		return c.File // there is no working directory
	}
	return path
}

func (x *Ident) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(x).Elem(), "ident")
	at := valueAt(n, "user")
	if _, err := flow.ParseTemplate(x.User); err != nil {
		d.errorf(at, "the variables are "+flow.Variables()+", and {{ is a brace", "ident has a user that %v", err)
	}
	control := strings.ContainsFunc(x.User, func(r rune) bool { return r < ' ' || r == 0x7f })
	if x.User == "" || len(x.User) > maxSecret || control {
		d.errorf(at, "write a name", "ident has a user that is empty, longer than %d bytes, or has a control character in it", maxSecret)
	}
}
