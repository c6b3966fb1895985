package rule

import (
	"slices"
	"strings"

	"tunroute/router/flow"
)

// NameTable finds the most specific entry for a name: the name itself before
// any suffix, a longer suffix before a shorter one, "every name" last.
//
// The zero NameTable is empty and ready to use. Look-ups are safe for
// concurrent use once nothing is inserted any more; they do not allocate.
type NameTable[V any] struct {
	exact map[string]V // by name
	below map[string]V // by the name of a NameAndBelow
	every *V
}

// Insert adds an entry, in place of an equal one. It takes the kinds ExactName,
// NameAndBelow and EveryName and ignores the others. A name with letters beyond
// ASCII goes in under its "xn--" form as well.
func (t *NameTable[V]) Insert(d Dest, v V) {
	switch d.Kind {
	case EveryName:
		t.every = &v
	case ExactName:
		insertBoth(&t.exact, d.Name, v)
	case NameAndBelow:
		insertBoth(&t.below, d.Name, v)
	}
}

func insertBoth[V any](m *map[string]V, name string, v V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[name] = v
	if ascii, err := toASCII(name); err == nil {
		(*m)[ascii] = v
	}
}

// Lookup returns the entry for a canonical name.
func (t *NameTable[V]) Lookup(name string) (V, bool) {
	if v, ok := t.exact[name]; ok {
		return v, true
	}
	return t.LookupBelow(name)
}

// LookupService is Lookup for what may be the name of a service, as
// _imaps._tcp.example.org is: it goes as its host unless it has an entry of its own.
func (t *NameTable[V]) LookupService(name string) (V, bool) {
	for host := Host(name); name != host; _, name, _ = strings.Cut(name, ".") {
		if v, ok := t.exact[name]; ok {
			return v, true
		}
		if v, ok := t.below[name]; ok {
			return v, true
		}
	}
	return t.Lookup(name)
}

// Host returns the name that rules are about where a canonical name is that of a
// service of it, as _imaps._tcp.example.org is.
func Host(name string) string {
	for strings.HasPrefix(name, "_") {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	return name
}

// LookupBelow is Lookup without the ExactName entries: its answer holds for
// name and for everything below it that has no entry of its own.
func (t *NameTable[V]) LookupBelow(name string) (V, bool) {
	if len(t.below) > 0 {
		for rest, more := name, true; more; _, rest, more = strings.Cut(rest, ".") {
			if v, ok := t.below[rest]; ok {
				return v, true
			}
		}
	}
	if t.every != nil {
		return *t.every, true
	}
	var none V
	return none, false
}

// patterns is a set of names in which "*" stands for any one label.
//
// A look-up does not walk the patterns but their shapes: how many labels, and
// which of them are stars. Lists have many patterns and few shapes.
type patterns struct {
	names  map[string]struct{}
	shapes []shape
}

type shape struct {
	labels int
	stars  []uint8 // the positions of the stars, ascending; a name has at most 128 labels
}

func (p *patterns) insert(name string) {
	if p.names == nil {
		p.names = make(map[string]struct{})
	}
	p.names[name] = struct{}{}
	if ascii, err := toASCII(name); err == nil {
		p.names[ascii] = struct{}{}
	}
	s := shape{labels: strings.Count(name, ".") + 1}
	i := uint8(0)
	for label := range strings.SplitSeq(name, ".") {
		if label == "*" {
			s.stars = append(s.stars, i)
		}
		i++
	}
	if !slices.ContainsFunc(p.shapes, func(o shape) bool {
		return o.labels == s.labels && slices.Equal(o.stars, s.stars)
	}) {
		p.shapes = append(p.shapes, s)
	}
}

func (p *patterns) contains(name string) bool {
	if len(p.shapes) == 0 || len(name) > flow.MaxName {
		return false
	}
	labels := strings.Count(name, ".") + 1
	for _, s := range p.shapes {
		if s.labels != labels {
			continue
		}
		// The name with stars where the shape has them. A star is not
		// longer than the label it replaces, unless that one is empty.
		var buf [flow.MaxName + 128]byte
		masked, rest, stars := buf[:0], name, s.stars
		for i := range labels {
			var label string
			label, rest, _ = strings.Cut(rest, ".")
			if i > 0 {
				masked = append(masked, '.')
			}
			if len(stars) > 0 && int(stars[0]) == i {
				stars = stars[1:]
				label = "*"
			}
			masked = append(masked, label...)
		}
		if _, ok := p.names[string(masked)]; ok {
			return true
		}
	}
	return false
}
