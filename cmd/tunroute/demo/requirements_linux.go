package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// requirements are those of the paper, and how it is seen that they are met.
var requirements = []struct {
	what string
	look func(*company, *result)
}{
	{"the company's own network is reached directly", (*company).direct},
	{"of the Internet there is HTTP and nothing else", (*company).onlyHTTP},
	{"two gateways share the load and stand in for each other", (*company).balance},
	{"they want user and password", (*company).passwords},
	{"the subsidiary is reached through D1", (*company).subsidiary},
	{"a private network through D1 and P1, and only P1 knows its names", (*company).private},
}

// inspect prints a line for each requirement and returns how many are met.
func (c *company) inspect() (passed int) {
	for i, q := range requirements {
		r := &result{number: i + 1, what: q.what}
		q.look(c, r)
		fmt.Println(r)
		if r.passed() {
			passed++
		}
	}
	return passed
}

// get asks for a page, with n connections one after the other, and returns how many have
// failed and why the last did.
func (c *company) get(n int, url string) (failed int, why string) {
	for range n {
		if o := c.program.do(task{Get: url}); o.Err != "" {
			failed++
			why = o.Err
		}
	}
	return failed, why
}

// page asks for a page, which has to come.
func (c *company) page(r *result, url string) {
	if _, why := c.get(1, url); why != "" {
		r.check(false, "%s: %s", url, why)
	}
}

// connect connects to what has to fail.
func (c *company) connect(r *result, at netip.Addr, port uint16, want string) {
	to := netip.AddrPortFrom(at, port)
	o := c.program.do(task{Connect: &to})
	got := o.Err
	if got == "" {
		got = "connected"
	}
	r.check(got == want, "connect(2) to port %d: %s", port, got)
}

// from says how many requests came from an address.
func from(seen []request, a netip.Addr) (n int) {
	for _, q := range seen {
		if q.from == a {
			n++
		}
	}
	return n
}

// peers are the addresses that requests have come from.
func peers(seen []request) string {
	var list []netip.Addr
	for _, q := range seen {
		if !slices.Contains(list, q.from) {
			list = append(list, q.from)
		}
	}
	return orNobody(list)
}

func orNobody(list []netip.Addr) string {
	if len(list) == 0 {
		return "nobody"
	}
	return join(list)
}

func join[T any](list []T) string { return strings.Trim(fmt.Sprint(list), "[]") }

// gateways are those that the client knows.
func (c *company) gateways() []*tunroute { return []*tunroute{c.int[0], c.int[1], c.d1} }

// untouched checks that no gateway has been connected to since the last call of
// connections.
func (c *company) untouched(r *result) {
	n, err := c.connections(c.gateways()...)
	r.check(err == nil && slices.Equal(n, []int{0, 0, 0}), "%s connections to int1, int2, d1", join(n))
}

// count is a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// said is a code that a SOCKS server has answered with, in the way of its protocol.
func said(format string, code int) string {
	if code < 0 {
		return "nothing"
	}
	return fmt.Sprintf(format, code)
}

// direct is requirement 1.
func (c *company) direct(r *result) {
	c.connections(c.gateways()...)
	c.page(r, "http://lan.corp.example/")
	c.page(r, "http://"+lanAddr.String()+"/")
	seen := c.lan.requests()
	r.check(len(seen) == 2 && from(seen, clientAddr) == 2, "lan.corp.example saw %s from %s, by name and by address", count(len(seen), "request"), peers(seen))
	c.untouched(r)
}

// onlyHTTP is requirement 2.
func (c *company) onlyHTTP(r *result) {
	c.web.requests()
	c.page(r, "http://www.example.com/")
	seen := c.web.requests()
	r.check(len(seen) == 1 && from(seen, int1Outside)+from(seen, int2Outside) == 1, "www.example.com saw %s at port 80, from %s", count(len(seen), "request"), peers(seen))
	c.connections(c.gateways()...)
	c.connect(r, webAddr, 8080, "EHOSTUNREACH")
	c.connect(r, webAddr, 7000, "EHOSTUNREACH")
	c.untouched(r)
	// Past the rules of the client, those of the gateways are left.
	for i, g := range c.int {
		o := c.program.do(task{Socks: &socksTask{
			Server: netip.AddrPortFrom(intAddr[i], socksPort), User: c.user, Password: c.password, Target: "www.example.com:8080",
		}})
		if o.Reply == 2 {
			r.check(true, "%s, asked past our rules, REP 02", g.Name)
			break
		}
		// One that is down refuses too; but one of two that are there has to say it.
		if i == 1 {
			r.check(false, "int1 and int2, asked past our rules, %s", said("REP %02d", o.Reply))
		}
	}
	if seen := c.web.requests(); len(seen) > 0 {
		r.check(false, "it saw %s more", count(len(seen), "request"))
	}
}

// balance is requirement 3.
func (c *company) balance(r *result) {
	const many, few = 40, 10 // that all of 40 go to one of two happens once in 10^11 times
	lost := 0
	ask := func(n int) (by [2]int) {
		c.web.requests()
		failed, why := c.get(n, "http://www.example.com/")
		if lost += failed; failed > 0 {
			r.check(false, "%d of %d requests are lost, %s", failed, n, why)
		}
		seen := c.web.requests()
		return [2]int{from(seen, int1Outside), from(seen, int2Outside)}
	}
	by := ask(many)
	r.check(by[0] > 0 && by[1] > 0 && by[0]+by[1] == many, "of %d requests www.example.com saw %d from int1 and %d from int2", many, by[0], by[1])
	for _, dead := range []int{1, 0} {
		living := 1 - dead
		running := c.int[dead].kill()
		by := ask(few)
		r.check(by[dead] == 0 && by[living] == few, "int%d killed: %d of %d from int%d", dead+1, by[living], few, living+1)
		if !running {
			continue
		}
		if err := c.int[dead].start(); err != nil {
			r.check(false, "%v", err)
		}
	}
	if lost == 0 {
		r.check(true, "none lost")
	}
}

// passwords is requirement 4.
func (c *company) passwords(r *result) {
	const requests = 10
	// What the gateways say to who asks them.
	for _, who := range []struct {
		what           string
		user, password string
		want           string
	}{
		{"without a password", "", "", "method ff"},
		{"with a wrong one", c.user, "not " + c.password, "status 1"},
		{"with the right one", c.user, c.password, "REP 00"},
	} {
		var got [2]string
		for i := range c.int {
			o := c.program.do(task{Socks: &socksTask{
				Server: netip.AddrPortFrom(intAddr[i], socksPort), User: who.user, Password: who.password, Target: "www.example.com:80",
			}})
			switch {
			case o.Reply >= 0:
				got[i] = said("REP %02d", o.Reply)
			case o.Status >= 0:
				got[i] = said("status %d", o.Status)
			default:
				got[i] = said("method %02x", o.Method)
			}
		}
		r.check(got == [2]string{who.want, who.want}, "%s int1 says %s, int2 %s", who.what, got[0], got[1])
	}
	// What they have logged of the client's requests, which have a name of their own.
	const host = "user.example.com"
	skip := [2]int{c.int[0].logged(), c.int[1].logged()}
	c.web.requests()
	if failed, why := c.get(requests, "http://"+host+"/"); failed > 0 {
		r.check(false, "%d of %d requests are lost, %s", failed, requests, why)
	}
	seen := c.web.requests()
	flows, as := 0, 0
	for i, outside := range []netip.Addr{int1Outside, int2Outside} {
		// At least these: one to which the other gateway was faster is a flow too.
		lines, err := c.int[i].await(skip[i], from(seen, outside), "msg=flow", " dst="+host+":80 ")
		if err != nil {
			r.check(false, "%v", err)
		}
		for _, line := range lines {
			flows++
			if strings.Contains(line, " user="+c.user+" ") {
				as++
			}
		}
	}
	r.check(flows >= requests && as == flows, "of %d requests %d came as user %s, as int1 and int2 have logged", flows, as, c.user)
}

// subsidiary is requirement 5.
func (c *company) subsidiary(r *result) {
	c.sub.requests()
	c.page(r, "http://"+subAddr.String()+"/")
	c.page(r, "http://"+subAddr.String()+":2222/")
	seen := c.sub.requests()
	r.check(len(seen) == 2 && from(seen, d1Outside) == 2, "%v saw %s from %s, on ports 80 and 2222", subAddr, count(len(seen), "request"), peers(seen))
	for _, failure := range []struct {
		at    netip.Addr
		what  string
		reply int
		errno string
	}{
		{subAddr, "a closed port", 5, "ECONNREFUSED"},
		{noSubAddr, "a host that is down", 4, "EHOSTUNREACH"},
	} {
		to := netip.AddrPortFrom(failure.at, 9)
		server := c.program.do(task{Socks: &socksTask{Server: netip.AddrPortFrom(d1Addr, socksPort), Target: to.String()}})
		program := c.program.do(task{Connect: &to})
		r.check(server.Reply == failure.reply && program.Err == failure.errno,
			"%s: D1 says %s, connect(2) %s", failure.what, said("REP %02d", server.Reply), program.Err)
	}
}

// private is requirement 6, twice: the client makes the chain, or D1.
func (c *company) private(r *result) {
	const domain = "private-net.org"
	p1 := netip.AddrPortFrom(p1Addr, socksPort).String()
	c.priv.requests()
	c.connections(c.d1, c.p1)
	skip := c.d1.logged()
	c.page(r, "http://t1."+domain+"/")
	seen := c.priv.requests()
	r.check(len(seen) == 1 && from(seen, p1Outside) == 1, "t1.%s saw %s from %s", domain, count(len(seen), "request"), peers(seen))
	came, err := c.connections(c.d1, c.p1)
	r.check(err == nil && slices.Equal(came, []int{1, 1}), "%s connections to D1 and P1", join(came))
	_, err = c.d1.await(skip, 1, "msg=flow", " dst="+p1+" ")
	names, _ := c.d1.await(skip, 0, domain)
	r.check(err == nil && len(names) == 0, "D1 was told %s and no name", p1)

	o := c.program.do(task{Socks: &socksTask{Server: netip.AddrPortFrom(d1Addr, socksPort), Target: "t2." + domain + ":80"}})
	seen = c.priv.requests()
	r.check(o.Err == "" && len(seen) == 1 && from(seen, p1Outside) == 1,
		"a SOCKS client that knows D1 only: %s, t2.%s saw %s from %s", said("REP %02d", o.Reply), domain, count(len(seen), "request"), peers(seen))

	asked := func(s *nameServer) (n int, by []netip.Addr) {
		list, err := s.asked(domain)
		if err != nil {
			r.check(false, "%v", err)
		}
		for _, q := range list {
			if !slices.Contains(by, q.from) {
				by = append(by, q.from)
			}
		}
		return len(list), by
	}
	corp, _ := asked(c.corpDNS)
	inet, _ := asked(c.netDNS)
	own, by := asked(c.privDNS)
	r.check(corp == 0 && inet == 0 && own > 0 && slices.Equal(by, []netip.Addr{p1Outside}),
		"queries for .%s: %d at the company's DNS, %d at the Internet's, %d at its own, all from %s", domain, corp, inet, own, orNobody(by))
}
