package probe

import (
	"context"
	"crypto/rand"
	"net/netip"
	"strings"
	"time"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

// The steps of a run.
const (
	first  = iota // which methods; SOCKS4 needs no more than that to be asked
	second        // whether the server reaches us
	last
)

// probe is one row: what is asked.
type probe struct {
	id     string
	step   int
	socks5 bool // it is nothing for a server that does not take us by SOCKS5
	run    func(context.Context, *prober) Row
}

// rows are all, in the order of the report.
var rows = []probe{
	{"method-none", first, false, offering("none", 0)},
	{"method-user", first, false, methodUser},
	{"method-both", first, false, offering("none and username/password", 0, 2)},
	{"method-unknown", first, false, methodUnknown},
	{"socks4", last, false, socks4},
	{"socks4a", last, false, socks4a},
	{"ipv4", second, true, ownIPv4},
	{"ipv6", second, true, ownIPv6},
	{"target", second, true, target},
	{"bound", last, true, boundRow},
	{"name", last, true, name},
	{"name-literal", last, true, nameLiteral},
	{"name-dot", last, true, nameDot},
	{"name-empty", last, true, badName("an empty name", func(*aim) string { return "" })},
	{"name-nul", last, true, nameNUL},
	{"name-255", last, true, badName("a name of 255 bytes", func(*aim) string { return longName })},
	{"name-unknown", last, true, nameUnknown},
	{"refused", last, true, refused},
	{"host-down", last, true, hostDown},
	{"no-route", last, true, noRoute},
	{"port-0", last, true, portZero},
	{"bad-type", last, true, badType},
	{"bad-command", last, true, badCommand},
	{"rsv", last, true, rsv},
	{"bind", last, true, bindRow},
	{"udp", last, true, udp},
	{"udp-address", last, true, udpAddress},
	{"udp-echo", last, true, udpEcho},
	{"udp-source", last, true, udpSource},
	{"udp-fragment", last, true, udpFragment},
	{"udp-close", last, true, udpClose},
	{"split", last, true, split},
	{"pipeline", last, true, pipeline},
	{"early-data", last, true, earlyData},
	{"half-close", last, true, halfClose},
	{"http", last, false, http},
}

// IDs returns those of all rows, in the order of a report.
func IDs() []string {
	var ids []string
	for _, x := range rows {
		ids = append(ids, x.id)
	}
	return ids
}

// pause is between the bytes of a request that is sent byte by byte: so long that a
// server reads the first before the second has come.
const pause = 100 * time.Millisecond

// longName has 255 bytes. No resolver asks anybody for it: a name in DNS has 253.
var longName = strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("a", 63)

// row makes a Row of an answer.
func row(sent string, a answer, v Verdict, note string) Row {
	return Row{Sent: sent, Answer: a.token, Detail: a.detail, Bytes: a.bytes, Verdict: v, Note: note}
}

// said returns of verdicts that of an answer, or otherwise: a reply is Odd, a connection
// that is closed without one as well.
func said(a answer, verdicts map[string]Verdict) Verdict {
	if v, ok := verdicts[a.token]; ok {
		return v
	}
	if a.token == noDial {
		return Unknown
	}
	return Odd
}

// offer sends a greeting over a new connection.
func (p *prober) offer(ctx context.Context, methods ...socks.Method) (*link, answer) {
	l, err := p.dial(ctx)
	if err != nil {
		return nil, answer{token: noDial, detail: err.Error()}
	}
	l.write(socks.AppendMethods(nil, methods...))
	return l, l.method()
}

func offering(what string, methods ...socks.Method) func(context.Context, *prober) Row {
	return func(ctx context.Context, p *prober) Row {
		l, a := p.offer(ctx, methods...)
		if l != nil {
			defer l.close()
		}
		v := said(a, map[string]Verdict{"method 0": OK, "no method": No, "method 2": Bad, silence: Bad})
		note := ""
		if len(methods) == 2 {
			if a.token == "method 2" {
				v = OK
			}
			if a.token == "method 0" {
				note = "of the two it takes none"
			}
		} else if a.token == "method 2" {
			note = "it was not offered"
		}
		return row("greeting that offers "+what, a, v, note)
	}
}

func methodUser(ctx context.Context, p *prober) Row {
	l, a := p.offer(ctx, socks.MethodUserPass)
	if l != nil {
		defer l.close()
	}
	const sent = "greeting that offers username/password"
	if a.token != "method 2" || !p.credentials() {
		return row(sent, a, said(a, map[string]Verdict{"method 2": OK, "no method": No, "method 0": Bad, silence: Bad}), "")
	}
	_, login := p.greeting()
	l.write(login)
	if a = l.status(); a.token != success {
		return row(sent+", and the user", a, Bad, "user and password are refused")
	}
	return row(sent+", and the user", a, OK, "")
}

func methodUnknown(ctx context.Context, p *prober) Row {
	l, a := p.offer(ctx, 0xFD)
	if l != nil {
		defer l.close()
	}
	note := ""
	if a.token == closed {
		note = "without the FF of RFC 1928 §3"
	}
	return row("greeting that offers FD, which is nobody's", a, said(a, map[string]Verdict{"no method": OK, "method 253": Bad, "method 0": Bad, silence: Bad}), note)
}

// ask sends a request over a new connection, after the negotiation. Where that fails
// there is no link.
func (p *prober) ask(ctx context.Context, request []byte) (*link, answer) {
	l, a := p.open(ctx)
	if l == nil {
		return nil, a
	}
	l.write(request)
	return l, l.reply()
}

// told is ask where only the answer counts.
func (p *prober) told(ctx context.Context, request []byte) answer {
	l, a := p.ask(ctx, request)
	if l != nil {
		l.close()
	}
	return a
}

// wants is the row of a connect that should work: to a, by a request.
func (p *prober) wants(ctx context.Context, sent string, a *aim, request []byte) Row {
	l, got := p.ask(ctx, request)
	if l == nil {
		return row(sent, got, Unknown, "")
	}
	defer l.close()
	if got.token != success {
		return row(sent, got, No, "")
	}
	if !a.seen() {
		return row(sent, got, OK, "")
	}
	if why := a.talk(l); why != "" {
		return row(sent, got, Bad, why)
	}
	return row(sent, got, OK, "")
}

func ownIPv4(ctx context.Context, p *prober) Row { return p.ownRow(ctx, "IPv4", p.self4) }
func ownIPv6(ctx context.Context, p *prober) Row { return p.ownRow(ctx, "IPv6", p.self6) }

func (p *prober) ownRow(ctx context.Context, family string, ip netip.Addr) Row {
	sent := "CONNECT to " + family
	if !ip.IsValid() {
		return row(sent, answer{}, Unknown, "we have no "+family+" address that the server could reach: say it with --self")
	}
	o, err := p.listen(ip, echo)
	if err != nil {
		return row(sent, answer{}, Unknown, "cannot listen: "+err.Error())
	}
	a := aim{own: o, ip: ip, port: o.dst.Port()}
	defer a.close()
	r := p.wants(ctx, "CONNECT to "+a.String(), &a, request(connect, a.dst()))
	if r.Verdict != OK && r.Answer != "reply 8" && r.Verdict != Unknown {
		if r.Answer == success { // it may be true of whoever is at that address
			r.Verdict = Unknown
		}
		r.Note = strings.TrimPrefix(r.Note+"; the server does not reach us there: say another address with --self, or a service with --target", "; ")
	}
	return r
}

func target(ctx context.Context, p *prober) Row {
	if p.Target == (flow.Target{}) {
		return Row{}
	}
	a := aim{target: p.Target, ip: p.Target.Addr, port: p.Target.Port}
	return p.wants(ctx, "CONNECT to "+a.String(), &a, request(connect, a.dst()))
}

// unseen is the note of rows that need an aim.
const unseen = "the server does not reach us: name a service that it reaches with --target HOST:PORT"

func boundRow(ctx context.Context, p *prober) Row {
	const sent = "CONNECT, for the address in its reply"
	a := p.aim(echo)
	defer a.close()
	if !a.seen() {
		return row(sent, answer{}, Unknown, unseen)
	}
	got := p.told(ctx, request(connect, a.dst()))
	if got.token != success {
		return row(sent, got, Unknown, "")
	}
	got.token, got.detail = "address", got.bound.String()
	if got.bound.Name == "" && got.bound.IP.IsUnspecified() {
		got.token = "none"
		return row(sent, got, OK, "")
	}
	return row(sent, got, OK, "")
}

// resolvable is a name that the server resolves, and what asks for it.
func (p *prober) resolvable() (a aim, named bool) {
	if p.Target.Name != "" {
		return aim{target: p.Target, port: p.Target.Port}, true
	}
	return aim{target: flow.Target{Name: "localhost"}, port: 1}, false
}

// localhost is the note of a name that may be known to the server and not be allowed.
const localhost = "name a service by its name: --target NAME:PORT"

func name(ctx context.Context, p *prober) Row {
	a, named := p.resolvable()
	dst := request(connect, nameDst(a.target.Name, a.port))
	if named {
		return p.wants(ctx, "CONNECT to the name "+a.target.String(), &a, dst)
	}
	// Every machine has this name, and it is the server's own: that nobody listens there
	// says that it has been found.
	got := p.told(ctx, dst)
	r := row("CONNECT to localhost:1, a name", got, Unknown, localhost)
	if got.token == "reply 5" {
		r.Verdict, r.Note = OK, "it was resolved"
	}
	if got.token == "reply 8" {
		r.Verdict, r.Note = No, ""
	}
	return r
}

func nameDot(ctx context.Context, p *prober) Row {
	a, named := p.resolvable()
	dot := request(connect, nameDst(a.target.Name+".", a.port))
	if named {
		return p.wants(ctx, "CONNECT to the name with a dot behind it", &a, dot)
	}
	got := p.told(ctx, dot)
	r := row("CONNECT to localhost.:1", got, Unknown, localhost)
	if got.token == "reply 5" {
		r.Verdict, r.Note = OK, "it was resolved"
	}
	return r
}

func nameLiteral(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	if !a.ip.IsValid() {
		return row("CONNECT to an address written as a name", answer{}, Unknown, "name a service by its address: --target ADDRESS:PORT")
	}
	sent := "CONNECT to the name \"" + a.text() + "\""
	r := p.wants(ctx, sent, &a, request(connect, nameDst(a.text(), a.port)))
	if !a.seen() {
		r.Verdict, r.Note = Unknown, unseen
	}
	return r
}

// badName is a row of a name that no server can connect to.
func badName(what string, make func(*aim) string) func(context.Context, *prober) Row {
	return func(ctx context.Context, p *prober) Row {
		got := p.told(ctx, request(connect, nameDst(make(&nowhere), 80)))
		return refusal("CONNECT to "+what, got)
	}
}

// refusal is the row of a request that cannot be granted: which code it gets is the
// server's choice, but not success.
func refusal(sent string, got answer) Row {
	v, note := OK, ""
	switch got.token {
	case success:
		v, note = Bad, "success is told before it is known"
	case closed:
		v, note = Odd, "without a reply"
	case silence, other:
		v = Odd
	case noDial:
		v = Unknown
	}
	return row(sent, got, v, note)
}

func nameNUL(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	sent := "CONNECT to the name \"" + a.text() + "\\0.invalid\""
	l, got := p.ask(ctx, request(connect, nameDst(a.text()+"\x00.invalid", a.port)))
	if l == nil {
		return row(sent, got, Unknown, "")
	}
	defer l.close()
	if got.token == success && a.seen() && a.talk(l) == "" {
		got.token = "connected"
		return row(sent, got, Bad, "it cuts names at a NUL, behind which others may see more; tunroute sends none")
	}
	return refusal(sent, got)
}

func nameUnknown(ctx context.Context, p *prober) Row {
	// New each time, so that no resolver has it in its cache.
	got := p.told(ctx, request(connect, nameDst("probe-"+strings.ToLower(rand.Text())+".invalid", 80)))
	r := refusal("CONNECT to a name that does not exist", got)
	if got.token != "reply 4" && r.Verdict == OK {
		r.Verdict, r.Note = Odd, "and not \"host unreachable\", 4"
	}
	return r
}

// code is refusal where the RFC has a code.
func code(sent string, got answer, want string) Row {
	r := refusal(sent, got)
	if r.Verdict == OK && got.token != want {
		r.Verdict, r.Note = Odd, "and not "+want
	}
	return r
}

func refused(ctx context.Context, p *prober) Row {
	for _, ip := range []netip.Addr{p.reached4, p.reached6} {
		if !ip.IsValid() {
			continue
		}
		l, err := p.openTCP(ip)
		if err != nil {
			continue
		}
		at := netip.AddrPortFrom(ip, portOf(l.Addr()))
		l.Close() // and so nobody listens there
		return earlySuccess(code("CONNECT to "+at.String()+", where we do not listen", p.told(ctx, request(connect, addrDst(at))), "reply 5"))
	}
	r := earlySuccess(code("CONNECT to "+nowhere.String()+", its own machine", p.told(ctx, request(connect, nowhere.dst())), "reply 5"))
	if r.Answer == "reply 2" {
		r.Verdict, r.Note = Unknown, "its rules forbid it"
	}
	return r
}

func earlySuccess(r Row) Row {
	if r.Answer == success {
		r.Note = "success is told before it is known: early-reply tells programs of it"
	}
	return r
}

func hostDown(ctx context.Context, p *prober) Row {
	at, note := netip.AddrPortFrom(p.Down, 9), ""
	if !p.Down.IsValid() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 9) // RFC 5737
		note = "; --down names a host of its network that is down"
	}
	r := code("CONNECT to "+at.String()+", which is down", p.told(ctx, request(connect, addrDst(at))), "reply 4")
	if r.Answer == silence {
		r.Verdict, r.Note = Unknown, "it waits longer than the limit"+note
	}
	return r
}

func noRoute(ctx context.Context, p *prober) Row {
	// No system opens a TCP connection to a group: Linux says at once that the network
	// is unreachable (net/ipv4/tcp_ipv4.c, tcp_v4_connect).
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 1}), 9)
	return code("CONNECT to "+at.String()+", where no route leads", p.told(ctx, request(connect, addrDst(at))), "reply 3")
}

func portZero(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	a.port = 0
	return refusal("CONNECT to port 0", p.told(ctx, request(connect, a.dst())))
}

func badType(ctx context.Context, p *prober) Row {
	return code("CONNECT with the address type 2", p.told(ctx, request(connect, []byte{2, 127, 0, 0, 1, 0, 1})), "reply 8")
}

func badCommand(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	return code("command 9", p.told(ctx, request(9, a.dst())), "reply 7")
}

// control is the answer to an ordinary request for a.
func (p *prober) control(ctx context.Context, a *aim) string {
	if a.own != nil {
		return success
	}
	return p.told(ctx, request(connect, a.dst())).token
}

// same is the row of a request that is to have the answer of an ordinary one.
func same(sent string, got answer, want string, bad string) Row {
	switch got.token {
	case want:
		return row(sent, got, OK, "")
	case noDial:
		return row(sent, got, Unknown, "")
	}
	return row(sent, got, Bad, bad)
}

func rsv(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	want := p.control(ctx, &a)
	b := request(connect, a.dst())
	b[2] = 1
	got := p.told(ctx, b)
	r := same("CONNECT with 1 in the reserved byte", got, want, "")
	if r.Verdict == Bad && got.token != silence {
		r.Verdict = OK // RFC 1928 §4: it must be 0
		r.Note = "it is strict"
	}
	return r
}

func split(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	want := p.control(ctx, &a)
	const sent, bad = "greeting and CONNECT, byte by byte", "a message that comes in parts is not understood"
	l, err := p.dial(ctx)
	if err != nil {
		return row(sent, answer{token: noDial, detail: err.Error()}, Unknown, "")
	}
	defer l.close()
	trickle := func(message []byte) {
		for i := range message {
			if i > 0 && !wait(ctx, p.pause) {
				return
			}
			l.write(message[i : i+1])
		}
	}
	greeting, login := p.greeting()
	trickle(greeting)
	if got, ok := l.negotiated(login, func() { trickle(login) }); !ok {
		return row(sent, got, Bad, bad)
	}
	trickle(request(connect, a.dst()))
	return same(sent, l.reply(), want, bad)
}

// wait waits, and says whether ctx has not ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func pipeline(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	want := p.control(ctx, &a)
	const sent = "greeting and CONNECT in one segment"
	l, err := p.dial(ctx)
	if err != nil {
		return row(sent, answer{token: noDial, detail: err.Error()}, Unknown, "")
	}
	defer l.close()
	greeting, login := p.greeting()
	l.write(append(append(greeting, login...), request(connect, a.dst())...))
	const bad = "what comes behind the greeting is lost: leave pipeline off"
	if got, ok := l.negotiated(login, func() {}); !ok {
		return row(sent, got, Bad, bad)
	}
	got := l.reply()
	r := same(sent, got, want, bad)
	if r.Verdict == OK && got.token == success && a.seen() {
		if why := a.talk(l); why != "" {
			r.Verdict, r.Note = Bad, why
		}
	}
	return r
}

func earlyData(ctx context.Context, p *prober) Row {
	a := p.aim(echo)
	defer a.close()
	const sent = "CONNECT and data in one segment"
	if !a.seen() {
		return row(sent, answer{}, Unknown, unseen)
	}
	l, got := p.ask(ctx, append(request(connect, a.dst()), a.greet()...))
	if l == nil {
		return row(sent, got, Unknown, "")
	}
	defer l.close()
	if got.token != success {
		return row(sent, got, Bad, "data before the reply is too early; tunroute sends none")
	}
	if why := a.heard(l); why != "" {
		got.token = "lost"
		return row(sent, got, Bad, why+"; tunroute sends no data before the reply")
	}
	return row(sent, got, OK, "")
}

func halfClose(ctx context.Context, p *prober) Row {
	a := p.aim(answerLast)
	defer a.close()
	const sent = "data and FIN, then waiting for the answer"
	if !a.seen() {
		return row(sent, answer{}, Unknown, unseen)
	}
	l, got := p.ask(ctx, request(connect, a.dst()))
	if l == nil {
		return row(sent, got, Unknown, "")
	}
	defer l.close()
	if got.token != success {
		return row(sent, got, Unknown, "")
	}
	l.write(a.greet())
	l.conn.CloseWrite()
	if why := a.heard(l); why != "" {
		return row(sent, answer{token: "lost"}, Bad, "the answer to what ends with a FIN is lost ("+why+"); there is no remedy here")
	}
	r := row(sent, answer{token: "answered"}, OK, "")
	if a.own == nil {
		r.Note = "if the target waits for the FIN"
	}
	return r
}

func socks4(ctx context.Context, p *prober) Row {
	a := p.aim4()
	defer a.close()
	if !a.ip.Is4() {
		return row("SOCKS4 CONNECT", answer{}, Unknown, unseen)
	}
	return p.version4(ctx, "SOCKS4 CONNECT to "+a.String(), &a, socks.Addr{IP: a.ip, Port: a.port})
}

func socks4a(ctx context.Context, p *prober) Row {
	a := p.aim4()
	defer a.close()
	text := a.text()
	return p.version4(ctx, "SOCKS4a CONNECT to the name \""+text+"\"", &a, socks.Addr{Name: text, Port: a.port})
}

// aim4 is aim of IPv4. It is tried even if SOCKS5 has not reached it: there may be none.
func (p *prober) aim4() aim {
	ip := p.reached4
	if !ip.IsValid() && p.refused != "" {
		ip = p.self4
	}
	if ip.IsValid() {
		if o, err := p.listen(ip, echo); err == nil {
			return aim{own: o, ip: ip, port: o.dst.Port()}
		}
	}
	if p.Target != (flow.Target{}) {
		return aim{target: p.Target, ip: p.Target.Addr, port: p.Target.Port}
	}
	return nowhere
}

func (p *prober) version4(ctx context.Context, sent string, a *aim, to socks.Addr) Row {
	user := p.User
	if strings.IndexByte(user, 0) >= 0 {
		user = ""
	}
	b, err := socks.AppendRequest4(nil, socks.Connect, to, user)
	if err != nil {
		return row(sent, answer{}, Unknown, err.Error())
	}
	l, err := p.dial(ctx)
	if err != nil {
		return row(sent, answer{token: noDial, detail: err.Error()}, Unknown, "")
	}
	defer l.close()
	l.write(b)
	got := l.reply4()
	switch {
	case got.token == "granted" && a.seen():
		if why := a.talk(l); why != "" {
			return row(sent, got, Bad, why)
		}
		return row(sent, got, OK, "")
	case got.token == "granted":
		return row(sent, got, OK, "")
	case strings.HasPrefix(got.token, "reply ") && !a.seen():
		return row(sent, got, Unknown, unseen)
	case got.token == silence:
		return row(sent, got, Bad, "")
	}
	return row(sent, got, No, "")
}

func http(ctx context.Context, p *prober) Row {
	const sent = "GET / HTTP/1.0"
	l, err := p.dial(ctx)
	if err != nil {
		return row(sent, answer{token: noDial, detail: err.Error()}, Unknown, "")
	}
	defer l.close()
	l.write([]byte("GET / HTTP/1.0\r\n\r\n"))
	got := l.method()
	v := OK
	if got.token == silence {
		v = Odd
	}
	return row(sent, got, v, "")
}
