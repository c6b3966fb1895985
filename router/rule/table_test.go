package rule

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tunroute/router/flow"
)

// parseRule reads "from=… to=… port=… proto=… via=…", lists with "|" between.
func parseRule(t testing.TB, s string) Rule {
	t.Helper()
	var r Rule
	for field := range strings.FieldsSeq(s) {
		key, values, _ := strings.Cut(field, "=")
		for v := range strings.SplitSeq(values, "|") {
			switch key {
			case "from":
				p, err := ParseFrom(v)
				if err != nil {
					t.Fatal(err)
				}
				r.From = append(r.From, p)
			case "to":
				r.To = append(r.To, mustDest(t, v))
			case "port":
				ports, err := ParsePorts(v)
				if err != nil {
					t.Fatal(err)
				}
				r.Ports = append(r.Ports, ports...)
			case "proto":
				r.Network = map[string]flow.Network{"tcp": flow.TCP, "udp": flow.UDP}[v]
			case "command":
				r.Commands = append(r.Commands, map[string]flow.Command{"connect": flow.Connect, "bind": flow.Bind, "udp": flow.Associate}[v])
			case "inbound":
				r.Inbounds = append(r.Inbounds, v)
			case "user":
				r.Users = append(r.Users, v)
			case "group":
				r.Groups = append(r.Groups, v)
			case "via":
				r.Via = v
			default:
				t.Fatalf("no key %q in a rule", key)
			}
		}
	}
	return r
}

// parseTable reads one rule a line; the lines are counted from 1.
func parseTable(t testing.TB, s string) *Table {
	t.Helper()
	var rules []Rule
	for i, line := range strings.Split(strings.TrimSpace(s), "\n") {
		r := parseRule(t, line)
		r.Line = i + 1
		rules = append(rules, r)
	}
	return mustCompile(t, rules)
}

// parseFlow reads "tcp 10.0.0.2 example.org:443".
func parseFlow(t testing.TB, s string) *flow.Flow {
	t.Helper()
	fields := strings.Fields(s)
	target, err := flow.ParseTarget(fields[2])
	if err != nil {
		t.Fatal(err)
	}
	return &flow.Flow{
		Network: map[string]flow.Network{"tcp": flow.TCP, "udp": flow.UDP}[fields[0]],
		Source:  netip.AddrPortFrom(netip.MustParseAddr(fields[1]), 40000),
		Target:  target,
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct{ name, rules, flow, via string }{
		{"the first that matches decides", "to=.org via=a\nto=.example.org via=b", "tcp 10.0.0.2 www.example.org:80", "a"},
		{"no rule matches", "to=.net via=a", "tcp 10.0.0.2 example.org:80", "reject"},
		{"a rule without conditions matches everything", "via=a", "udp 10.0.0.2 192.0.2.1:53", "a"},
		{"suffix: the domain itself", "to=.example.org via=a", "tcp 10.0.0.2 example.org:80", "a"},
		{"suffix: far below", "to=.example.org via=a", "tcp 10.0.0.2 a.b.c.example.org:80", "a"},
		{"suffix: labels, not letters", "to=.example.org via=a", "tcp 10.0.0.2 badexample.org:80", "reject"},
		{"suffix: not above", "to=.example.org via=a", "tcp 10.0.0.2 org:80", "reject"},
		{"a bare name is that name only", "to=example.org via=a", "tcp 10.0.0.2 www.example.org:80", "reject"},
		{"case and trailing dot do not count", "to=EXAMPLE.org. via=a", "tcp 10.0.0.2 Example.Org.:80", "a"},
		{"a star is one label", "to=*.example.org via=a", "tcp 10.0.0.2 www.example.org:80", "a"},
		{"a star is not two labels", "to=*.example.org via=a", "tcp 10.0.0.2 a.www.example.org:80", "reject"},
		{"a star is not nothing", "to=*.example.org via=a", "tcp 10.0.0.2 example.org:80", "reject"},
		{"stars inside", "to=db.*.eu.* via=a", "tcp 10.0.0.2 db.paris.eu.example:80", "a"},
		{"every name", "to=. via=a", "tcp 10.0.0.2 example.org:80", "a"},
		{"every name, but no address", "to=. via=a", "tcp 10.0.0.2 192.0.2.1:80", "reject"},
		{"every address, but no name", "to=0.0.0.0/0|::/0 via=a", "tcp 10.0.0.2 example.org:80", "reject"},
		{"every IPv4 address is no IPv6 address", "to=0.0.0.0/0 via=a", "tcp 10.0.0.2 [2001:db8::1]:80", "reject"},
		{"prefix", "to=192.0.2.0/24 via=a", "tcp 10.0.0.2 192.0.2.255:80", "a"},
		{"an address written as IPv6", "to=192.0.2.0/24 via=a", "tcp 10.0.0.2 [::ffff:192.0.2.1]:80", "a"},
		{"an address with a zone", "to=fe80::/10 via=a", "tcp 10.0.0.2 [fe80::1%1]:80", "a"},
		{"a source with a zone", "from=fe80::/10 via=a", "tcp fe80::2%1 example.org:80", "a"},
		{"a source written as IPv6", "from=10.0.0.0/8 via=a", "tcp ::ffff:10.0.0.2 example.org:80", "a"},
		{"letters beyond ASCII, as written", "to=.bücher.example via=a", "tcp 10.0.0.2 www.bücher.example:80", "a"},
		{"letters beyond ASCII, as DNS has them", "to=.bücher.example via=a", "tcp 10.0.0.2 www.xn--bcher-kva.example:80", "a"},
		{"letters beyond ASCII in a pattern", "to=*.bücher.example via=a", "tcp 10.0.0.2 www.xn--bcher-kva.example:80", "a"},
		{"all keys must match", "from=10.0.0.0/8 to=.org port=443 proto=tcp via=a", "tcp 10.0.0.2 example.org:443", "a"},
		{"one key does not: proto", "from=10.0.0.0/8 to=.org port=443 proto=tcp via=a", "udp 10.0.0.2 example.org:443", "reject"},
		{"one key does not: port", "from=10.0.0.0/8 to=.org port=443 proto=tcp via=a", "tcp 10.0.0.2 example.org:80", "reject"},
		{"one key does not: from", "from=10.0.0.0/8 to=.org port=443 proto=tcp via=a", "tcp 11.0.0.2 example.org:443", "reject"},
		{"one entry of a list is enough", "to=.net|.org port=80|8000-8100|https via=a", "tcp 10.0.0.2 example.org:8050", "a"},
		{"the end of a range", "port=1-1023 via=a", "tcp 10.0.0.2 example.org:1023", "a"},
		{"behind a range", "port=1-1023 via=a", "tcp 10.0.0.2 example.org:1024", "reject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if v := parseTable(t, c.rules).Match(parseFlow(t, c.flow)); v.Via != c.via {
				t.Errorf("%s\nrules\n%s\ngot %+v, want via %s", c.flow, c.rules, v, c.via)
			}
		})
	}
}

func TestNameAndAddressTogether(t *testing.T) {
	f := parseFlow(t, "tcp 10.0.0.2 example.org:80")
	f.Target.Addr = netip.MustParseAddr("192.0.2.1")
	for _, to := range []string{".org", "192.0.2.0/24", ".", "0.0.0.0/0", ".net|192.0.2.1"} {
		if v := parseTable(t, "to="+to+" via=a").Match(f); v.Via != "a" {
			t.Errorf("to %s: got %+v, want a match", to, v)
		}
	}
}

func TestVerdictNamesTheRule(t *testing.T) {
	table := parseTable(t, "to=.net via=a\nto=.org via=b")
	if got, want := table.Match(parseFlow(t, "tcp 10.0.0.2 example.org:80")), (Verdict{Index: 1, Line: 2, Via: "b"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := table.Match(parseFlow(t, "tcp 10.0.0.2 example.com:80")), (Verdict{Index: -1, Via: "reject"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCompileRefusesWhatTheParsersCannotMake(t *testing.T) {
	for _, c := range []struct {
		name string
		rule Rule
		want string
	}{
		{"no outbound", Rule{}, "no outbound"},
		{"network", Rule{Via: "a", Network: 3}, "neither tcp nor udp"},
		{"zero destination", Rule{Via: "a", To: []Dest{{}}}, "without a kind"},
		{"name in capitals", Rule{Via: "a", To: []Dest{{Kind: ExactName, Name: "A"}}}, "canonical form"},
		{"literal as a name", Rule{Via: "a", To: []Dest{{Kind: ExactName, Name: "10.0.0.1"}}}, "canonical form"},
		{"bits behind the prefix", Rule{Via: "a", To: []Dest{{Kind: Addresses, Prefix: netip.MustParsePrefix("10.0.0.1/8")}}}, "bits set"},
		{"zero source", Rule{Via: "a", From: make([]netip.Prefix, 1)}, "masked, unmapped prefix"},
		{"mapped source", Rule{Via: "a", From: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, "masked, unmapped prefix"},
		{"range", Rule{Via: "a", Ports: []PortRange{{2, 1}}}, "ends before"},
	} {
		c.rule.Line = 7
		_, err := Compile([]Rule{{Via: "ok"}, c.rule})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "rule 2 (line 7): ") {
			t.Errorf("%s: got error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestTableKeepsNothingOfTheCaller(t *testing.T) {
	rules := []Rule{parseRule(t, "from=10.0.0.0/8 to=.org port=80 via=a")}
	table := mustCompile(t, rules)
	rules[0].To[0] = mustDest(t, ".net")
	rules[0].From[0] = netip.MustParsePrefix("192.0.2.0/24")
	rules[0].Ports[0] = PortRange{1, 1}
	f := parseFlow(t, "tcp 10.0.0.2 example.org:81")
	if got := table.Explain(f)[0].Reason; got != "port 81 is not 80" {
		t.Errorf("got %q", got)
	}
}

func TestExplain(t *testing.T) {
	table := parseTable(t, `proto=udp via=a
port=80|8000-8100 via=a
from=192.168.0.0/16|10.1.0.0/16 via=a
to=10.0.0.0/8 via=a
to=.net|.com|.eu|.de|.fr via=a
to=.org via=b
via=c`)
	var got []string
	for _, s := range table.Explain(parseFlow(t, "tcp 10.0.0.2 example.org:443")) {
		got = append(got, s.Key+": "+s.String())
	}
	want := []string{
		"proto: rule 1 (line 1, via a): tcp is not udp",
		"port: rule 2 (line 2, via a): port 443 is not 80 or 8000-8100",
		"from: rule 3 (line 3, via a): source 10.0.0.2 is not in 192.168.0.0/16 or 10.1.0.0/16",
		"to: rule 4 (line 4, via a): only the name example.org is known, and the rule wants an address in 10.0.0.0/8",
		"to: rule 5 (line 5, via a): example.org is not in .net or .com or .eu or 2 more",
		": rule 6 (line 6, via b): matches",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestExplainWithoutMatch(t *testing.T) {
	table := parseTable(t, "to=.net via=a\nto=*.net|. via=a\nfrom=10.0.0.0/8 via=a")
	f := &flow.Flow{Network: flow.TCP, Target: flow.Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80}}
	var got []string
	for _, s := range table.Explain(f) {
		got = append(got, s.String())
	}
	want := []string{
		"rule 1 (line 1, via a): only the address 192.0.2.1 is known, and the rule wants a name: .net",
		"rule 2 (line 2, via a): only the address 192.0.2.1 is known, and the rule wants a name: *.net or .",
		"rule 3 (line 3, via a): the source is not known",
		"no rule matches: reject",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestShadowed(t *testing.T) {
	for _, c := range []struct {
		first, second string
		want          bool
	}{
		{"via=a", "to=.org via=b", true},
		{"via=a", "via=b", true},
		{"to=.org via=a", "to=.example.org via=b", true},
		{"to=.org via=a", "to=*.example.org|www.org|.a.org via=b", true},
		{"to=.org via=a", "to=.org|.net via=b", false},
		{"to=.example.org via=a", "to=.org via=b", false},
		{"to=example.org via=a", "to=.example.org via=b", false},
		{"to=*.example.org via=a", "to=www.example.org|*.example.org via=b", true},
		{"to=*.example.org via=a", "to=.example.org via=b", false},
		{"to=. via=a", "to=.org|x|*.y|. via=b", true},
		{"to=.org via=a", "to=. via=b", false},
		{"to=. via=a", "to=10.0.0.1 via=b", false},
		{"to=10.0.0.0/8 via=a", "to=10.1.0.0/16|10.0.0.1 via=b", true},
		{"to=10.1.0.0/16 via=a", "to=10.0.0.0/8 via=b", false},
		{"to=0.0.0.0/0|::/0 via=a", "via=b", false},
		{"port=80 via=a", "port=80 via=b", true},
		{"port=1-79|80-90 via=a", "port=70-85 via=b", true},
		{"port=80 via=a", "via=b", false},
		{"port=80 via=a", "port=80-81 via=b", false},
		{"proto=udp via=a", "via=b", false},
		{"proto=udp via=a", "proto=tcp via=b", false},
		{"proto=udp via=a", "proto=udp port=53 via=b", true},
		{"from=10.0.0.0/8 via=a", "from=10.0.0.2 to=.org via=b", true},
		{"from=10.0.0.0/8 via=a", "to=.org via=b", false},
		{"command=connect|bind via=a", "command=bind via=b", true},
		{"command=bind via=a", "command=connect|bind via=b", false},
		{"command=connect|bind|udp via=a", "via=b", false},
		{"inbound=tun|lan via=a", "inbound=lan user=u via=b", true},
		{"inbound=lan via=a", "user=u via=b", false},
		{"user=* via=a", "user=u via=b", true},
		{"user=u via=a", "user=* via=b", false},
		{"user=u|v via=a", "user=v group=g via=b", true},
		{"user=u via=a", "group=g via=b", false},
		{"group=g|h via=a", "group=h via=b", true},
		{"group=g via=a", "group=g|h via=b", false},
	} {
		var got bool
		for i, by := range parseTable(t, c.first+"\n"+c.second).Shadowed() {
			got = i == 1 && by == 0
		}
		if got != c.want {
			t.Errorf("%q behind %q: shadowed is %t, want %t", c.second, c.first, got, c.want)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	table := benchTable(t, 40)
	pattern := parseTable(t, "to=*.*.cdn.example.org|x.*.example.org|static.*.example.* via=a")
	for _, f := range []*flow.Flow{&benchFlow, &benchFlow4} {
		if n := testing.AllocsPerRun(100, func() { table.Match(f); pattern.Match(f) }); n != 0 {
			t.Errorf("Match of %s: %v allocations", f.Target, n)
		}
	}
	who := parseTable(t, "user=a|b command=bind via=a\ngroup=g|h inbound=tun via=a\nuser=* group=i inbound=lan via=b")
	f := &flow.Flow{Network: flow.TCP, Inbound: "lan", User: "u", Groups: []string{"i"}, Target: benchFlow.Target}
	if n := testing.AllocsPerRun(100, func() { who.Match(f) }); n != 0 || who.Match(f).Via != "b" {
		t.Errorf("Match of a user: %v allocations, %+v", n, who.Match(f))
	}
}

// TestAdmits: whom no rule would let anywhere needs not be spoken with.
func TestAdmits(t *testing.T) {
	for _, c := range []struct {
		rules, source, inbound string
		want                   bool
	}{
		{"via=a", "10.0.0.1", "lan", true},
		{"via=reject", "10.0.0.1", "lan", false},
		{"from=10.0.0.0/8 via=a", "10.0.0.1", "lan", true},
		{"from=10.0.0.0/8 via=a", "11.0.0.1", "lan", false},
		{"from=10.0.0.0/8 via=reject\nvia=a", "10.0.0.1", "lan", false},
		{"from=10.0.0.0/8 port=25 via=reject\nvia=a", "10.0.0.1", "lan", true},
		{"from=10.0.0.0/8 user=u via=reject\nvia=a", "10.0.0.1", "lan", true},
		{"inbound=lan via=reject\nvia=a", "10.0.0.1", "lan", false},
		{"inbound=tun via=reject\nvia=a", "10.0.0.1", "lan", true},
		{"inbound=tun via=a", "10.0.0.1", "lan", false},
		{"user=alice port=80 to=.test via=a", "10.0.0.1", "lan", true},
		{"via=drop\nvia=a", "10.0.0.1", "lan", false},
		{"from=10.0.0.0/8 via=a", "", "unix", false},
		{"from=10.0.0.0/8 via=reject\nvia=a", "", "unix", true},
	} {
		f := flow.Flow{Inbound: c.inbound}
		if c.source != "" {
			f.Source = netip.AddrPortFrom(netip.MustParseAddr(c.source), 4000)
		}
		got := parseTable(t, c.rules).Admits(f, func(via string) bool { return via == "reject" || via == "drop" })
		if got != c.want {
			t.Errorf("%q, from %q by %s: %t, want %t", c.rules, c.source, c.inbound, got, c.want)
		}
	}
}
