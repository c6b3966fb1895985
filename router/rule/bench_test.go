package rule

import (
	"fmt"
	"net/netip"
	"testing"

	"tunroute/router/flow"
)

// benchTable returns n rules of the kinds that people write, none of which
// matches benchFlow, and one that does.
func benchTable(tb testing.TB, n int) *Table {
	var rules []Rule
	for i := range n {
		r := Rule{Via: "p1", Line: i + 1}
		switch i % 4 {
		case 0:
			r.To = []Dest{mustDest(tb, fmt.Sprintf(".corp%d.example", i))}
		case 1:
			r.To = []Dest{mustDest(tb, fmt.Sprintf("10.%d.%d.0/24", i/256%256, i%256))}
		case 2:
			r.To = []Dest{mustDest(tb, fmt.Sprintf("www%d.example.net", i)), mustDest(tb, fmt.Sprintf("api%d.example.net", i))}
		case 3:
			r.From = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", i%256))}
			r.Ports = []PortRange{{22, 22}, {80, 80}, {443, 443}}
		}
		rules = append(rules, r)
	}
	return mustCompile(tb, append(rules, Rule{Via: "direct", Line: n + 1}))
}

var (
	benchFlow  = flow.Flow{Network: flow.TCP, Source: netip.MustParseAddrPort("172.16.0.2:40000"), Target: flow.Target{Name: "static.cdn.example.org", Port: 443}}
	benchFlow4 = flow.Flow{Network: flow.TCP, Source: netip.MustParseAddrPort("172.16.0.2:40000"), Target: flow.Target{Addr: netip.MustParseAddr("203.0.113.7"), Port: 443}}
)

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000} {
		table := benchTable(b, n)
		for _, c := range []struct {
			name string
			flow *flow.Flow
		}{{"name", &benchFlow}, {"address", &benchFlow4}} {
			b.Run(fmt.Sprintf("rules=%d/%s", n, c.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if v := table.Match(c.flow); v.Index != n {
						b.Fatalf("got %+v, want rule %d", v, n)
					}
				}
			})
		}
	}
	b.Run("names=100000", func(b *testing.B) {
		var r Rule
		for i := range 100_000 {
			r.To = append(r.To, mustDest(b, fmt.Sprintf(".d%d.example.org", i)))
		}
		r.Via = "p1"
		table := mustCompile(b, []Rule{r})
		f := flow.Flow{Network: flow.TCP, Target: flow.Target{Name: "a.b.d99999.example.org", Port: 443}}
		b.ReportAllocs()
		for b.Loop() {
			if v := table.Match(&f); v.Index != 0 {
				b.Fatalf("got %+v, want rule 0", v)
			}
		}
	})
	b.Run("prefixes=10000", func(b *testing.B) {
		var r Rule
		for i := range 10_000 {
			r.To = append(r.To, mustDest(b, fmt.Sprintf("%d.%d.%d.0/24", 11+i/2500, i/250%10, i%250)))
		}
		r.Via = "p1"
		table := mustCompile(b, []Rule{r})
		f := flow.Flow{Network: flow.TCP, Target: flow.Target{Addr: netip.MustParseAddr("13.4.5.6"), Port: 443}}
		b.ReportAllocs()
		for b.Loop() {
			if v := table.Match(&f); v.Index != 0 {
				b.Fatalf("got %+v, want rule 0", v)
			}
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	var r Rule
	for i := range 100_000 {
		r.To = append(r.To, mustDest(b, fmt.Sprintf(".d%d.example.org", i)))
	}
	r.Via = "p1"
	b.ReportAllocs()
	for b.Loop() {
		mustCompile(b, []Rule{r})
	}
}

func mustDest(tb testing.TB, s string) Dest {
	tb.Helper()
	d, err := ParseDest(s)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func mustCompile(tb testing.TB, rules []Rule) *Table {
	tb.Helper()
	t, err := Compile(rules)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}
