package company

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"tunroute/router/interop/lab"
)

// The six requirements of the paper, and what those have seen who are asked for
// something: the servers, the resolvers and the gateways.
func TestRequirements(t *testing.T) {
	lab.NeedRoot(t) // tcpdump does, and exec for another user
	lab.Need(t, "dig", "bind9-dnsutils")
	n := newNetwork(t, 2)
	captures := map[string]*capture{
		"int1": startCapture(t, n.int[0].Node, "corp"),
		"int2": startCapture(t, n.int[1].Node, "corp"),
		"d1":   startCapture(t, n.d1.Node, "corp"),
		"p1":   startCapture(t, n.p1.Node, "sub"),
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			seen := make(map[int]string)
			k.with(t, n.client, config(t), func(c *client) {
				seen[1] = n.direct(t, c)
				seen[2] = n.onlyHTTP(t, c)
				seen[3] = n.balance(t, c)
				seen[5] = n.subsidiary(t, c)
				seen[6] = n.private(t, c, k.name)
			})
			seen[2] += n.refusedByGateway(t, k)
			seen[4] = n.passwords(t, k)
			t.Logf("what others have seen of tunroute %s:\n%s", k.name, table(seen))
		})
	}
	t.Run("on the wire", func(t *testing.T) { checkWire(t, captures) })
}

var requirements = [...]string{
	1: "the company's own network directly",
	2: "of the Internet only HTTP",
	3: "two gateways that share the load and stand in for each other",
	4: "which want user and password",
	5: "the subsidiary through D1",
	6: "its private network through D1 and P1, with names that only P1 knows",
}

// table has a line for each requirement, and one for each thing observed.
func table(seen map[int]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for i, what := range requirements[1:] {
		for line := range strings.Lines(seen[i+1]) {
			fmt.Fprintf(w, "%s\t%s\n", what, strings.TrimSpace(line))
			what = ""
		}
	}
	w.Flush()
	return b.String()
}

// direct is requirement 1. It returns, as all of them do, what was seen.
func (n *network) direct(t *testing.T, c *client) string {
	n.connections(t)
	for _, host := range []string{"lan.corp.example", lanAddr.String()} {
		if got, want := c.get(t, "http://"+host+"/"), page("lan", clientAddr, host); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if at := n.connections(t); at != [3]int{} {
		t.Errorf("connections at int1, int2 and d1: %v, want none", at)
	}
	return fmt.Sprintf("web server of lan: peer=%v, by name and by address\nint1, int2, d1: no connection\n", clientAddr)
}

// connections returns how many have come to int1, int2 and d1 since the last call.
func (n *network) connections(t *testing.T) (at [3]int) {
	t.Helper()
	for i, g := range []*gateway{n.int[0], n.int[1], n.d1} {
		at[i] = g.connections(t)
	}
	return at
}

// onlyHTTP is requirement 2: our own rules let nothing else come to a gateway.
func (n *network) onlyHTTP(t *testing.T, c *client) string {
	n.connections(t)
	for _, port := range []int{8080, 7000} {
		c.fails(t, webAddr, port, unreachable)
	}
	if at := n.connections(t); at != [3]int{} {
		t.Errorf("connections at int1, int2 and d1: %v, want none", at)
	}
	got := c.get(t, "http://www.example.com/")
	if !slices.Contains(n.pages("www.example.com"), got) {
		t.Errorf("port 80: %q", got)
	}
	return fmt.Sprintf("port 80: %sports 8080 and 7000: %q, no connection at int1, int2, d1\n", got, unreachable)
}

// pages are the answers of the web server on the Internet, by gateway.
func (n *network) pages(host string) []string {
	var list []string
	for i := range n.int {
		list = append(list, page("inet", gatewayAddr(i+1), host))
	}
	return list
}

// refusedByGateway is the rest of requirement 2: where our rules let it pass, it is the
// gateway that refuses. No other is asked then.
func (n *network) refusedByGateway(t *testing.T, k kind) (seen string) {
	k.with(t, n.client, config(t, change{", port: http", ""}), func(c *client) {
		n.connections(t)
		logged, said := n.logged(), len(c.tunroute.Log())
		c.fails(t, webAddr, 8080, unreachable)
		at := n.connections(t)
		if at[0]+at[1] != 1 {
			t.Errorf("connections at int1, int2: %v, want one", at[:2])
		}
		g := min(at[1], 1) // the index of who has it
		line := n.int[g].danted.AwaitLog(t, logged[g], "block(2): tcp/connect")
		if !strings.Contains(line, fmt.Sprintf("username%%%s@", user)) || !strings.Contains(line, webAddr.String()+".8080") {
			t.Errorf("danted says %s", line)
		}
		c.tunroute.AwaitLog(t, said, fmt.Sprintf("internet: %s: request: not allowed by the server's rules (reply 2)", n.int[g].Name))
		seen = fmt.Sprintf("without our rule: block(2) at %s, and no connection at the other\n", n.int[g].Name)

		// What the target refuses is no reason to ask another one either.
		logged, said = n.logged(), len(c.tunroute.Log())
		c.fails(t, closedAddr, 80, refused)
		at = n.connections(t)
		if at[0]+at[1] != 1 {
			t.Errorf("closed port: connections at int1, int2: %v, want one", at[:2])
		}
		g = min(at[1], 1)
		c.tunroute.AwaitLog(t, said, fmt.Sprintf("internet: %s: request: connection refused (reply 5)", n.int[g].Name))
		line = n.int[g].danted.AwaitLog(t, logged[g], closedAddr.String()+".80")
		if !strings.Contains(strings.ToLower(line), "refused") {
			t.Errorf("danted says %s", line)
		}
		seen += fmt.Sprintf("a closed port: refused at %s, and no connection at the other\n", n.int[g].Name)
	})
	return seen
}

// logged returns how much the gateways to the Internet have logged.
func (n *network) logged() []int {
	var list []int
	for _, g := range n.int {
		list = append(list, len(g.danted.Log()))
	}
	return list
}

// balance is requirement 3, in short: TestBalance and TestFailover have the rest.
func (n *network) balance(t *testing.T, c *client) string {
	const requests = 40 // that all go to one of two, happens once in 10^11 times
	pages := n.pages("www.example.com")
	count := func(requests int) [2]int {
		var by [2]int
		for range requests {
			got := c.get(t, "http://www.example.com/")
			i := slices.Index(pages, got)
			if i < 0 {
				t.Fatalf("got %q", got)
			}
			by[i]++
		}
		return by
	}
	both := count(requests)
	if both[0] == 0 || both[1] == 0 {
		t.Errorf("of %d requests %v came through int1, int2", requests, both)
	}
	n.int[1].kill(t)
	one := count(10)
	n.int[1].start()
	if one != [2]int{10, 0} {
		t.Errorf("without int2, of 10 requests %v came through int1, int2", one)
	}
	return fmt.Sprintf("web server on the Internet: %d with peer=%v, %d with peer=%v\nint2 killed: %d with peer=%v, none lost\n",
		both[0], gatewayAddr(1), both[1], gatewayAddr(2), one[0], gatewayAddr(1))
}

// passwords is requirement 4.
func (n *network) passwords(t *testing.T, k kind) (seen string) {
	ask := func(name string, want string, changes ...change) {
		k.with(t, n.client, config(t, changes...), func(c *client) {
			logged := n.logged()
			if name == "right" {
				if got := c.get(t, "http://"+webAddr.String()+"/"); !slices.Contains(n.pages(webAddr.String()), got) {
					t.Errorf("got %q", got)
				}
			} else {
				c.fails(t, webAddr, 80, unreachable)
			}
			var lines []string
			for i, g := range n.int {
				if at := g.connections(t); at > 0 {
					line := g.danted.AwaitLog(t, logged[i], want)
					lines = append(lines, g.Name)
					if strings.Contains(line, password) {
						t.Errorf("a password in the log of danted: %s", line)
					}
				}
			}
			if len(lines) == 0 {
				t.Fatal("no gateway was asked")
			}
			seen += fmt.Sprintf("%s: %q at %s\n", name, want, strings.Join(lines, ", "))
			if strings.Contains(c.tunroute.Log(), password) {
				t.Errorf("the password is in the log:\n%s", c.tunroute.Log())
			}
		})
	}
	n.connections(t)
	ask("none", "block(2): tcp/connect", change{", user: {file: internet.user}, password: {file: internet.secret}", ""})
	ask("wrong", fmt.Sprintf("system password authentication failed for user %q", user), change{"internet.secret", "wrong.secret"})
	ask("right", fmt.Sprintf("pass(1): tcp/connect [: username%%%s@%v", user, clientAddr))
	return seen
}

// subsidiary is requirement 5.
func (n *network) subsidiary(t *testing.T, c *client) string {
	skip := len(n.d1.danted.Log())
	host := subAddr.String()
	for _, port := range []string{"", ":2222"} {
		if got, want := c.get(t, "http://"+host+port+"/"), page("subh", d1Addr, host+port); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	c.fails(t, subAddr, 9, refused)
	c.fails(t, noSubAddr, 80, unreachable)
	n.d1.danted.AwaitLog(t, skip, host+".2222")
	return fmt.Sprintf("web server of the subsidiary: peer=%v, on ports 80 and 2222\nd1: connected to %s\na closed port: %q; a host that is down: %q\n",
		d1Addr, strings.Join(n.d1.targets(skip), ", "), refused, unreachable)
}

// private is requirement 6. The name is a new one each time, because danted keeps
// what it has been told.
func (n *network) private(t *testing.T, c *client, label string) string {
	name := label + ".private-net.org"
	skipD1, skipP1 := len(n.d1.danted.Log()), len(n.p1.danted.Log())
	if got, want := c.get(t, "http://"+name+"/"), page("privh", p1Addr, name); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	corp, net, priv := n.corp.Asked(t, "private-net.org"), n.net.Asked(t, "private-net.org"), n.priv.Asked(t, name)
	if len(corp)+len(net) > 0 {
		t.Errorf("the company's DNS was asked for %v, the Internet's for %v, want none", corp, net)
	}
	if len(priv) == 0 || slices.ContainsFunc(priv, func(q lab.Query) bool { return q.From != p1Addr }) {
		t.Errorf("the private DNS was asked for %v, want some of %v and none of others", priv, p1Addr)
	}
	n.d1.danted.AwaitLog(t, skipD1, " 192.168.100.2.1080")
	n.p1.danted.AwaitLog(t, skipP1, fmt.Sprintf(" %v.80", privAddr))
	d1, p1 := n.d1.targets(skipD1), n.p1.targets(skipP1)
	if want := []string{"192.168.100.2.1080"}; !slices.Equal(d1, want) {
		t.Errorf("d1 connected to %q, want %q", d1, want)
	}
	if want := []string{privAddr.String() + ".80"}; !slices.Equal(p1, want) {
		t.Errorf("p1 connected to %q, want %q", p1, want)
	}
	if strings.Contains(n.d1.danted.Log(), name) {
		t.Errorf("d1 knows the name:\n%s", n.d1.danted.Log())
	}
	return fmt.Sprintf("private web server: peer=%v Host=%s\ncompany's DNS: %d queries for .private-net.org; Internet's: %d; private: %d, from %v\nd1: connected to %s; p1: connected to %s\n",
		p1Addr, name, len(corp), len(net), len(priv), p1Addr, strings.Join(d1, ", "), strings.Join(p1, ", "))
}

// Requirement 6 without us: a danted at d1 that goes on to p1 itself asks the
// company's DNS for the private name, and does not get there.
func TestChainOfDantedLeaks(t *testing.T) {
	lab.Need(t, "dig", "bind9-dnsutils")
	n := newNetwork(t, 0)
	chaining := n.gateway(t, n.d1.Node, "corp", n.client, addr("10.0.4.1"), `
internal: 10.0.4.1 port = 1081
external: 192.168.100.1
clientmethod: none
socksmethod: none
client pass { from: 10.0.0.0/8 to: 10.0.4.1/32 log: connect error }
socks pass { from: 10.0.0.0/8 to: .private-net.org log: connect error disconnect }
socks block { from: 0/0 to: 0/0 log: connect error }
route { from: 0.0.0.0/0 to: .private-net.org via: 192.168.100.2 port = 1080 proxyprotocol: socks_v5 }
`)
	chaining.start()
	c := startRun(t, n.client, config(t,
		change{"socks5h://10.0.4.1 ", "socks5h://10.0.4.1:1081 "},
		change{"{to: .private-net.org, via: p1}", "{to: .private-net.org, via: d1}"}))
	const name = "leak.private-net.org"
	if out, status := c.sh.Run(t, "curl -sS -m 60 http://%s/", name); status == 0 {
		t.Errorf("it works, and docs/company.md says that it does not: %s", out)
	}
	line := c.tunroute.AwaitLog(t, 0, "dst="+name+":80")
	if !strings.Contains(line, "d1: request: host unreachable (reply 4)") {
		t.Errorf("the log says %s", line)
	}
	corp, priv := n.corp.Asked(t, name), n.priv.Asked(t, name)
	if !slices.ContainsFunc(corp, func(q lab.Query) bool { return q.From == addr("10.0.4.1") }) || len(priv) > 0 {
		t.Errorf("the company's DNS was asked %v and the private one %v; docs/company.md says that d1 asks the company's", corp, priv)
	}
	c.stop(t)
	t.Logf("danted with a route to p1 asks the company's DNS for %v; the program is told %s", corp, line)
}
