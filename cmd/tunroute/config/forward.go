package config

import (
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// MarshalYAML writes what is there.
func (f Forward) MarshalYAML() (any, error) {
	out := struct {
		Listen     string         `yaml:"listen,omitempty"`
		Via        string         `yaml:"via,omitempty"`
		From       []netip.Prefix `yaml:"from,omitempty"`
		To         string         `yaml:"to"`
		KeepSource bool           `yaml:"keep-source,omitempty"`
	}{Via: f.Via, From: f.From, To: f.To.String(), KeepSource: f.KeepSource}
	if netip.AddrPort(f.Listen).IsValid() {
		out.Listen = f.Listen.String()
	}
	return out, nil
}

// ForwardTo is an address behind the TUN and a port, or a port of the machine that has
// the TUN.
type ForwardTo struct {
	Addr netip.Addr // not valid where it is the machine
	Port uint16
}

// String returns ADDRESS:PORT or PORT.
func (t ForwardTo) String() string {
	if t.Addr.IsValid() {
		return netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return strconv.Itoa(int(t.Port))
}

func parseForwardTo(s string) (ForwardTo, error) {
	port := s
	var t ForwardTo
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if t.Addr = ap.Addr().Unmap(); t.Addr.IsUnspecified() || t.Addr.IsMulticast() {
			return t, parseError(s, "is not an address of a machine", "write the port alone for the machine that has the TUN")
		}
		port = strconv.Itoa(int(ap.Port()))
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return t, parseError(s, "is neither an address and a port nor a port", "write 10.0.0.20:80, or 80 for the machine that has the TUN")
	}
	t.Port = uint16(n)
	return t, nil
}

func (f *Forward) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	d.fields(n, reflect.ValueOf(f).Elem(), "forward")
	f.at, f.atVia, f.atListen = at(n), at(valueAt(n, "via")), at(valueAt(n, "listen"))
	if v := valueAt(n, "from"); v != n && v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		d.errorf(v, "leave the key out to let everybody connect", "from is an empty list")
	}
	if len(d.errs) == before && f.To == (ForwardTo{}) {
		d.errorf(n, "write to: 10.0.0.20:80, or to: 80 for the machine that has the TUN", "a forward without to")
	}
	if f.Via == "" {
		f.Via = ViaDirect
	}
}

// linkForwards checks where connections come in.
func (d *decoder) linkForwards(c *Config, names []string, byName map[string]*Upstream) {
	seen := make(map[Endpoint]bool)
	for i := range c.Forward {
		f := &c.Forward[i]
		u := byName[f.Via]
		listens := f.Listen != Endpoint{}
		here := f.Via == ViaDirect || u != nil && u.Scheme == Direct
		switch {
		case !here && u == nil && d.isURL(f.Via):
			d.errorAt(f.atVia, "give it a name under upstreams, and write the name here", "a forward is via a URL")
		case !here && u == nil:
			d.errorAt(f.atVia, didYouMean(f.Via, append(slices.Clone(names), ViaDirect)), "a forward is via %q, which is not an upstream", short(f.Via))
		case here && !listens:
			d.errorAt(f.at, "write listen: 0.0.0.0:8080, or via: and a SOCKS server", "a forward does not say where others connect")
		case !here && listens:
			d.errorAt(f.atListen, "leave listen out: the log says which address the server has chosen", "a forward listens here and is via %q", f.Via)
		case listens && seen[f.Listen]:
			d.errorAt(f.atListen, "choose another port", "a forward listens at %s, as one before it does", f.Listen)
		case c.TUN.Off:
			d.errorAt(f.at, "leave out tun: off", "a forward leads to a program behind the TUN, and there is none")
		}
		seen[f.Listen] = listens
	}
}

// forwardWarnings finds forwards by which nobody can come.
func (c *Config) forwardWarnings(warn func(place, string, string, ...any)) {
	for _, f := range c.Forward {
		if u := c.noBind(f.Via); u != nil {
			warn(f.atVia, "use a SOCKS server that has BIND", "nobody can connect to the far end of the HTTP proxy %q", u.Name)
		}
	}
}

// Allows says whether somebody may connect.
func (f *Forward) Allows(a netip.Addr) bool {
	return len(f.From) == 0 || slices.ContainsFunc(f.From, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// Single returns the one address that may connect, if there is but one.
func (f *Forward) Single() (netip.Addr, bool) {
	if len(f.From) != 1 || !f.From[0].IsSingleIP() {
		return netip.Addr{}, false
	}
	return f.From[0].Addr(), true
}

// Name is what the log calls it.
func (f *Forward) Name() string {
	if f.Listen != (Endpoint{}) {
		return f.Listen.String()
	}
	return strings.Join([]string{f.Via, f.To.String()}, ">")
}
