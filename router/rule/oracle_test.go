package rule

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tunroute/router/flow"
)

// textRule is a rule as a config writes it. The oracle reads the texts itself,
// one after the other and in the most obvious way, and shares no code with the
// package.
type textRule struct {
	from, to, port []string
	proto          string

	command, inbound, user, group []string
}

func (r textRule) matches(f *flow.Flow) bool {
	if r.proto != "" && r.proto != f.Network.String() {
		return false
	}
	command := map[flow.Network]string{flow.TCP: "connect", flow.UDP: "udp"}[f.Network]
	if f.Command == flow.Bind {
		command = "bind"
	}
	if !anyOf(r.command, func(s string) bool { return s == command }) ||
		!anyOf(r.inbound, func(s string) bool { return s == f.Inbound }) ||
		!anyOf(r.user, func(s string) bool { return s == f.User || s == "*" && f.User != "" }) ||
		!anyOf(r.group, func(s string) bool { return slices.Contains(f.Groups, s) }) {
		return false
	}
	return anyOf(r.port, func(s string) bool {
		lo, hi, ok := strings.Cut(s, "-")
		if !ok {
			hi = lo
		}
		first, _ := strconv.Atoi(lo)
		last, _ := strconv.Atoi(hi)
		return first <= int(f.Target.Port) && int(f.Target.Port) <= last
	}) && anyOf(r.from, func(s string) bool {
		return netip.MustParsePrefix(s).Contains(f.Source.Addr())
	}) && anyOf(r.to, func(s string) bool {
		return oracleTo(s, f.Target)
	})
}

// anyOf is true for an empty list too.
func anyOf(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}

func oracleTo(s string, t flow.Target) bool {
	if p, err := netip.ParsePrefix(s); err == nil {
		return t.Addr.IsValid() && p.Contains(t.Addr)
	}
	if t.Name == "" {
		return false
	}
	switch {
	case s == ".":
		return true
	case s[0] == '.':
		return t.Name == s[1:] || strings.HasSuffix(t.Name, s)
	}
	want, have := strings.Split(s, "."), strings.Split(t.Name, ".")
	return slices.EqualFunc(want, have, func(w, h string) bool { return w == "*" || w == h })
}

// The generators draw from few values, so that rules and flows meet often.

func randomName(r *rand.Rand, labels ...string) string {
	var name []string
	for range 1 + r.IntN(4) {
		name = append(name, labels[r.IntN(len(labels))])
	}
	return strings.Join(name, ".")
}

func randomAddr(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(4)) << 6, byte(r.IntN(4))})
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::%x", r.IntN(4)<<14, r.IntN(4)))
}

func randomPrefix(r *rand.Rand) string {
	a := randomAddr(r)
	p, err := a.Prefix(r.IntN(a.BitLen() + 1))
	if err != nil {
		panic(err)
	}
	return p.String()
}

func randomDest(r *rand.Rand) string {
	switch r.IntN(6) {
	case 0:
		return "."
	case 1:
		return "." + randomName(r, "a", "b", "c")
	case 2:
		return randomName(r, "a", "b", "c")
	case 3:
		if name := randomName(r, "a", "b", "*"); name != "*" {
			return name
		}
		return "a.*"
	}
	return randomPrefix(r)
}

func several(r *rand.Rand, draw func(*rand.Rand) string) []string {
	var list []string
	if r.IntN(2) == 0 {
		for range 1 + r.IntN(4) {
			list = append(list, draw(r))
		}
	}
	return list
}

// few draws from words, but mostly nothing.
func few(r *rand.Rand, words ...string) []string {
	if r.IntN(4) > 0 {
		return nil
	}
	return several(r, func(r *rand.Rand) string { return words[r.IntN(len(words))] })
}

func randomRule(r *rand.Rand) textRule {
	return textRule{
		from: several(r, randomPrefix),
		to:   several(r, randomDest),
		port: several(r, func(r *rand.Rand) string {
			first := 1 + r.IntN(20)
			if r.IntN(2) == 0 {
				return strconv.Itoa(first)
			}
			return fmt.Sprintf("%d-%d", first, first+r.IntN(6))
		}),
		proto:   []string{"", "", "tcp", "udp"}[r.IntN(4)],
		command: few(r, "connect", "bind", "udp"),
		inbound: few(r, "tun", "socks", "lan"),
		user:    few(r, "u", "v", "*"),
		group:   few(r, "g", "h"),
	}
}

func randomFlow(r *rand.Rand) *flow.Flow {
	f := &flow.Flow{
		Network: flow.TCP + flow.Network(r.IntN(2)),
		Source:  netip.AddrPortFrom(randomAddr(r), 40000),
		Target:  flow.Target{Port: uint16(1 + r.IntN(25))},
	}
	f.Inbound = []string{"tun", "socks", "lan"}[r.IntN(3)]
	if f.Network == flow.TCP && r.IntN(4) == 0 {
		f.Command = flow.Bind
	}
	if f.Inbound != "tun" && r.IntN(2) == 0 {
		f.User = []string{"u", "v", "w"}[r.IntN(3)]
		f.Groups = [][]string{nil, {"g"}, {"g", "h"}, {"i", "h"}}[r.IntN(4)]
	}
	known := 1 + r.IntN(3) // 1: the name, 2: the address, 3: both
	if known&1 != 0 {
		f.Target.Name = randomName(r, "a", "b", "c", "d")
	}
	if known&2 != 0 {
		f.Target.Addr = randomAddr(r)
	}
	return f
}

func (r textRule) compile(t *testing.T) Rule {
	var fields []string
	for key, list := range map[string][]string{
		"from": r.from, "to": r.to, "port": r.port,
		"command": r.command, "inbound": r.inbound, "user": r.user, "group": r.group,
	} {
		if list != nil {
			fields = append(fields, key+"="+strings.Join(list, "|"))
		}
	}
	if r.proto != "" {
		fields = append(fields, "proto="+r.proto)
	}
	return parseRule(t, strings.Join(append(fields, "via=x"), " "))
}

func TestMatchAgreesWithTheOracle(t *testing.T) {
	const tables, flows = 300, 200
	matched := 0
	for seed := range uint64(tables) {
		r := rand.New(rand.NewPCG(seed, 1))
		var texts []textRule
		var rules []Rule
		for range 1 + r.IntN(8) {
			text := randomRule(r)
			texts, rules = append(texts, text), append(rules, text.compile(t))
		}
		table := mustCompile(t, rules)
		shadowed := make(map[int]int)
		for i, by := range table.Shadowed() {
			shadowed[i] = by
		}
		for range flows {
			f := randomFlow(r)
			want := slices.IndexFunc(texts, func(r textRule) bool { return r.matches(f) })
			got := table.Match(f)
			if got.Index != want {
				t.Fatalf("seed %d: flow %+v\nrules %+v\ngot rule %d, want %d", seed, f, texts, got.Index, want)
			}
			if want >= 0 {
				matched++
			}
			steps := table.Explain(f)
			last := steps[len(steps)-1]
			if last.Verdict != got || !last.Matched || len(steps) != want+1 && want >= 0 {
				t.Fatalf("seed %d: flow %+v\nrules %+v\nMatch says %+v, Explain %+v", seed, f, texts, got, steps)
			}
			for _, s := range steps[:len(steps)-1] {
				if s.Matched || s.Key == "" || s.Reason == "" {
					t.Fatalf("seed %d: flow %+v\nrules %+v\na step before the last says %+v", seed, f, texts, s)
				}
			}
			for i, by := range shadowed {
				if texts[i].matches(f) && !texts[by].matches(f) {
					t.Fatalf("seed %d: flow %+v\nrules %+v\nrule %d is said to be shadowed by rule %d, and is not", seed, f, texts, i, by)
				}
			}
		}
	}
	if total := tables * flows; matched < total/5 || matched > total*4/5 {
		t.Errorf("%d of %d flows matched: the generators are out of tune", matched, total)
	}
}

func TestNameTablePrefersTheLongest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var table NameTable[string]
		var entries []string
		for range r.IntN(8) {
			s := randomDest(r)
			d := mustDest(t, s)
			if d.Kind == Addresses || d.Kind == NamePattern {
				continue
			}
			entries = append(entries, s)
			table.Insert(d, s)
		}
		for range 50 {
			name := randomName(r, "a", "b", "c", "d")
			want := ""
			for _, e := range entries {
				// "a.b" is more specific than ".a.b", and that than ".b".
				rank := func(s string) int { return 2*len(strings.TrimPrefix(s, ".")) - strings.Count(s[:min(1, len(s))], ".") }
				if oracleTo(e, flow.Target{Name: name}) && (want == "" || rank(e) > rank(want)) {
					want = e
				}
			}
			if got, ok := table.Lookup(name); got != want || ok != (want != "") {
				t.Fatalf("entries %q, name %q: got %q, want %q", entries, name, got, want)
			}
		}
	}
}

// TestNamesOfServices: they go as their host, unless a list has them themselves.
func TestNamesOfServices(t *testing.T) {
	var table NameTable[string]
	for _, s := range []string{".a", "b.a", "_x.b.a", "._msdcs.b.a", "=_tcp.c.a"} {
		table.Insert(mustDest(t, s), s)
	}
	for name, want := range map[string]string{
		"b.a":                   "b.a",
		"_443._https.b.a":       "b.a",
		"_x.b.a":                "_x.b.a",
		"_y._x.b.a":             "_x.b.a",
		"w.b.a":                 ".a",
		"_y.w.b.a":              ".a",
		"_msdcs.b.a":            "._msdcs.b.a",
		"_ldap._tcp._msdcs.b.a": "._msdcs.b.a",
		"_ldap.dc._msdcs.b.a":   "._msdcs.b.a",
		"_tcp.c.a":              "=_tcp.c.a",
		"_smtp._tcp.other":      "",
		"_x":                    "",
		"_.":                    "",
	} {
		if got, ok := table.LookupService(name); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
