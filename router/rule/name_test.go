package rule

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"tunroute/router/flow"
)

// TestConditionsOfName: a rule that has a condition besides its To does not settle
// what becomes of a name.
func TestConditionsOfName(t *testing.T) {
	conditions := map[string]func(*Rule){
		"From":    func(r *Rule) { r.From = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"Ports":   func(r *Rule) { r.Ports = []PortRange{{80, 80}} },
		"Network": func(r *Rule) { r.Network = flow.TCP },

		"Commands": func(r *Rule) { r.Commands = []flow.Command{flow.Connect} },
		"Inbounds": func(r *Rule) { r.Inbounds = []string{flow.Tun} },
		"Users":    func(r *Rule) { r.Users = []string{"alice"} },
		"Groups":   func(r *Rule) { r.Groups = []string{"staff"} },
	}
	// No conditions for a flow to a name.
	others := []string{"To", "Via", "Helper", "Line"}
	for f := range reflect.TypeFor[Rule]().Fields() {
		set := conditions[f.Name]
		if set == nil {
			if !slices.Contains(others, f.Name) {
				t.Errorf("is Rule.%s a condition? anyFlow has to know, and so does this test", f.Name)
			}
			continue
		}
		r := Rule{Via: "p1"}
		set(&r)
		table, err := Compile([]Rule{r})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Collect(table.OfName("www.test")); len(got) != 2 || got[0].Via != "p1" || got[1] != noMatch {
			t.Errorf("%s: %v, want p1 and then that no rule matches", f.Name, got)
		}
	}
}

// TestOfNameAgreesWithMatch: what a flow gets of which only the name is known is
// one of the verdicts of the name, and all of it where there is one.
func TestOfNameAgreesWithMatch(t *testing.T) {
	const tables, flows = 300, 100
	single, same := 0, 0
	for seed := range uint64(tables) {
		r := rand.New(rand.NewPCG(seed, 2))
		var texts []textRule
		var rules []Rule
		for range 1 + r.IntN(8) {
			text := randomRule(r)
			texts, rules = append(texts, text), append(rules, text.compile(t))
		}
		table := mustCompile(t, rules)
		before := ""
		for range flows {
			f := randomFlow(r)
			if f.Target.Name == "" {
				continue
			}
			f.Target.Addr = netip.Addr{}
			possible := slices.Collect(table.OfName(f.Target.Name))
			if got := table.Match(f); !slices.Contains(possible, got) {
				t.Fatalf("seed %d: flow %+v\nrules %+v\ngot %+v, which is none of %+v", seed, f, texts, got, possible)
			}
			if len(possible) == 1 {
				single++
			}
			if before != "" {
				want := slices.Equal(possible, slices.Collect(table.OfName(before)))
				if want {
					same++
				}
				if got := table.SameOfName(f.Target.Name, before); got != want {
					t.Fatalf("seed %d: rules %+v\n%s and %s have the same verdicts: %v, want %v", seed, texts, f.Target.Name, before, got, want)
				}
			}
			before = f.Target.Name
		}
	}
	if single == 0 || same == 0 {
		t.Errorf("%d names had one verdict, and %d those of another", single, same)
	}
}

// TestOfNameDoesNotAllocate: it is asked for every question about a name.
func TestOfNameDoesNotAllocate(t *testing.T) {
	to := Dest{Kind: NameAndBelow, Name: "example.test"}
	table, err := Compile([]Rule{
		{To: []Dest{to}, Ports: []PortRange{{25, 25}}, Via: "mail"},
		{To: []Dest{{Kind: NamePattern, Name: "*.*.test"}}, Network: flow.UDP, Via: "p2"},
		{To: []Dest{to}, Via: Reject},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		n := 0
		for range table.OfName("www.example.test") {
			n++
		}
		if n != 3 {
			t.Fatalf("%d verdicts", n)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
