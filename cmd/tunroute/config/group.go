package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// The bounds of what a group can be told.
const (
	maxWeight  = 1000 // what package group has
	maxMaxFail = 100
	// maxHedge is when another member is tried beside a silent one in any
	// case: group.DefaultTry.
	maxHedge = 5 * time.Second
)

// IsGroup tells whether u is a choice among others, and no server.
func (u *Upstream) IsGroup() bool { return len(u.Group) > 0 }

// serverKeys are the keys that groups do not have, and groupKeys those that only groups
// have, beside group itself: what stands before it in Upstream, and behind.
var serverKeys, groupKeys = func() (before, behind []string) {
	keys := yamlKeys(reflect.TypeFor[Upstream]())
	i := slices.Index(keys, "group")
	return keys[:i], keys[i+1:]
}()

// noGroup finds keys of groups in what is none.
func (u *Upstream) noGroup(d *decoder, n *yaml.Node, name string) {
	for _, key := range groupKeys {
		if v := valueAt(n, key); v != n {
			d.errorf(v, "leave it out, or write group: [A, B]", "%s is no group and has no use for %s", name, key)
		}
	}
}

// checkGroup finds what is wrong with a group by itself, and where its members are.
func (u *Upstream) checkGroup(d *decoder, n *yaml.Node, name string) {
	for _, key := range serverKeys {
		if v := valueAt(n, key); v != n {
			d.errorf(v, "leave it out; its members have their own", "%s is a group and cannot have %s", name, key)
		}
	}
	list := valueAt(n, "group")
	items := []*yaml.Node{list}
	if list.Kind == yaml.SequenceNode {
		items = list.Content
		if len(items) == 0 {
			d.errorf(list, "write the names of upstreams, as in [int1, int2]", "%s has no members", name)
		}
	}
	seen := make(map[string]bool)
	for _, item := range items {
		if item = follow(item); item.Kind != yaml.ScalarNode || isNull(item) {
			continue // said already
		}
		if seen[item.Value] {
			d.errorf(item, "leave one of them out; weights say who gets more", "%s has the member %q twice", name, short(item.Value))
		}
		seen[item.Value] = true
		u.atMembers = append(u.atMembers, at(item))
	}
	if weights := valueAt(n, "weights"); weights.Kind == yaml.MappingNode && weights != n {
		if u.Policy == Fallback || u.Policy == Fastest {
			d.errorf(weights, "leave them out, or choose another policy", "%s has weights, which mean nothing to the policy %s", name, u.Policy)
		}
		for i := 0; i+1 < len(weights.Content); i += 2 {
			if key := follow(weights.Content[i]); !seen[key.Value] {
				d.errorf(key, didYouMean(key.Value, u.Group), "%s has a weight for %q, which is not a member", name, short(key.Value))
			}
		}
	}
	if v := valueAt(n, "by"); v != n && u.Policy != Hash {
		d.errorf(v, "leave it out, or write policy: hash", "%s goes by nothing: its policy is %s", name, u.Policy)
	}
	if v := valueAt(n, "maxfail"); v != n {
		d.checkRange(n, "maxfail", u.MaxFail, 1, maxMaxFail)
	}
	if u.Hedge > maxHedge {
		d.errorf(valueAt(n, "hedge"), "write less than 5s, or leave it out", "hedge cannot be %s: after %s another member is tried in any case", u.Hedge, maxHedge)
	}
}

func (w *Weights) decodeNode(d *decoder, n *yaml.Node) {
	list, ok := d.pairs(n, "weights")
	if !ok {
		return
	}
	*w = make(Weights)
	for _, p := range list {
		value := 0
		before := len(d.errs)
		d.decode(p.value, reflect.ValueOf(&value).Elem(), "a weight")
		if len(d.errs) > before {
			continue
		}
		if value < 1 || value > maxWeight {
			d.errorf(p.value, fmt.Sprintf("write a number from 1 to %d", maxWeight), "a weight cannot be %d", value)
		}
		(*w)[p.key.Value] = value
	}
}

// linkGroup checks the members of a group.
func (d *decoder) linkGroup(u *Upstream, names []string, byName map[string]*Upstream) {
	for i, m := range u.Group {
		switch {
		case m == ViaDirect, byName[m] != nil:
		case m == ViaReject, m == ViaDrop, m == viaDNS:
			d.errorAt(u.atMembers[i], "leave it out; a flow that no member opens fails", "group %q cannot have %q as a member", u.Name, m)
		case d.isURL(m):
			d.errorAt(u.atMembers[i], "give it a name of its own, and write the name here", "group %q has a URL as a member", u.Name)
		default:
			d.errorAt(u.atMembers[i], didYouMean(m, append(slices.Clone(names), ViaDirect)), "group %q has the member %q, which is not an upstream", u.Name, short(m))
		}
	}
}

// step is what an upstream needs another one for.
type step struct {
	word string // "via" or "has"
	to   string
	at   place
}

func (u *Upstream) steps() []step {
	if !u.IsGroup() {
		return []step{{"via", u.Via, u.atVia}}
	}
	var list []step
	for i, m := range u.Group {
		var p place
		if i < len(u.atMembers) {
			p = u.atMembers[i]
		}
		list = append(list, step{"has", m, p})
	}
	return list
}

// circles finds upstreams that are reached through themselves.
func (d *decoder) circles(all Upstreams, byName map[string]*Upstream) {
	type leg struct {
		from *Upstream
		step step
	}
	var way []leg
	done := make(map[*Upstream]bool) // all that it leads to has been looked at
	var walk func(u *Upstream)
	walk = func(u *Upstream) {
		if u == nil || done[u] {
			return
		}
		if i := slices.IndexFunc(way, func(l leg) bool { return l.from == u }); i >= 0 {
			var text strings.Builder
			hint := "one of them must be reached without via"
			for _, l := range way[i:] {
				fmt.Fprintf(&text, "%s %s ", l.from.Name, l.step.word)
				if l.from.IsGroup() {
					hint = "take one of them out of the group"
				}
			}
			d.errorAt(way[i].step.at, hint, "upstreams go round in a circle: %s%s", &text, u.Name)
			return
		}
		for _, s := range u.steps() {
			way = append(way, leg{u, s})
			walk(byName[s.to])
			way = way[:len(way)-1]
		}
		done[u] = true
	}
	for _, u := range all {
		walk(u)
	}
}

// Ends returns the upstreams by which a flow to via may leave: the upstream itself, or
// the members of a group and of groups in it. It is empty for what is built in.
func (c *Config) Ends(via string) []*Upstream {
	u := c.Upstream(via)
	switch {
	case u == nil:
		return nil
	case !u.IsGroup():
		return []*Upstream{u}
	}
	var ends []*Upstream
	for _, m := range u.Group {
		for _, e := range c.Ends(m) {
			if !slices.Contains(ends, e) {
				ends = append(ends, e)
			}
		}
	}
	return ends
}

// walk calls visit once for each upstream that a flow to via may go through: members,
// and what chains go through.
func (c *Config) walk(via string, visit func(*Upstream)) {
	seen := make(map[string]bool)
	var walk func(name string)
	walk = func(name string) {
		u := c.Upstream(name)
		if u == nil || seen[name] {
			return
		}
		seen[name] = true
		visit(u)
		for _, s := range u.steps() {
			walk(s.to)
		}
	}
	walk(via)
}

// noUDP returns an upstream for which a way carries no UDP; nil if it does, or may.
func (c *Config) noUDP(via string) *Upstream {
	u := c.Upstream(via)
	switch {
	case u == nil: // direct
		return nil
	case u.IsGroup():
		var none *Upstream
		for _, m := range u.Group {
			n := c.noUDP(m)
			if n == nil {
				return nil // this one does
			}
			if none == nil {
				none = n
			}
		}
		return none
	case u.Via != "":
		if n := c.noUDP(u.Via); n != nil {
			return n
		}
	}
	if u.NoUDP() != "" {
		return u
	}
	return nil
}

// SameUpstream tells whether an upstream is the same in another config, with all that
// it goes through.
func (c *Config) SameUpstream(other *Config, name string) bool {
	same := true
	if c.Upstream(name) == nil {
		return name == ViaDirect && other.Upstream(name) == nil
	}
	c.walk(name, func(u *Upstream) {
		o := other.Upstream(u.Name)
		same = same && o != nil && u.Roots.Equal(o.Roots) && reflect.DeepEqual(u.withoutPlaces(), o.withoutPlaces())
	})
	return same
}

// withoutPlaces returns a copy that does not know where the file has it, nor what
// [reflect.DeepEqual] cannot compare.
func (u *Upstream) withoutPlaces() Upstream {
	c := *u
	c.Line, c.Roots = 0, nil
	c.at, c.atURL, c.atVia, c.atMark, c.atMembers = place{}, place{}, place{}, place{}, nil
	return c
}
