package rule

import (
	"iter"
	"strings"
)

// Shadowed yields the rules that can never decide, each with the first earlier
// rule that takes everything it could match (both are indexes from 0).
//
// It compares rule with rule and entry with entry, so that what it yields is
// certain, but it does not find everything: two rules that cover a third one
// between them are not seen, nor two halves of a prefix.
func (t *Table) Shadowed() iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for i := range t.rules {
			for j := range i {
				if t.covers(j, i) {
					if !yield(i, j) {
						return
					}
					break
				}
			}
		}
	}
}

// covers tells whether rule j matches every flow that rule i matches.
func (t *Table) covers(j, i int) bool {
	by, ofRule, of := &t.compiled[j], &t.rules[i], &t.compiled[i]
	if by.network != 0 && by.network != of.network || !by.who.covers(&of.who) {
		return false
	}
	if len(by.ports) > 0 {
		if len(of.ports) == 0 {
			return false
		}
		for _, r := range of.ports {
			if !by.portsCover(r) {
				return false
			}
		}
	}
	if by.from != nil {
		if of.from == nil {
			return false
		}
		for _, p := range ofRule.From {
			if !by.from.LookupPrefix(p) {
				return false
			}
		}
	}
	if by.to != nil {
		if of.to == nil {
			return false
		}
		for _, d := range ofRule.To {
			if !by.to.cover(d) {
				return false
			}
		}
	}
	return true
}

func (c *compiled) portsCover(r PortRange) bool {
	for _, by := range c.ports { // merged, so one range must do
		if by.First <= r.First && r.Last <= by.Last {
			return true
		}
	}
	return false
}

// cover tells whether every target that d matches is in the set.
func (s *dests) cover(d Dest) bool {
	switch d.Kind {
	case Addresses:
		return s.addrs != nil && s.addrs.LookupPrefix(d.Prefix)
	case ExactName:
		return s.hasName(d.Name)
	case NameAndBelow:
		_, ok := s.names.LookupBelow(d.Name)
		return ok
	case NamePattern:
		if _, ok := s.patterns.names[d.Name]; ok {
			return true
		}
		// What follows the last star is a suffix of all its names.
		_, ok := s.names.LookupBelow(strings.TrimPrefix(d.Name[strings.LastIndexByte(d.Name, '*')+1:], "."))
		return ok
	}
	_, ok := s.names.LookupBelow("") // only "every name" is an answer for no name
	return ok
}
