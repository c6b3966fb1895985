package config

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// Resolver is a DNS server, or the way in which this machine resolves names. The file
// has its URL, or a mapping with the keys below.
type Resolver struct {
	URL string           `yaml:"url"`           // in its shortest form once parsed
	At  []netip.AddrPort `yaml:"at,omitempty"`  // where the host of URL is
	Via string           `yaml:"via,omitempty"` // the upstream that it is asked through
	For []rule.Dest      `yaml:"for,omitempty"` // the names that it is asked for; empty for all others
	CA  string           `yaml:"ca,omitempty"`

	Protocol Protocol       `yaml:"-"` // of URL
	Server   flow.Target    `yaml:"-"` // of URL; the zero Target for System
	Name     string         `yaml:"-"` // of URL: what the certificate has to be good for; "" for the host
	Path     string         `yaml:"-"` // of URL, for HTTPS
	Roots    *x509.CertPool `yaml:"-"` // what CA has; nil for what this machine trusts

	at, atVia, atAt place
}

// Protocol is how a resolver is spoken to.
type Protocol uint8

// The protocols.
const (
	System   Protocol = iota // as this machine is set up
	DNSUDP                   // and TCP, for what UDP cannot carry
	DNSTCP                   //
	DNSTLS                   // RFC 7858
	DNSHTTPS                 // RFC 8484
)

var protocols = enum{"system", "udp", "tcp", "tls", "https"}

// defaultPorts are those of the protocols.
var defaultPorts = [...]uint16{DNSUDP: 53, DNSTCP: 53, DNSTLS: 853, DNSHTTPS: 443}

// dnsPath is the path of a URL without one, as most services have it.
const dnsPath = "/dns-query"

// String returns what the config calls the resolver.
func (r *Resolver) String() string { return r.URL }

// canonical returns the URL in its shortest form.
func (r *Resolver) canonical() string {
	if r.Protocol == System {
		return "system"
	}
	if r.Protocol == DNSUDP {
		return r.Server.String()
	}
	text := protocols.text(int(r.Protocol)) + "://" + r.Server.String()
	if r.Server.Port == defaultPorts[r.Protocol] {
		text = strings.TrimSuffix(text, ":"+strconv.Itoa(int(r.Server.Port)))
	}
	text += r.Path
	if r.Name != "" {
		text += "#" + r.Name
	}
	return text
}

// Addrs returns where the resolver is, as HOST:PORT: the addresses that are given, or
// the host of its URL.
func (r *Resolver) Addrs() []string {
	var list []string
	for _, a := range r.At {
		port := a.Port()
		if port == 0 {
			port = r.Server.Port
		}
		list = append(list, netip.AddrPortFrom(a.Addr(), port).String())
	}
	if list == nil {
		list = append(list, r.Server.String())
	}
	return list
}

// addresses returns those of Addrs that are addresses.
func (r *Resolver) addresses() []netip.Addr {
	var list []netip.Addr
	for _, a := range r.Addrs() {
		if ap, err := netip.ParseAddrPort(a); err == nil {
			list = append(list, ap.Addr())
		}
	}
	return list
}

// MarshalYAML writes a resolver as it would be written by hand.
func (r Resolver) MarshalYAML() (any, error) {
	if len(r.At)+len(r.For)+len(r.Via)+len(r.CA) == 0 {
		return r.URL, nil
	}
	out := struct {
		URL string      `yaml:"url"`
		At  []string    `yaml:"at,omitempty,flow"`
		Via string      `yaml:"via,omitempty"`
		For []rule.Dest `yaml:"for,omitempty,flow"`
		CA  string      `yaml:"ca,omitempty"`
	}{URL: r.URL, Via: r.Via, For: r.For, CA: r.CA}
	for _, a := range r.At {
		if a.Port() == 0 {
			out.At = append(out.At, a.Addr().String())
			continue
		}
		out.At = append(out.At, a.String())
	}
	return out, nil
}

// resolverKeys is a Resolver as a mapping has it.
type resolverKeys struct {
	URL string      `yaml:"url"`
	At  []string    `yaml:"at"`
	Via string      `yaml:"via"`
	For []rule.Dest `yaml:"for"`
	CA  string      `yaml:"ca"`
}

func (r *Resolver) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	var k resolverKeys
	where := n
	if n.Kind == yaml.MappingNode {
		d.fields(n, reflect.ValueOf(&k).Elem(), "a resolver")
		if where = valueAt(n, "url"); where == n && len(d.errs) == before {
			d.errorf(n, "write url: tls://9.9.9.9#dns.quad9.net, url: 192.0.2.1 or url: system", "a resolver without url")
		}
	} else if text, ok := d.scalar(n, "a resolver"); ok {
		k.URL = text
	}
	if len(d.errs) > before {
		return
	}
	*r = Resolver{Via: k.Via, For: k.For, CA: k.CA, at: at(where), atVia: at(valueAt(n, "via")), atAt: at(valueAt(n, "at"))}
	if strings.Contains(k.URL, "@") {
		d.isURL(k.URL) // so that its password is not shown
		d.errorf(where, "leave out what stands before the @, and the @", "a resolver has no user and no password")
		return
	}
	if err := r.parseURL(k.URL); err != nil {
		d.error(where, err)
		return
	}
	for _, text := range k.At {
		a, err := parseAt(text)
		if err != nil {
			d.error(valueAt(n, "at"), err)
			continue
		}
		r.At = append(r.At, a)
	}
	for _, f := range r.For {
		if f.Kind != rule.ExactName && f.Kind != rule.NameAndBelow {
			d.errorf(valueAt(n, "for"), "write names, as in .corp.example.org for it and everything below", "a resolver cannot be for %q", f)
		}
	}
	if v := valueAt(n, "for"); v != n && v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		d.errorf(v, "leave the key out for all names", "for is an empty list")
	}
	encrypted := r.Protocol == DNSTLS || r.Protocol == DNSHTTPS
	switch {
	case r.Protocol == System && (r.Via != "" || len(r.At) > 0):
		d.errorf(n, "name the servers to have them elsewhere", "system has no via and no at: it is as this machine is set up")
	case len(r.At) > 0 && r.Server.Name == "":
		d.errorf(valueAt(n, "at"), "leave it out", "resolver %s has its address in its url and in at", r)
	case r.CA != "" && !encrypted:
		d.errorf(valueAt(n, "ca"), "leave it out, or write tls:// or https://", "resolver %s has no certificate, so that ca has no effect", r)
	case r.CA != "":
		roots, err := readRoots(d.file, r.CA)
		if err != nil {
			d.errorf(valueAt(n, "ca"), "write the path of a file with certificates in PEM", "ca of resolver %s: %v", r, err)
		}
		r.Roots = roots
	}
}

// parseAt parses an address with or without port; 0 stands for that of the URL.
func parseAt(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	return parseAddrPort(s)
}

// parseURL parses what the config calls a resolver.
func (r *Resolver) parseURL(s string) error {
	if s == "system" {
		r.URL = s
		return nil
	}
	const hint = "write system, an address as in 192.0.2.1, or tls://9.9.9.9#dns.quad9.net, https://1.1.1.1/dns-query, tcp://192.0.2.1"
	bad := func(reason, hint string) error { return parseError(short(s), reason, hint) }
	scheme, rest, ok := strings.Cut(s, "://")
	r.Protocol = DNSUDP
	if !ok {
		rest = s
		if _, err := parseAddrPort(s); err != nil {
			if near := closest(s, []string{"system"}); near != "" {
				return bad("is not a resolver", `did you mean "system"?`)
			}
			return bad("is not a resolver", hint)
		}
	} else if i, hint := protocols.parse(scheme); i > 0 {
		r.Protocol = Protocol(i)
	} else {
		if hint == "" || i == 0 {
			hint = "it can be udp://, tcp://, tls:// or https://"
		}
		return bad("has a scheme that no resolver has", hint)
	}
	rest, name, hasName := strings.Cut(rest, "#")
	if hasName {
		if _, err := flow.NewTarget(name, 0); err != nil || r.Protocol < DNSTLS {
			return bad("has something behind the # that is no name of a certificate", "write tls://9.9.9.9#dns.quad9.net")
		}
		r.Name = name
	}
	if r.Protocol == DNSHTTPS {
		host, path, hasPath := strings.Cut(rest, "/")
		rest, r.Path = host, dnsPath
		if u, err := url.Parse("https://h/" + path); err != nil || u.RawQuery != "" || strings.ContainsAny(path, "?{} ") {
			return bad("has a path that cannot be posted to", "write it as in https://1.1.1.1/dns-query")
		}
		if hasPath && path != "" {
			r.Path = "/" + path
		}
	}
	if strings.ContainsAny(rest, "/?") {
		return bad("goes on behind host and port", hint)
	}
	host, port := rest, strconv.Itoa(int(defaultPorts[r.Protocol]))
	if _, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		host = strings.Trim(rest, "[]")
	} else if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, port = strings.TrimSuffix(strings.TrimPrefix(rest[:i], "["), "]"), rest[i+1:]
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return bad("has a port that is not a number from 1 to 65535", "leave it out for "+strconv.Itoa(int(defaultPorts[r.Protocol])))
	}
	if r.Server, err = flow.NewTarget(host, uint16(number)); err != nil {
		return bad("has no host", hint)
	}
	if a := r.Server.Addr; a.IsValid() && (a.IsUnspecified() || a.IsMulticast()) {
		return bad("is not an address of a machine", "write system, or the address of a DNS server")
	}
	if r.Server.Name != "" && r.Protocol < DNSTLS {
		return bad("is not a resolver", "write an address: a name would have to be resolved first")
	}
	r.URL = r.canonical()
	return nil
}

// checkResolvers looks at the resolvers for themselves.
func (x *DNS) checkResolvers(d *decoder, n *yaml.Node) {
	v := valueAt(n, "resolvers")
	if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		d.errorf(v, "write system, or the addresses of DNS servers", "resolvers is an empty list")
	} else if len(x.Resolvers) > 0 && !slices.ContainsFunc(x.Resolvers, func(r Resolver) bool { return len(r.For) == 0 }) {
		d.errorf(v, "add one without for, as in system", "every resolver is for some names only, so that nobody is asked for the others")
	}
	for i := range x.Resolvers {
		r := &x.Resolvers[i]
		for _, a := range r.addresses() {
			if x.Range4.Contains(a) || x.Range6.Contains(a) {
				d.errorAt(r.at, "name a server outside of dns.range4 and dns.range6", "resolver %s is within the range of fake addresses", r)
			}
		}
	}
	for _, dest := range x.RebindAllow {
		if dest.Kind == rule.Addresses || dest.Kind == rule.NamePattern {
			d.errorf(valueAt(n, "rebind-allow"), "write names, as in .example.org, or . for all", "%q in rebind-allow is no name", dest)
		}
	}
	for i, h := range x.Hosts {
		if h != systemHosts && !filepath.IsAbs(h) {
			x.Hosts[i] = filepath.Join(filepath.Dir(d.file), h)
		}
	}
}

// systemHosts stands for the hosts file of this machine.
const systemHosts = "system"

// Split returns whom to ask for which names: the last one is for all that the others
// are not for.
func (x *DNS) Split() []Split {
	var list []Split
	var all Split
	for i := range x.Resolvers {
		r := &x.Resolvers[i]
		if len(r.For) == 0 {
			all.Resolvers = append(all.Resolvers, r)
			continue
		}
		for _, dest := range r.For {
			j := slices.IndexFunc(list, func(s Split) bool { return s.For == dest })
			if j < 0 {
				j = len(list)
				list = append(list, Split{For: dest})
			}
			list[j].Resolvers = append(list[j].Resolvers, r)
		}
	}
	return append(list, all)
}

// Split is whom to ask for some names.
type Split struct {
	For       rule.Dest // the zero Dest for all others
	Resolvers []*Resolver
}

// HostsFiles returns the paths of the hosts files; "" stands for that of this machine.
func (x *DNS) HostsFiles() []string {
	var list []string
	for _, h := range x.Hosts {
		if h == systemHosts {
			h = ""
		}
		list = append(list, h)
	}
	return list
}

// linkResolvers checks what the resolvers say of upstreams.
func (d *decoder) linkResolvers(c *Config, names []string) {
	split := c.DNS.Split()
	var table rule.NameTable[[]*Resolver]
	for _, s := range split {
		table.Insert(s.For, s.Resolvers)
	}
	asked := func(name string) []*Resolver {
		if list, ok := table.Lookup(name); ok {
			return list
		}
		return split[len(split)-1].Resolvers
	}
	for i := range c.DNS.Resolvers {
		r := &c.DNS.Resolvers[i]
		switch u := c.Upstream(r.Via); {
		case r.Via == ViaDirect:
			d.errorAt(r.atVia, "leave via out: that is the direct way", "resolver %s cannot go via %q", r, r.Via)
			continue
		case r.Via != "" && d.isURL(r.Via):
			d.errorAt(r.atVia, "give it a name under upstreams, and write the name here", "resolver %s goes via a URL", r)
			continue
		case r.Via != "" && u == nil:
			d.errorAt(r.atVia, didYouMean(r.Via, names), "resolver %s goes via %q, which is not an upstream", r, short(r.Via))
			continue
		}
		if r.Server.Name != "" && len(r.At) == 0 && !c.takesNames(r.Via) {
			d.errorAt(r.at, "add at: [ADDRESS], or write tls://ADDRESS#NAME", "nobody can be asked for the address of resolver %s", r)
		}
		c.walk(r.Via, func(u *Upstream) {
			if name := u.Server.Name; name != "" && (u.Via == "" || !c.takesNames(u.Via)) && slices.Contains(asked(name), r) {
				d.errorAt(r.atVia, fmt.Sprintf("write the address of upstream %s, or ask somebody else for its name: {url: system, for: [%s]}", u.Name, name),
					"resolver %s goes via %q and would be asked for the address of %s, which that way begins with", r, r.Via, name)
			}
		})
	}
}

// takesNames tells whether all ways through an upstream end at a server that resolves
// names.
func (c *Config) takesNames(via string) bool {
	ends := c.Ends(via)
	u := c.Upstream(via)
	return len(ends) > 0 && !slices.ContainsFunc(ends, func(u *Upstream) bool { return !u.Scheme.TakesNames() }) &&
		!slices.Contains(u.Group, ViaDirect)
}

// SameResolvers tells whether names are resolved here as another config has it.
func (c *Config) SameResolvers(o *Config) bool {
	a, b := &c.DNS, &o.DNS
	if !Same(a.Resolvers, b.Resolvers) || a.Strategy != b.Strategy || !slices.Equal(a.Hosts, b.Hosts) || !slices.Equal(a.RebindAllow, b.RebindAllow) ||
		!slices.Equal(c.Names.Local, o.Names.Local) || !slices.Equal(c.Names.LocalThenRemote, o.Names.LocalThenRemote) {
		return false
	}
	names := func(c *Config) (list []string) {
		for _, u := range c.Upstreams {
			list = append(list, u.Server.Name)
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	if !slices.Equal(names(c), names(o)) {
		return false
	}
	for i := range a.Resolvers {
		if !a.Resolvers[i].Roots.Equal(b.Resolvers[i].Roots) || a.Resolvers[i].Via != "" && !c.SameUpstream(o, a.Resolvers[i].Via) {
			return false
		}
	}
	return true
}

// PrivateNames returns the names that may have addresses of private networks: those of
// rebind-allow, those that the config says are resolved here, and those of its servers.
func (c *Config) PrivateNames() *rule.NameTable[bool] {
	t := new(rule.NameTable[bool])
	for _, d := range slices.Concat(c.DNS.RebindAllow, c.Names.Local, c.Names.LocalThenRemote) {
		t.Insert(d, true)
	}
	for _, u := range c.Upstreams {
		if u.Server.Name != "" {
			t.Insert(rule.Dest{Kind: rule.ExactName, Name: u.Server.Name}, true)
		}
	}
	return t
}
