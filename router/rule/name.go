package rule

import "iter"

// OfName yields the verdicts that flows to a canonical name can get while nothing
// else is known of them, neither port nor source nor any address: those of the
// rules that match the name, in their order, up to the first that has no other
// condition. Where every one of them has, the last is that no rule matches.
//
// So the one verdict of a name that has only one is that of all its flows.
func (t *Table) OfName(name string) iter.Seq[Verdict] {
	return func(yield func(Verdict) bool) {
		for i := range t.compiled {
			c := &t.compiled[i]
			if c.to != nil && !c.to.hasName(name) {
				continue
			}
			if !yield(t.verdict(i)) || c.anyFlow() {
				return
			}
		}
		yield(noMatch)
	}
}

// SameOfName reports whether two canonical names have the same verdicts, whatever
// else is known of their flows: the same rules match them.
func (t *Table) SameOfName(a, b string) bool {
	next, stop := iter.Pull(t.OfName(b))
	defer stop()
	for v := range t.OfName(a) {
		if other, ok := next(); !ok || other != v {
			return false
		}
	}
	_, more := next()
	return !more
}

// anyFlow reports whether there is no condition but perhaps To.
func (c *compiled) anyFlow() bool {
	return c.network == 0 && len(c.ports) == 0 && c.from == nil && c.who.trivial
}
