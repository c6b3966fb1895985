package company

import (
	"fmt"
	"net/netip"
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
	for _, servers := range softwares {
		t.Run(servers.name, func(t *testing.T) { requirementsMet(t, servers) })
	}
}

func requirementsMet(t *testing.T, servers *software) {
	n := newNetwork(t, servers, 2)
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
			t.Logf("what others have seen of tunroute %s, with %s on the gateways:\n%s", k.name, servers.name, table(seen))
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
	k.with(t, n.client, config(t, append(patient, change{", port: http", ""})...), func(c *client) {
		n.connections(t)
		logged, said := n.logged(), len(c.tunroute.Log())
		c.fails(t, webAddr, 8080, unreachable)
		at := n.connections(t)
		if at[0]+at[1] != 1 {
			t.Errorf("connections at int1, int2: %v, want one", at[:2])
		}
		g := min(at[1], 1) // the index of who has it
		n.int[g].await(t, logged[g], n.int[g].software.byRule(netip.AddrPortFrom(webAddr, 8080))...)
		c.tunroute.AwaitLog(t, said, fmt.Sprintf("internet: %s: request: not allowed by the server's rules (reply 2)", n.int[g].Name))
		seen = fmt.Sprintf("without our rule: refused by that of %s, and no connection at the other\n", n.int[g].Name)

		// What the target refuses is no reason to ask another one either.
		logged, said = n.logged(), len(c.tunroute.Log())
		c.fails(t, closedAddr, 80, refused)
		at = n.connections(t)
		if at[0]+at[1] != 1 {
			t.Errorf("closed port: connections at int1, int2: %v, want one", at[:2])
		}
		g = min(at[1], 1)
		c.tunroute.AwaitLog(t, said, fmt.Sprintf("internet: %s: request: connection refused (reply 5)", n.int[g].Name))
		n.int[g].await(t, logged[g], n.int[g].software.byTarget(netip.AddrPortFrom(closedAddr, 80))...)
		seen += fmt.Sprintf("a closed port: refused at %s, and no connection at the other\n", n.int[g].Name)
	})
	return seen
}

// logged returns how much the gateways to the Internet have logged.
func (n *network) logged() []int {
	var list []int
	for _, g := range n.int {
		list = append(list, len(g.server.Log()))
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
	software := n.int[0].software
	ask := func(name string, want []string, changes ...change) {
		k.with(t, n.client, config(t, append(changes, patient...)...), func(c *client) {
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
					g.await(t, logged[i], want...)
					lines = append(lines, g.Name)
					if strings.Contains(g.server.Log()[logged[i]:], password) {
						t.Errorf("a password in the log of %s:\n%s", g.Name, g.server.Log())
					}
				}
			}
			if len(lines) == 0 {
				t.Fatal("no gateway was asked")
			}
			seen += fmt.Sprintf("%s: %q at %s\n", name, strings.Join(want, " "), strings.Join(lines, ", "))
			if strings.Contains(c.tunroute.Log(), password) {
				t.Errorf("the password is in the log:\n%s", c.tunroute.Log())
			}
		})
	}
	n.connections(t)
	ask("none", software.none, change{", user: {file: internet.user}, password: {file: internet.secret}", ""})
	ask("wrong", software.wrong, change{"internet.secret", "wrong.secret"})
	ask("right", software.passed)
	return seen
}

// subsidiary is requirement 5.
func (n *network) subsidiary(t *testing.T, c *client) string {
	skip := len(n.d1.server.Log())
	host := subAddr.String()
	for _, port := range []string{"", ":2222"} {
		if got, want := c.get(t, "http://"+host+port+"/"), page("subh", d1Addr, host+port); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	c.fails(t, subAddr, 9, refused)
	c.fails(t, noSubAddr, 80, unreachable)
	// All of it: what is looked at next begins behind.
	for _, target := range []string{host + ":80", host + ":2222", host + ":9", noSubAddr.String() + ":80"} {
		n.d1.awaitTarget(t, skip, target)
	}
	return fmt.Sprintf("web server of the subsidiary: peer=%v, on ports 80 and 2222\nd1: connected to %s\na closed port: %q; a host that is down: %q\n",
		d1Addr, strings.Join(n.d1.targets(skip), ", "), refused, unreachable)
}

// private is requirement 6. The name is a new one each time, because danted keeps
// what it has been told.
func (n *network) private(t *testing.T, c *client, label string) string {
	name := label + ".private-net.org"
	skipD1, skipP1 := len(n.d1.server.Log()), len(n.p1.server.Log())
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
	at := n.p1.inside.String() + ":1080"
	n.d1.awaitTarget(t, skipD1, at)
	d1 := n.d1.targets(skipD1)
	if !slices.Equal(d1, []string{at}) {
		t.Errorf("d1 connected to %q, want %q", d1, at)
	}
	web := n.p1.software.private(name)
	n.p1.awaitTarget(t, skipP1, web)
	p1 := n.p1.targets(skipP1)
	if !slices.Equal(p1, []string{web}) {
		t.Errorf("p1 connected to %q, want %q", p1, web)
	}
	if strings.Contains(n.d1.server.Log(), name) {
		t.Errorf("d1 knows the name:\n%s", n.d1.server.Log())
	}
	return fmt.Sprintf("private web server: peer=%v Host=%s\ncompany's DNS: %d queries for .private-net.org; Internet's: %d; private: %d, from %v\nd1: connected to %s; p1: connected to %s\n",
		p1Addr, name, len(corp), len(net), len(priv), p1Addr, strings.Join(d1, ", "), strings.Join(p1, ", "))
}

// Requirement 6 without us: a danted at d1 that goes on to p1 itself asks the
// company's DNS for the private name, and does not get there.
func TestChainOfDantedLeaks(t *testing.T) {
	lab.Need(t, "dig", "bind9-dnsutils")
	n := newNetwork(t, danted, 0)
	chaining := *danted
	chaining.install = func(t *testing.T, g *gateway) {
		g.config = dantedConfig(t, `
internal: 10.0.4.1 port = 1081
external: 192.168.100.1
clientmethod: none
socksmethod: none
client pass { from: 10.0.0.0/8 to: 10.0.4.1/32 log: connect error }
socks pass { from: 10.0.0.0/8 to: .private-net.org log: connect error disconnect }
socks block { from: 0/0 to: 0/0 log: connect error }
route { from: 0.0.0.0/0 to: .private-net.org via: 192.168.100.2 port = 1080 proxyprotocol: socks_v5 }
`)
	}
	n.gateway(t, &chaining, n.d1.Node, "corp", n.client, addr("10.0.4.1"), d1Addr)
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

// Requirement 6 for programs that speak SOCKS themselves and know D1 only: a tunroute at
// d1 goes on to p1, name and all, and nobody but p1 asks for the name.
func TestChainOfTunroute(t *testing.T) {
	lab.Need(t, "dig", "bind9-dnsutils")
	lab.Need(t, "socksify", "dante-client")
	lab.Need(t, "proxychains4", "proxychains4")
	n := newNetwork(t, tunrouted, 0)
	const route = "route {\n from: 0.0.0.0/0 to: %s via: 10.0.4.1 port = 1080\n proxyprotocol: socks_v5\n method: none\n}\n"
	socks := lab.File(t, "socks.conf", "resolveprotocol: fake\n"+fmt.Sprintf(route, "0.0.0.0/0")+fmt.Sprintf(route, "."))
	chains := lab.File(t, "proxychains.conf", "strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\nsocks5 10.0.4.1 1080\n")
	for program, before := range map[string][]string{
		"curl":         {"curl", "-x", "socks5h://10.0.4.1"},
		"socksify":     {"env", "SOCKS_CONF=" + socks, "SOCKS_AUTOADD_LANROUTES=no", "socksify", "curl"},
		"proxychains4": {"proxychains4", "-f", chains, "curl"},
	} {
		name := program + ".private-net.org"
		skip := len(n.d1.server.Log())
		r := n.client.Run(t, append(before, "-sS", "-4", "-m", "60", "http://"+name+"/")...)
		if want := page("privh", p1Addr, name); r.Status != 0 || !strings.Contains(r.Stdout, want) {
			t.Errorf("%s: status %d, %q, want %q\n%s", program, r.Status, r.Stdout, want, r.Stderr)
			continue
		}
		line := n.d1.await(t, skip, "dst="+name+":80", "out=p1")
		corp, net, priv := n.corp.Asked(t, name), n.net.Asked(t, name), n.priv.Asked(t, name)
		if len(corp)+len(net) > 0 || len(priv) == 0 || slices.ContainsFunc(priv, func(q lab.Query) bool { return q.From != p1Addr }) {
			t.Errorf("%s: the company's DNS was asked %v, the Internet's %v, the private one %v, want the last by %v only", program, corp, net, priv, p1Addr)
		}
		t.Logf("%s: %sd1 says %squeries at the company's DNS %d, at the Internet's %d, at the private one %v", program, r.Stdout, line, len(corp), len(net), priv)
	}
	// What the far end says is what the program is told.
	if r := n.client.Run(t, "curl", "-sS", "-m", "60", "-x", "socks5h://10.0.4.1", "http://closed.private-net.org:9/"); r.Status != 97 || !strings.Contains(r.Stderr, "(5)") {
		t.Errorf("a closed port: status %d, %s, want 97 and reply 5", r.Status, r.Stderr)
	}
}
