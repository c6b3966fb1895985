package config

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// Load reads the config file at path. An error about its content is an [Errors]
// with all that is wrong; one about the file itself names the path.
func Load(path string) (*Config, error) { return Check(path, nil) }

// Problem is something that is wrong with what a config leads to. At is where: the keys
// and indices that lead there, of which what follows the last that is in the file is left
// out.
type Problem struct {
	At        []any // a string or an int each
	Msg, Hint string
}

// Check is [Load] and, where there is no error, calls look for what else is wrong. Nil
// finds nothing.
func Check(path string, look func(*Config) []Problem) (*Config, error) {
	f, err := Read(path)
	if err != nil {
		return nil, err
	}
	return parse(f, look)
}

// File is a config file that has been read, which some can be only once.
type File struct {
	Name     string
	Data     []byte
	Readable bool // by all users of the machine
}

// Read reads the config file at path. Its error names the path.
func Read(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return File{}, Errors{{File: path, Msg: "there is no such file", Hint: "name the config with -c FILE"}}
		}
		return File{}, Errors{{File: path, Msg: reason(err)}}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, Errors{{File: path, Msg: reason(err)}}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return File{}, Errors{{File: path, Msg: reason(err)}}
	}
	return File{path, data, readableByOthers(info.Mode())}, nil
}

// Parse is the rest of [Load].
func (f File) Parse() (*Config, error) { return parse(f, nil) }

// LoadAdmin reads of the config file at path only what says where its daemon is to be
// found: tun and admin. What is wrong with the rest, as a secret that whoever asks does
// not have, is no error.
func LoadAdmin(path string) (*Config, error) {
	f, err := Read(path)
	if err != nil {
		return nil, err
	}
	c, d, root, err := begin(f)
	if err != nil {
		return nil, err
	}
	for key, part := range map[string]any{"tun": &c.TUN, "admin": &c.Admin} {
		if n := valueAt(root, key); n != root {
			d.decode(n, reflect.ValueOf(part).Elem(), key)
		}
	}
	if len(d.errs) > 0 {
		return nil, d.finish(d.errs)
	}
	return c, nil
}

// reason returns what went wrong with a file whose name has been said.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// Parse parses a config. The file name is for messages, and its directory is
// where relative paths of secrets start. Every error is an [Errors].
func Parse(filename string, data []byte) (*Config, error) {
	return parse(File{Name: filename, Data: data}, nil)
}

// begin returns the defaults, to be filled from the root of a file by the decoder.
func begin(f File) (*Config, *decoder, *yaml.Node, error) {
	src := newSource(f.Name, f.Data)
	root, err := src.parseYAML(f.Data)
	if err != nil {
		return nil, nil, nil, err
	}
	c := Default()
	c.File = f.Name
	return c, &decoder{source: src}, root, nil
}

func parse(f File, look func(*Config) []Problem) (*Config, error) {
	c, d, root, err := begin(f)
	if err != nil {
		return nil, err
	}
	d.checkTags(root)
	d.fields(root, reflect.ValueOf(c).Elem(), "the config")
	d.link(c)
	if len(d.errs) > 0 {
		return nil, d.finish(d.errs)
	}
	c.compileNames()
	if look != nil {
		for _, p := range look(c) {
			d.errorf(nodeAt(root, p.At), p.Hint, "%s", p.Msg)
		}
	}
	if len(d.errs) > 0 {
		return nil, d.finish(d.errs)
	}
	c.Warnings = d.finish(append(d.warnings(c), d.secretWarnings(f.Readable)...))
	return c, nil
}

// link checks what one part of the config says of another.
func (d *decoder) link(c *Config) {
	var names []string
	byName := make(map[string]*Upstream)
	for _, u := range c.Upstreams {
		if u.Name != "" {
			names = append(names, u.Name)
			byName[u.Name] = u
		}
	}
	for _, u := range c.Upstreams {
		switch {
		case u.Via == "" || byName[u.Via] != nil:
		case u.Via == ViaDirect:
			d.errorAt(u.atVia, "leave via out: that is the direct way", "upstream %q cannot go via %q", u.Name, u.Via)
		case d.isURL(u.Via):
			d.errorAt(u.atVia, "give it a name of its own, and write the name here", "upstream %q goes via a URL", u.Name)
		default:
			d.errorAt(u.atVia, didYouMean(u.Via, names), "upstream %q goes via %q, which is not an upstream", u.Name, short(u.Via))
		}
		d.linkGroup(u, names, byName)
		if c.TUN.Mark.Mask&u.Mark != 0 {
			d.errorAt(u.atMark, "use other bits, or give tun.mark a mask that leaves these out", "mark %#x of upstream %q has bits of tun.mark %s", u.Mark, u.Name, c.TUN.Mark)
		}
	}
	round := len(d.errs)
	d.circles(c.Upstreams, byName)
	round -= len(d.errs)
	d.linkListeners(c)
	d.linkForwards(c, names, byName)
	if round == 0 { // or there is no end to where they lead
		d.linkResolvers(c, names)
	}
	targets := slices.Concat(names, []string{ViaDirect, ViaReject, ViaDrop})
	for i, r := range c.Rules {
		if r.Via == ViaReject || r.Via == ViaDrop {
			if !r.Limits.IsZero() {
				d.errorAt(r.atLimits, "leave limits out: what is rejected costs nothing", "rule %d goes via %s and has limits", i+1, r.Via)
			}
			if !r.Bandwidth.IsZero() {
				d.errorAt(r.atBandwidth, "leave bandwidth out: nothing goes there", "rule %d goes via %s and has a bandwidth", i+1, r.Via)
			}
		}
		switch {
		case r.Via == "" || r.Via == ViaDirect || r.Via == ViaReject || r.Via == ViaDrop || byName[r.Via] != nil:
		case r.Via == viaDNS:
			d.errorAt(r.atVia, "dns.capture sends all of port 53 to it", "rule %d cannot go via %q", i+1, r.Via)
		case d.isURL(r.Via):
			d.errorAt(r.atVia, "give it a name under upstreams, and write the name here", "rule %d goes via a URL", i+1)
		default:
			d.errorAt(r.atVia, didYouMean(r.Via, targets), "rule %d goes via %q, which is not an upstream", i+1, short(r.Via))
		}
	}
	for _, p := range c.TUN.Exclude {
		if p.Overlaps(c.DNS.Range4) || p.Overlaps(c.DNS.Range6) {
			d.errorAt(c.TUN.atExclude, "exclude nothing of dns.range4 and dns.range6", "exclude has %s, which keeps fake addresses out of the interface", p)
		}
	}
}

// isURL tells whether somebody has written a URL for a name; if so, messages will
// not show its password.
func (d *decoder) isURL(via string) bool {
	if !strings.Contains(via, "://") && !strings.Contains(via, "@") {
		return false
	}
	start, end := passwordSpan(via)
	d.keepSecret(via[start:end])
	return true
}

// Table compiles the rules; they keep their lines.
func (c *Config) Table() (*rule.Table, error) {
	rules := make([]rule.Rule, len(c.Rules))
	for i := range c.Rules {
		rules[i] = c.Rules[i].compiled()
	}
	return rule.Compile(rules)
}

func (r *Rule) compiled() rule.Rule {
	c := rule.Rule{
		From: r.From, To: r.To, Ports: r.Port, Via: r.Via, Helper: rule.Helper(r.Helper), Line: r.Line,
		Inbounds: r.Inbound, Users: r.User, Groups: r.Group,
	}
	for _, cmd := range r.Command {
		c.Commands = append(c.Commands, flow.Command(cmd))
	}
	for i, p := range r.Proto {
		if i > 0 && flow.Network(p) != c.Network {
			c.Network = 0 // both, which is no condition
			break
		}
		c.Network = flow.Network(p)
	}
	return c
}

// NameMode returns the mode of a canonical name. It does not allocate.
func (c *Config) NameMode(name string) Mode {
	if m, ok := c.modes.LookupService(name); ok {
		return m
	}
	if meantHere(rule.Host(name)) {
		return Local
	}
	return c.Names.Default
}

// ListsName tells whether a list of names has a canonical name.
func (c *Config) ListsName(name string) bool {
	_, ok := c.modes.LookupService(name)
	return ok
}

// TUNRoutes returns the prefixes that are routed into the interface: those of
// TUN.Routes, and the fake ranges if those do not have them.
func (c *Config) TUNRoutes() []netip.Prefix {
	routes := slices.Clone(c.TUN.Routes)
	for _, fake := range []netip.Prefix{c.DNS.Range4, c.DNS.Range6} {
		if !slices.ContainsFunc(c.TUN.Routes, func(p netip.Prefix) bool {
			return p.Bits() <= fake.Bits() && p.Contains(fake.Addr())
		}) {
			routes = append(routes, fake)
		}
	}
	return routes
}

func (c *Config) compileNames() {
	for mode, list := range map[Mode][]rule.Dest{
		Remote: c.Names.Remote, Local: c.Names.Local, LocalThenRemote: c.Names.LocalThenRemote,
	} {
		for _, d := range list {
			c.modes.Insert(d, mode)
		}
	}
}
