package rule

import (
	"fmt"
	"strings"

	"tunroute/router/flow"
)

// Step is what one rule did with a flow.
type Step struct {
	Verdict        // what the rule says to the flows that it matches
	Matched bool   // whether this flow is one of them
	Key     string // the condition that did not hold: "proto", "port", "from", "command", "inbound", "user", "group" or "to"; "" if Matched
	Reason  string // what there was and what the rule wants instead; for people
}

// String returns, for example,
// "rule 2 (line 14, via p1): port 443 is not 80".
func (s Step) String() string {
	if s.Index < 0 {
		return s.Reason
	}
	line := ""
	if s.Line > 0 {
		line = fmt.Sprintf("line %d, ", s.Line)
	}
	return fmt.Sprintf("rule %d (%svia %s): %s", s.Index+1, line, s.Via, s.Reason)
}

// Explain tells how [Table.Match] comes to its verdict: a Step for each rule up
// to the one that decides, which comes last and is the only one with Matched
// set. Where no rule matches, the last Step has the Verdict that says so.
//
// A rule may fail for several reasons; the Step has the first of them, in the
// order of [Step.Key].
func (t *Table) Explain(f *flow.Flow) []Step {
	src, dst := plain(f.Source.Addr()), plain(f.Target.Addr)
	var steps []Step
	for i := range t.compiled {
		c, r := &t.compiled[i], &t.rules[i]
		step := Step{Verdict: t.verdict(i)}
		switch {
		case !c.networkMatches(f.Network):
			step.Key, step.Reason = "proto", fmt.Sprintf("%s is not %s", f.Network, r.Network)
		case !c.portMatches(f.Target.Port):
			step.Key, step.Reason = "port", fmt.Sprintf("port %d is not %s", f.Target.Port, list(r.Ports))
		case !src.IsValid() && c.from != nil:
			step.Key, step.Reason = "from", "the source is not known"
		case !c.fromMatches(src):
			step.Key, step.Reason = "from", fmt.Sprintf("source %s is not in %s", src, list(r.From))
		case !c.who.matches(f):
			step.Key, step.Reason = c.who.whyNot(f, r)
		case !c.toMatches(f.Target.Name, dst):
			step.Key, step.Reason = "to", c.to.whyNot(f.Target, r.To)
		default:
			step.Matched, step.Reason = true, "matches"
			return append(steps, step)
		}
		steps = append(steps, step)
	}
	return append(steps, Step{Verdict: noMatch, Matched: true, Reason: "no rule matches: " + Reject})
}

// whyNot says why a target is none of the destinations.
func (d *dests) whyNot(t flow.Target, to []Dest) string {
	hasNames := len(d.names.exact)+len(d.names.below)+len(d.patterns.names) > 0 || d.names.every != nil
	switch {
	case !t.Addr.IsValid() && !hasNames:
		return fmt.Sprintf("only the name %s is known, and the rule wants an address in %s", t.Name, list(to))
	case t.Name == "" && d.addrs == nil:
		return fmt.Sprintf("only the address %s is known, and the rule wants a name: %s", t.Addr, list(to))
	case t.Name != "" && t.Addr.IsValid():
		return fmt.Sprintf("neither %s nor %s is in %s", t.Name, t.Addr, list(to))
	}
	return fmt.Sprintf("%s is not in %s", t.Host(), list(to))
}

// list writes the first entries of a condition.
func list[E fmt.Stringer](entries []E) string {
	const shown = 3 // what fits on a line with the rest
	var b strings.Builder
	for i, e := range entries {
		if i == shown {
			fmt.Fprintf(&b, " or %d more", len(entries)-shown)
			break
		}
		if i > 0 {
			b.WriteString(" or ")
		}
		b.WriteString(e.String())
	}
	return b.String()
}
