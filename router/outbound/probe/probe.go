package probe

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// DefaultLimit is how long a server may take to answer. To find a host that is down
// takes a Linux 3 seconds.
const DefaultLimit = 10 * time.Second

// atATime is how many rows are probed beside one another. danted forks for a few, sshd
// counts connections that have not authenticated, and a server is to be asked, not to be
// loaded.
const atATime = 8

// Options say how a server is probed.
type Options struct {
	// Dial connects to the server, TLS included. It is called many times, and
	// several times at once. Errors are the row's.
	Dial func(context.Context) (outbound.Conn, error)
	// User and Password, if there is a password, are what the server is told. A User
	// alone is the user ID of SOCKS4. They are in no report.
	User, Password string

	// Self, if not empty, is the address under which the server reaches us, or one of
	// each family. Else it is that of our connection to the server.
	Self []netip.Addr
	// Target, if not zero, is a service that the server reaches and that answers what
	// it is sent: an echo, or a web server. It is asked for where the server does not
	// reach us, and by name, if it has one.
	Target flow.Target
	// UDPTarget, if valid, answers a DNS query: a resolver, or an echo. It is asked where
	// the server does not reach us.
	UDPTarget netip.AddrPort
	// Down, if valid, is the address of a host that is down, in a network of the
	// server's. Else it is one that is nobody's.
	Down netip.Addr
	// NoUDP, if not "", says why UDP is not probed.
	NoUDP string

	// Limit bounds each wait for the server; 0 is DefaultLimit.
	Limit time.Duration
}

// Verdict is what to think of what came back.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"      // as the RFC has it, or as a client would wish
	No      Verdict = "no"      // the server does not do it, and says so
	Odd     Verdict = "odd"     // not as the RFC has it, or less than it has; tunroute copes
	Bad     Verdict = "bad"     // a client hangs, loses data, or is told what is not true
	Unknown Verdict = "unknown" // could not be seen; the note says why
)

// Row is what came of one probe.
type Row struct {
	ID      string        // which; stable
	Sent    string        // in words
	Answer  string        // in one or two words, which are stable
	Detail  string        // more of the answer; "" where there is none
	Bytes   int           // of the SOCKS message that is the answer; 0 where it is none
	Verdict Verdict       // never "" in a report
	Note    string        // what follows from it; "" where nothing does
	Took    time.Duration // all of the row
}

// Report is what Run has found out.
type Report struct {
	Self    []netip.Addr // our addresses that the server reaches
	Refused string       // why nothing was asked by SOCKS5; "" if it was
	Rows    []Row        // in the order of rows.go; "target" only if there is one
	Advice  Advice
}

// Row returns the row of an ID; the zero Row if there is none.
func (r *Report) Row(id string) Row {
	for _, row := range r.Rows {
		if row.ID == id {
			return row
		}
	}
	return Row{}
}

// Advice is how a server is best used.
type Advice struct {
	Version    byte // 4 or 5; 0 if neither works
	Names      bool // it resolves names
	Pipeline   bool
	EarlyReply bool
	UDP        bool
}

// prober is a run.
type prober struct {
	Options
	openTCP func(netip.Addr) (net.Listener, error)   // listens at our address
	openUDP func(netip.Addr) (net.PacketConn, error) // the same for datagrams
	pause   time.Duration                            // between single bytes

	// What the rows before have found out. It does not change while rows run beside
	// one another.
	server             netip.Addr // of a unix socket not valid
	self4, self6       netip.Addr // where the server may reach us; not valid for none
	reached4, reached6 netip.Addr // where it does
	refused            string     // why there is no SOCKS5; "" if there is
	done               map[string]Row
}

// Run probes a server. It blocks until all is found out or until ctx ends, and opens and
// sends nothing to anybody but the server. An error says that the server cannot be
// reached at all, or that the options cannot be used.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if _, err := socks.AppendUserPass(nil, o.User, o.Password); err != nil {
		return nil, err
	}
	return (&prober{Options: o, openTCP: openTCP, openUDP: openUDP, pause: pause}).run(ctx)
}

func (p *prober) run(ctx context.Context) (*Report, error) {
	l, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	p.self4, p.self6 = selves(l.conn.LocalAddr(), p.Self)
	if tcp, ok := l.conn.RemoteAddr().(*net.TCPAddr); ok {
		p.server = tcp.AddrPort().Addr().Unmap()
	}
	l.close()

	p.done = make(map[string]Row)
	for step := first; step <= last; step++ {
		p.step(ctx, step)
		p.learn(step)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	r := &Report{Refused: p.refused}
	for _, a := range []netip.Addr{p.reached4, p.reached6} {
		if a.IsValid() {
			r.Self = append(r.Self, a)
		}
	}
	for _, x := range rows {
		if row := p.done[x.id]; row.Verdict != "" {
			r.Rows = append(r.Rows, row)
		}
	}
	r.Advice = p.advise(r)
	return r, nil
}

// step runs the rows of a step.
func (p *prober) step(ctx context.Context, step int) {
	var running sync.WaitGroup
	var mu sync.Mutex // guards found
	found := make(map[string]Row)
	slots := make(chan struct{}, atATime)
	for _, x := range rows {
		if x.step != step {
			continue
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			begun := time.Now()
			row := p.probe(ctx, x)
			row.ID, row.Took = x.id, time.Since(begun)
			mu.Lock()
			defer mu.Unlock()
			found[x.id] = row
		})
	}
	running.Wait()
	for id, row := range found {
		p.done[id] = row
	}
}

func (p *prober) probe(ctx context.Context, x probe) Row {
	if x.socks5 && p.refused != "" {
		return Row{Sent: "nothing", Verdict: Unknown, Note: p.refused}
	}
	return x.run(ctx, p)
}

// learn takes from the rows of a step what the next steps need.
func (p *prober) learn(step int) {
	switch step {
	case first:
		p.refused = p.whyNot5()
	case second:
		for _, x := range []struct {
			id       string
			to, from *netip.Addr
		}{{"ipv4", &p.reached4, &p.self4}, {"ipv6", &p.reached6, &p.self6}} {
			if row := p.done[x.id]; row.Verdict == OK {
				*x.to = *x.from
			}
		}
	}
}

const noSocks5 = "the server does not speak SOCKS5"

// whyNot5 says why the server cannot be asked for anything by SOCKS5, or "".
func (p *prober) whyNot5() string {
	none, user := p.done["method-none"], p.done["method-user"]
	switch {
	case p.credentials() && user.Answer == success:
	case p.credentials() && user.Answer == "method 2", p.credentials() && user.Verdict == Bad:
		return "user and password are refused"
	case p.credentials() && none.Answer == "method 0":
		return "the server takes no user and password: leave them out"
	case !p.credentials() && none.Answer == "method 0":
		return ""
	case !p.credentials() && user.Answer == "method 2":
		return "the server wants a user and a password: give them in the URL"
	case none.Answer == "no method":
		return "the server takes neither \"none\" nor a user and a password"
	default:
		return noSocks5
	}
	return ""
}

// advise draws the conclusion.
func (p *prober) advise(r *Report) Advice {
	var a Advice
	names := func(id string) bool {
		v := r.Row(id).Verdict
		return v == OK || v == Unknown
	}
	switch {
	case r.Refused == "":
		a = Advice{
			Version:  5,
			Names:    names("name") && names("name-literal"),
			Pipeline: r.Row("pipeline").Verdict == OK,
			UDP:      r.Row("udp").Verdict == OK && r.Row("udp-echo").Verdict != Bad,
		}
	case p.credentials() && r.Refused != noSocks5:
		// It may take us by SOCKS4, which has no passwords; that is not what was meant.
	case r.Row("socks4").Verdict == OK:
		a = Advice{Version: 4, Names: r.Row("socks4a").Verdict == OK}
	}
	a.EarlyReply = r.Row("refused").Answer == success
	return a
}
