package rule

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"tunroute/router/flow"
)

// Reject is the Via of a flow that no rule matches.
const Reject = "reject"

// Rule sends the flows that meet its conditions to the outbound Via. A
// condition that is empty is always met.
type Rule struct {
	From    []netip.Prefix // where the flow comes from; masked and unmapped, as [ParseFrom] returns them
	To      []Dest         // where it wants to go
	Ports   []PortRange    // the port that it wants to go to
	Network flow.Network   // 0 is both

	Commands []flow.Command // what the client asks for
	Inbounds []string       // where it has come in
	Users    []string       // who it is; or [AnyUser]
	Groups   []string       // one that it is in

	Via    string // the outbound's name; not checked here
	Helper Helper // what its flows need besides; the zero Helper is none
	Line   int    // where the config has the rule; 0 where there is no config
}

// Verdict is what a [Table] says about a flow.
type Verdict struct {
	Index int    // of the rule, from 0; -1 where none matches
	Line  int    // of the rule; 0 where none matches
	Via   string // the name of an outbound; [Reject] where none matches

	Helper Helper // of the rule
}

// Helper is what flows of a protocol need that connections alone do not give them.
type Helper uint8

// The helpers. The zero Helper is none.
const (
	FTP Helper = iota + 1 // FTP in active mode: the server connects to the client
)

// String returns "ftp", and "" for none.
func (h Helper) String() string {
	if h == FTP {
		return "ftp"
	}
	return ""
}

var noMatch = Verdict{Index: -1, Via: Reject}

// Table is a compiled list of rules. It is immutable, and safe for concurrent
// use.
type Table struct {
	rules    []Rule // as given, for Explain
	compiled []compiled
}

// compiled is a rule in the form that Match reads.
type compiled struct {
	network flow.Network
	ports   []PortRange // sorted, neither overlapping nor touching
	from    *bart.Lite  // nil: every source
	to      *dests      // nil: every target
	who     who
}

// dests is the To of a rule.
type dests struct {
	addrs    *bart.Lite // nil: none
	names    NameTable[struct{}]
	patterns patterns
}

// Compile makes a Table of rules. It keeps nothing of rules that the caller
// could change. An error names the rule, counted from 1, and its line.
func Compile(rules []Rule) (*Table, error) {
	t := &Table{
		rules:    make([]Rule, len(rules)),
		compiled: make([]compiled, len(rules)),
	}
	for i, r := range rules {
		c, err := compile(r)
		if err != nil {
			return nil, fmt.Errorf("rule %d (line %d): %w", i+1, r.Line, err)
		}
		r.From, r.To, r.Ports = slices.Clone(r.From), slices.Clone(r.To), slices.Clone(r.Ports)
		r.Commands, r.Inbounds = slices.Clone(r.Commands), slices.Clone(r.Inbounds)
		r.Users, r.Groups = slices.Clone(r.Users), slices.Clone(r.Groups)
		t.rules[i], t.compiled[i] = r, c
	}
	return t, nil
}

func compile(r Rule) (compiled, error) {
	c := compiled{network: r.Network, who: compileWho(r)}
	if r.Network > flow.UDP {
		return c, fmt.Errorf("%s is neither tcp nor udp", r.Network)
	}
	if r.Via == "" {
		return c, fmt.Errorf("no outbound")
	}
	for _, cmd := range r.Commands {
		if cmd < flow.Connect || cmd > flow.Associate {
			return c, fmt.Errorf("%s is neither connect, bind nor udp", cmd)
		}
	}
	for _, p := range r.From {
		if !canonicalPrefix(p) {
			return c, fmt.Errorf("source %s is not a masked, unmapped prefix", p)
		}
		c.from = insertPrefix(c.from, p)
	}
	for _, p := range r.Ports {
		if p.First > p.Last {
			return c, fmt.Errorf("port range %s ends before it begins", p)
		}
	}
	c.ports = mergePorts(r.Ports)
	if len(r.To) > 0 {
		c.to = new(dests)
	}
	for _, d := range r.To {
		if err := d.check(); err != nil {
			return c, err
		}
		switch d.Kind {
		case Addresses:
			c.to.addrs = insertPrefix(c.to.addrs, d.Prefix)
		case NamePattern:
			c.to.patterns.insert(d.Name)
		default:
			c.to.names.Insert(d, struct{}{})
		}
	}
	return c, nil
}

func canonicalPrefix(p netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6()
}

func insertPrefix(set *bart.Lite, p netip.Prefix) *bart.Lite {
	if set == nil {
		set = new(bart.Lite)
	}
	set.Insert(p)
	return set
}

// mergePorts sorts the ranges and joins those that overlap or touch.
func mergePorts(ranges []PortRange) []PortRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// Rules returns the rules that the table was made of. The caller must not change
// them.
func (t *Table) Rules() []Rule { return t.rules }

// Match returns the verdict of the first rule that matches f. It does not
// allocate, and does not keep f.
func (t *Table) Match(f *flow.Flow) Verdict {
	src, dst := plain(f.Source.Addr()), plain(f.Target.Addr)
	for i := range t.compiled {
		c := &t.compiled[i]
		if c.networkMatches(f.Network) && c.portMatches(f.Target.Port) && c.fromMatches(src) && c.who.matches(f) && c.toMatches(f.Target.Name, dst) {
			return t.verdict(i)
		}
	}
	return noMatch
}

func (t *Table) verdict(i int) Verdict {
	r := &t.rules[i]
	return Verdict{Index: i, Line: r.Line, Via: r.Via, Helper: r.Helper}
}

// plain returns the address that prefixes are compared with: an IPv4 address in
// IPv6 clothes is the IPv4 address, and fe80::1%eth0 is fe80::1.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func (c *compiled) networkMatches(n flow.Network) bool {
	return c.network == 0 || c.network == n
}

func (c *compiled) portMatches(port uint16) bool {
	if len(c.ports) == 0 {
		return true
	}
	i, found := slices.BinarySearchFunc(c.ports, port, func(r PortRange, port uint16) int { return int(r.First) - int(port) })
	return found || i > 0 && port <= c.ports[i-1].Last
}

func (c *compiled) fromMatches(src netip.Addr) bool {
	return c.from == nil || src.IsValid() && c.from.Contains(src)
}

func (c *compiled) toMatches(name string, addr netip.Addr) bool {
	return c.to == nil || name != "" && c.to.hasName(name) || addr.IsValid() && c.to.hasAddr(addr)
}

func (d *dests) hasName(name string) bool {
	if _, ok := d.names.Lookup(name); ok {
		return true
	}
	return d.patterns.contains(name)
}

func (d *dests) hasAddr(addr netip.Addr) bool {
	return d.addrs != nil && d.addrs.Contains(addr)
}
