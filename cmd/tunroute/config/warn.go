package config

import (
	"fmt"
	"slices"
	"strings"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// warnings finds what is allowed but probably not meant. It needs a config
// without errors.
func (s *source) warnings(c *Config) Errors {
	var ws Errors
	warn := func(p place, hint, format string, args ...any) {
		ws = append(ws, s.newError(p, fmt.Sprintf(format, args...), hint))
	}
	if len(c.Rules) == 0 {
		warn(place{}, "write rules: [{via: direct}] to let all through", "there are no rules, so every flow is rejected")
	}
	if table, err := c.Table(); err == nil {
		for i, by := range table.Shadowed() {
			warn(c.Rules[i].at, "move it up, or take it out", "rule %d never decides: rule %d%s takes all that it matches", i+1, by+1, inLine(c.Rules[by].Line))
		}
	}
	s.unused(c, warn)
	c.forwardWarnings(warn)
	leaky := make(map[*Upstream]bool)
	for i := range c.Rules {
		r := &c.Rules[i]
		if dest, ok := c.unseen(r); ok {
			warn(r.atTo, "write its addresses, or give the name the mode remote", "rule %d cannot see the name %q: it has the mode local, so that flows to it have an address only", i+1, dest)
		}
		if why, hint := c.nobodyComes(r); why != "" {
			warn(r.at, hint, "rule %d can never match: %s", i+1, why)
		}
		for _, last := range c.Ends(r.Via) {
			if !leaky[last] && last.Scheme != Direct && !last.Scheme.TakesNames() && c.mayBeRemote(r) {
				leaky[last] = true
				better := map[Scheme]Scheme{Socks4: Socks4a, Socks5: Socks5h}[last.Scheme]
				warn(last.atURL, fmt.Sprintf("write %s to have the server resolve them", schemeOf(better, last.Transport)), "names for upstream %q are resolved on this machine, because of its scheme %s", last.Name, strings.TrimSuffix(schemeOf(last.Scheme, last.Transport), "://"))
			}
		}
		if r.Helper != 0 {
			if why := c.noHelp(r); why != "" {
				warn(r.atVia, "send the rule through a SOCKS server or direct, or leave helper out", "rule %d has the helper %s, and %s", i+1, r.Helper, why)
			}
		}
		if r.compiled().Network == flow.UDP {
			if hop := c.noUDP(r.Via); hop != nil {
				warn(r.atVia, "send UDP another way, or reject it", "rule %d sends UDP through upstream %q, and %s carries none", i+1, hop.Name, hop.NoUDP())
			}
		}
	}
	const leak = "use remote for names that only the far end should know"
	if c.Names.Default == LocalThenRemote {
		warn(c.Names.atDefault, leak, "local-then-remote tells every name to the resolver of this machine")
	}
	if len(c.Names.LocalThenRemote) > 0 {
		warn(c.Names.atLocalThenRemote, leak, "local-then-remote tells these names to the resolver of this machine")
	}
	return ws
}

// nobodyComes says why nobody comes in whom a rule is for, and what to do; "" if somebody
// may.
func (c *Config) nobodyComes(r *Rule) (why, hint string) {
	by := func(in string) bool { return len(r.Inbound) == 0 || slices.Contains(r.Inbound, in) }
	tun := !c.TUN.Off && by(flow.Tun)
	var listeners []Listener
	for _, l := range c.Listen.Socks {
		if by(l.Name) {
			listeners = append(listeners, l)
		}
	}
	asks := func(l Listener) bool {
		return slices.ContainsFunc(l.Auth, func(a Auth) bool { return a != AuthNone })
	}
	switch {
	case !tun && len(listeners) == 0 && len(r.Inbound) > 0:
		return "with tun: off nothing comes by tun", "name a listener, or take the rule out"
	case len(r.User)+len(r.Group) > 0 && !slices.ContainsFunc(listeners, asks):
		return "no listener that it is for asks clients who they are", "give a listener users: FILE, or take the rule out"
	case len(listeners) == 0 && len(r.Command) > 0 && !slices.ContainsFunc(r.Command, func(k Command) bool { return flow.Command(k) != flow.Bind }):
		return "only clients of a listener ask for bind", "add a listener, or take the rule out"
	}
	return "", ""
}

// noHelp says why the helper of a rule has nothing to do; "" if it has, or may have.
func (c *Config) noHelp(r *Rule) string {
	if r.Via == ViaReject || r.Via == ViaDrop {
		return "goes nowhere"
	}
	if u := c.noBind(r.Via); u != nil {
		return fmt.Sprintf("nobody can connect to the far end of the HTTP proxy %q", u.Name)
	}
	return ""
}

// noBind returns an upstream to whose far end nobody can connect, nil if somebody may.
func (c *Config) noBind(via string) *Upstream {
	u := c.Upstream(via)
	switch {
	case u == nil: // direct
		return nil
	case u.IsGroup():
		var none *Upstream
		for _, m := range u.Group {
			if none = c.noBind(m); none == nil {
				return nil
			}
		}
		return none
	case u.Scheme == HTTP:
		return u
	}
	return nil
}

func inLine(line int) string {
	if line == 0 {
		return ""
	}
	return fmt.Sprintf(" (line %d)", line)
}

// unused finds the upstreams that no rule leads to.
func (s *source) unused(c *Config, warn func(place, string, string, ...any)) {
	used := make(map[*Upstream]bool)
	for _, r := range c.Rules {
		c.walk(r.Via, func(u *Upstream) { used[u] = true })
	}
	for _, f := range c.Forward {
		c.walk(f.Via, func(u *Upstream) { used[u] = true })
	}
	for _, r := range c.DNS.Resolvers {
		c.walk(r.Via, func(u *Upstream) { used[u] = true })
	}
	for _, u := range c.Upstreams {
		if !used[u] {
			warn(u.at, "send a rule to it, or take it out", "no rule leads to upstream %q", u.Name)
		}
	}
}

// unseen returns an entry of a rule's To that can never match because of the
// mode of its name.
func (c *Config) unseen(r *Rule) (rule.Dest, bool) {
	for _, d := range r.To {
		switch d.Kind {
		case rule.EveryName:
			if c.Names.Default == Local && len(c.Names.Remote)+len(c.Names.LocalThenRemote) == 0 {
				return d, true
			}
		case rule.ExactName:
			if c.NameMode(d.Name) == Local {
				return d, true
			}
		case rule.NameAndBelow:
			mode, ok := c.modes.LookupBelow(d.Name)
			if !ok {
				mode = c.Names.Default
				if meantHere("any." + d.Name) {
					mode = Local
				}
			}
			if mode == Local && !c.exceptionBelow(d) {
				return d, true
			}
		}
	}
	return rule.Dest{}, false
}

// exceptionBelow tells whether a name at or below d has another mode than Local.
func (c *Config) exceptionBelow(d rule.Dest) bool {
	return slices.ContainsFunc(slices.Concat(c.Names.Remote, c.Names.LocalThenRemote), func(e rule.Dest) bool {
		return strings.HasSuffix("."+e.Name, "."+d.Name)
	})
}

// mayBeRemote tells whether a rule can match a flow of which only the name is
// known.
func (c *Config) mayBeRemote(r *Rule) bool {
	anyRemote := c.Names.Default != Local || len(c.Names.Remote)+len(c.Names.LocalThenRemote) > 0
	if len(r.To) == 0 {
		return anyRemote
	}
	return slices.ContainsFunc(r.To, func(d rule.Dest) bool {
		if d.Kind == rule.ExactName {
			return c.NameMode(d.Name) != Local
		}
		return d.Kind != rule.Addresses && anyRemote
	})
}

// secretWarnings finds passwords that others on this machine can read.
func (d *decoder) secretWarnings(readable bool) Errors {
	var ws Errors
	if readable && d.inline != (place{}) {
		ws = append(ws, d.newError(d.inline, "a password stands here, and every user of this machine may read the file", "write {file: PATH}, or make the file readable by its owner only"))
	}
	for _, f := range d.secretFiles {
		ws = append(ws, d.newError(f.at, fmt.Sprintf("every user of this machine may read %s", f.text), "make the file readable by its owner only"))
	}
	return ws
}
