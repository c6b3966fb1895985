package router

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
	"tunroute/router/socks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNames knows one name behind one fake address of a range.
type fakeNames struct {
	mu   sync.Mutex
	held int
}

var (
	fakeRange = netip.MustParsePrefix("198.18.0.0/15")
	fakeAddr  = netip.MustParseAddr("198.18.0.9")
	client    = netip.MustParseAddrPort("10.0.0.2:4000")
)

func (n *fakeNames) Owns(a netip.Addr) bool { return fakeRange.Contains(a) }

func (n *fakeNames) Acquire(a netip.Addr) (string, func(), bool) {
	if a != fakeAddr {
		return "", nil, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.held++
	return "a.test", func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.held--
	}, true
}

func (n *fakeNames) holds() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held
}

// pipeConn is one end of a connection in memory, whose directions end apart.
type pipeConn struct {
	net.Conn // reads
	out      net.Conn
	reset    bool
}

// pipe returns both ends of a connection.
func pipe() (near, far *pipeConn) {
	a, b := net.Pipe()
	c, d := net.Pipe()
	return &pipeConn{Conn: a, out: d}, &pipeConn{Conn: c, out: b}
}

func (c *pipeConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *pipeConn) CloseWrite() error           { return c.out.Close() }
func (c *pipeConn) Reset()                      { c.reset = true; c.Close() }

func (c *pipeConn) Close() error {
	c.out.Close()
	return c.Conn.Close()
}

// fakeRequest is an attempt; the client's end of what it accepts is far.
type fakeRequest struct {
	dst     netip.AddrPort
	gone    error // what Accept returns
	order   *[]string
	far     chan net.Conn
	refused chan syscall.Errno
}

func newRequest(dst string) *fakeRequest {
	return &fakeRequest{dst: netip.MustParseAddrPort(dst), order: new([]string), far: make(chan net.Conn, 1), refused: make(chan syscall.Errno, 1)}
}

func (q *fakeRequest) Source() netip.AddrPort      { return client }
func (q *fakeRequest) Destination() netip.AddrPort { return q.dst }
func (q *fakeRequest) Refuse(e syscall.Errno)      { q.refused <- e }

func (q *fakeRequest) Accept() (relay.Conn, error) {
	*q.order = append(*q.order, "accept")
	if q.gone != nil {
		return nil, q.gone
	}
	near, far := pipe()
	q.far <- far
	return near, nil
}

// fakeDialer connects to the ends that it hands out.
type fakeDialer struct {
	err     error
	order   *[]string
	targets []flow.Target
	far     chan net.Conn
	last    *pipeConn
}

func (d *fakeDialer) DialTCP(ctx context.Context, t flow.Target) (outbound.Conn, error) {
	d.targets = append(d.targets, t)
	if d.order != nil {
		*d.order = append(*d.order, "dial")
	}
	if d.err != nil {
		return nil, d.err
	}
	near, far := pipe()
	d.far <- far
	d.last = near
	return d.last, nil
}

func newDialer() *fakeDialer { return &fakeDialer{far: make(chan net.Conn, 1)} }

type noUDP struct{}

func (noUDP) WriteUDP([]byte, netip.AddrPort, netip.AddrPort) error        { return nil }
func (noUDP) RefuseUDP(netip.AddrPort, netip.AddrPort, int, syscall.Errno) {}

// newRouter sends a.test and 192.0.2.0/24 to d, rejects 192.0.2.66 and drops
// 192.0.2.77.
func newRouter(t *testing.T, d outbound.Dialer, o Options) (*Router, *fakeNames, *bytes.Buffer) {
	t.Helper()
	dest := func(s string) []rule.Dest {
		p, err := rule.ParseDest(s)
		if err != nil {
			t.Fatal(err)
		}
		return []rule.Dest{p}
	}
	table, err := rule.Compile([]rule.Rule{
		{To: dest("192.0.2.66"), Via: "reject", Line: 10},
		{To: dest("192.0.2.77"), Via: "drop", Line: 11},
		{To: dest("a.test"), Via: "p1", Line: 12},
		{To: dest("192.0.2.0/24"), Via: "p1", Line: 13},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Snapshot, err = NewSnapshot(table, []*Outbound{
		{Name: "reject", Dialer: outbound.Reject{}},
		{Name: "drop", Dialer: outbound.Drop{}},
		{Name: "p1", Hops: []string{"d1", "p1"}, Dialer: d},
	})
	if err != nil {
		t.Fatal(err)
	}
	names := new(fakeNames)
	var log bytes.Buffer
	o.Names, o.UDP, o.Logger = names, noUDP{}, slog.New(slog.NewTextHandler(&log, nil))
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r, names, &log
}

func TestAcceptComesAfterDial(t *testing.T) {
	d, q := newDialer(), newRequest("198.18.0.9:80")
	d.order = q.order
	r, names, log := newRouter(t, d, Options{})
	done := make(chan struct{})
	go func() { r.ServeTCP(t.Context(), q); close(done) }()
	upstream, far := <-d.far, <-q.far

	if want := (flow.Target{Name: "a.test", Port: 80}); d.targets[0] != want {
		t.Errorf("dialled %+v, want %+v: a fake address must not leave", d.targets[0], want)
	}
	if names.holds() != 1 {
		t.Errorf("%d leases held during the flow, want 1", names.holds())
	}
	if list := r.Flows(); len(list) != 1 || list[0].Outbound != "p1" {
		t.Errorf("Flows = %+v, want the one", list)
	}
	go far.Write([]byte("ping"))
	io.ReadFull(upstream, make([]byte, 4))
	far.(*pipeConn).CloseWrite()
	upstream.(*pipeConn).CloseWrite()
	<-done
	if got := strings.Join(*q.order, " "); got != "dial accept" {
		t.Errorf("order %q, want dial before accept", got)
	}
	if names.holds() != 0 || len(r.Flows()) != 0 {
		t.Errorf("%d leases and %d flows held after the end, want none", names.holds(), len(r.Flows()))
	}
	for _, want := range []string{"net=tcp", "src=10.0.0.2:4000", "dst=a.test:80", "rule=3", "line=12", "out=p1", `hops="d1 > p1"`, "up=4", "down=0", "end=eof"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the record lacks %s: %s", want, log)
		}
	}
	if strings.Contains(log.String(), "198.18.") {
		t.Errorf("the record shows a fake address: %s", log)
	}
}

// TestOrphansAreToldOnce: a client that holds a dead address tries again and again.
func TestOrphansAreToldOnce(t *testing.T) {
	r, _, log := newRouter(t, newDialer(), Options{})
	for range 3 {
		r.ServeTCP(t.Context(), newRequest("198.18.0.10:80"))
	}
	if n := strings.Count(log.String(), "level=WARN msg=orphan src=10.0.0.2:4000 dst=198.18.0.10:80"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, log)
	}
	if n := strings.Count(log.String(), "end=orphan"); n != 3 {
		t.Errorf("%d records, want 3:\n%s", n, log)
	}
}

// TestBeforeTheRules: what is decided before the rules is not for them.
func TestBeforeTheRules(t *testing.T) {
	d := newDialer()
	r, _, log := newRouter(t, d, Options{})
	r.Swap(r.snap.Load().Before(func(f *flow.Flow) *Outbound {
		if f.Target.Port != 853 {
			return nil
		}
		return &Outbound{Name: "reject", Dialer: outbound.Reject{Why: "so it is"}}
	}))
	q := newRequest("192.0.2.1:853")
	r.ServeTCP(t.Context(), q)
	if got := <-q.refused; got != syscall.EACCES || len(d.targets) > 0 {
		t.Errorf("refused with %v, want EACCES; dialled %v", got, d.targets)
	}
	if !strings.Contains(log.String(), `end=rejected err="rejected by rule: so it is"`) {
		t.Errorf("record: %s", log)
	}
	u := r.decideUDP(netip.MustParseAddrPort("10.0.0.2:4000"), netip.MustParseAddrPort("192.0.2.1:853"))
	if u.Dialer != nil || u.Drop || u.Tag.(*Record).End != EndRejected {
		t.Errorf("UDP: %+v", u)
	}
	if u := r.decideUDP(netip.MustParseAddrPort("10.0.0.2:4000"), netip.MustParseAddrPort("192.0.2.1:80")); u.Tag.(*Record).Outbound != "p1" {
		t.Errorf("what was left to the rules: %+v", u)
	}
}

func TestRefusals(t *testing.T) {
	hop := func(op string, err error) error {
		return &outbound.HopError{Hop: 2, Hops: 2, Upstream: "p1", Op: op, Err: err}
	}
	for _, c := range []struct {
		name, dst string
		dial      error
		want      syscall.Errno
		log       string
	}{
		{"orphan", "198.18.0.10:80", nil, syscall.EHOSTUNREACH, "end=orphan"},
		{"reject", "192.0.2.66:80", nil, syscall.EACCES, "line=10 out=reject up=0"},
		{"drop", "192.0.2.77:80", nil, 0, "end=rejected"},
		{"default", "203.0.113.1:80", nil, syscall.EACCES, "rule=default out=reject"},
		{"refused by the target", "192.0.2.1:80", hop("request", socks.ReplyRefused), syscall.ECONNREFUSED, "end=refused"},
		{"ruleset of the server", "192.0.2.1:80", hop("request", socks.ReplyRuleset), syscall.EACCES, "hop 2 of 2 (p1)"},
		{"the server is down", "192.0.2.1:80", hop("connect", syscall.ECONNREFUSED), syscall.EHOSTUNREACH, "end=failed"},
		{"no network", "192.0.2.1:80", syscall.ENETUNREACH, syscall.ENETUNREACH, "end=failed"},
	} {
		d, q := newDialer(), newRequest(c.dst)
		d.err = c.dial
		r, names, log := newRouter(t, d, Options{})
		r.ServeTCP(t.Context(), q)
		select {
		case got := <-q.refused:
			if got != c.want {
				t.Errorf("%s: refused with %v, want %v", c.name, got, c.want)
			}
		default:
			t.Errorf("%s: not refused", c.name)
		}
		if !strings.Contains(log.String(), c.log) {
			t.Errorf("%s: the record lacks %q: %s", c.name, c.log, log)
		}
		if c.dial == nil && len(d.targets) != 0 {
			t.Errorf("%s: dialled %v, want no dial", c.name, d.targets)
		}
		if names.holds() != 0 {
			t.Errorf("%s: a lease is still held", c.name)
		}
	}
}

func TestClientThatLeftEndsTheUpstream(t *testing.T) {
	d, q := newDialer(), newRequest("192.0.2.1:80")
	q.gone = syscall.ECONNRESET
	r, _, log := newRouter(t, d, Options{})
	r.ServeTCP(t.Context(), q)
	if !d.last.reset {
		t.Error("the upstream was not reset")
	}
	if !strings.Contains(log.String(), "end=client") {
		t.Errorf("record %s, want end=client", log)
	}
}

func TestLimitEvictsOnlyWhatIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		r, _, _ := newRouter(t, d, Options{MaxFlows: 1})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() { r.flows.watch(ctx); close(ran) }() // the part of Run that knows idle flows
		serve := func() (*fakeRequest, chan struct{}) {
			q, done := newRequest("192.0.2.1:80"), make(chan struct{})
			go func() { r.ServeTCP(ctx, q); close(done) }()
			synctest.Wait()
			return q, done
		}
		first, firstDone := serve()
		<-d.far
		second, _ := serve()
		if e := <-second.refused; e != syscall.ECONNREFUSED {
			t.Errorf("a flow over the limit was refused with %v", e)
		}
		time.Sleep(2 * evictable)
		_, thirdDone := serve()
		<-firstDone
		far := <-first.far
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("the idle flow was not ended for the new one")
		}
		if s := r.Stats(); s.Flows != 1 || s.FlowsEvicted != 1 || s.FlowsRefused != 1 {
			t.Errorf("%+v", s)
		}
		cancel()
		<-thirdDone
		<-ran
	})
}

// TestSilence: a flow is ended when nothing has come for long, sooner if one side has
// ended, and not while its dial takes its time.
func TestSilence(t *testing.T) {
	const idle, halfClose = time.Hour, 10 * time.Minute
	for _, c := range []struct {
		name string
		do   func(far, upstream net.Conn)
		want time.Duration // from the accept
		log  string
	}{
		{"silent", func(_, _ net.Conn) {}, idle, "end=idle"},
		{"half-closed by the client", func(far, _ net.Conn) { far.(*pipeConn).CloseWrite() }, halfClose, "end=half-close"},
		{"half-closed by the upstream", func(_, upstream net.Conn) { upstream.(*pipeConn).CloseWrite() }, halfClose, "end=half-close"},
		{"half-closed and used", func(far, upstream net.Conn) {
			far.(*pipeConn).CloseWrite()
			for range 10 {
				time.Sleep(halfClose * 3 / 4)
				upstream.Write([]byte("x"))
				far.Read(make([]byte, 1))
			}
		}, halfClose*30/4 + halfClose, "end=half-close"},
		{"used", func(far, upstream net.Conn) {
			time.Sleep(idle * 3 / 4)
			far.Write([]byte("x"))
			upstream.Read(make([]byte, 1))
		}, idle * 7 / 4, "end=idle"},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := slowDialer{newDialer(), 2 * idle}
			r, _, log := newRouter(t, d, Options{TCPIdle: idle, HalfClose: halfClose})
			ctx, cancel := context.WithCancel(t.Context())
			var parts sync.WaitGroup
			parts.Go(func() { r.flows.watch(ctx) })
			q, begun := newRequest("192.0.2.1:80"), time.Now()
			parts.Go(func() { r.ServeTCP(ctx, q); cancel() })
			parts.Go(func() { c.do(<-q.far, <-d.far) })
			<-ctx.Done()
			if took := time.Since(begun) - 2*idle; took < c.want || took > c.want+3*watchInterval {
				t.Errorf("%s: it ended after %v, want %v", c.name, took, c.want)
			}
			parts.Wait()
			if !strings.Contains(log.String(), c.log+" err=") {
				t.Errorf("%s: the record lacks %s: %s", c.name, c.log, log)
			}
			if !d.last.reset {
				t.Errorf("%s: the upstream was not reset", c.name)
			}
		})
	}
}

// TestLimits: a flow too many is refused before anything is dialled, counted and told of
// in a warning; an end makes room. What is rejected does not count, nor for one limit what
// another refuses.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		r, names, log := newRouter(t, withUDP{d}, Options{})
		ofRule := limit.New(limit.Options{Name: "the rule", Per: limit.Source, Sessions: 1})
		rate := limit.New(limit.Options{Name: "limits.rate", Rate: limit.Rate{N: 2, Per: time.Minute}})
		r.Swap(r.snap.Load().With(SnapshotOptions{Limits: []*limit.Limiter{rate}, Rules: []RuleOptions{3: {Limit: ofRule}}}))
		ctx, cancel := context.WithCancel(t.Context())
		var parts sync.WaitGroup
		parts.Go(func() { r.udp.Run(ctx) })
		parts.Go(func() { r.flows.watch(ctx) })
		serve := func(dst string) *fakeRequest {
			q := newRequest(dst)
			parts.Go(func() { r.ServeTCP(ctx, q) })
			synctest.Wait()
			return q
		}
		refused := func(dst string, want syscall.Errno) {
			t.Helper()
			select {
			case e := <-serve(dst).refused:
				if e != want {
					t.Errorf("%s: refused with %v, want %v", dst, e, want)
				}
			default:
				t.Errorf("%s: not refused", dst)
			}
		}
		for range 9 {
			refused("192.0.2.66:80", syscall.EACCES) // by a rule: does not count
		}
		first, firstFar := serve("192.0.2.1:80"), <-d.far
		refused("192.0.2.1:80", syscall.ECONNREFUSED)
		if !r.ServeUDP(client, netip.MustParseAddrPort("192.0.2.77:53"), []byte("x")) {
			t.Error("what is dropped is refused")
		}
		if r.ServeUDP(client, netip.MustParseAddrPort("192.0.2.1:53"), []byte("x")) {
			t.Error("a datagram of a source with a flow was taken")
		}
		(<-first.far).Close()
		firstFar.Close()
		synctest.Wait()
		second, secondFar := serve("192.0.2.1:80"), <-d.far
		refused("198.18.0.9:80", syscall.ECONNREFUSED) // the third in the minute
		synctest.Wait()
		if n := ofRule.Entries() + rate.Entries(); n != 2 || len(d.targets) != 2 || names.holds() != 0 {
			t.Errorf("%d entries, %d dials, %d leases; want 2, 2 and none", n, len(d.targets), names.holds())
		}
		if s := r.Stats(); s.Limited != 3 {
			t.Errorf("%d flows limited, want 3", s.Limited)
		}
		(<-second.far).Close()
		secondFar.Close()
		time.Sleep(2 * time.Minute)
		if n := ofRule.Entries() + rate.Entries(); n != 0 {
			t.Errorf("%d entries when all is over", n)
		}
		cancel()
		parts.Wait()
		for _, want := range []string{
			`level=WARN msg="a limit refuses flows" limit="the rule" src=10.0.0.2:4000 line=13 refused=1`,
			`limit=limits.rate src=10.0.0.2:4000 line=12 refused=1`,
			`net=tcp src=10.0.0.2:4000 dst=192.0.2.1:80 rule=4 line=13 out=p1 hops="d1 > p1" up=0 down=0 took=0s end=limit err="more than 1 flows of one source, which the rule allows"`,
			`net=udp src=10.0.0.2:4000 dst=192.0.2.1:53`,
		} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %s:\n%s", want, log)
			}
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 2 {
			t.Errorf("%d warnings, want one for each limit", n)
		}
	})
}

// lingering is a client that takes its time to go when it is refused.
type lingering struct{ refused func(error) }

func (l lingering) Accept(netip.AddrPort) (relay.Conn, []byte, error) {
	return nil, nil, errors.New("it cannot be connected")
}
func (l lingering) Refuse(err error) { l.refused(err) }

// TestRefusedHoldsNothing: while a client that is refused has not gone, it counts for no
// limit, and holds no lease.
func TestRefusedHoldsNothing(t *testing.T) {
	d := newDialer()
	d.err = syscall.ECONNREFUSED
	r, names, _ := newRouter(t, d, Options{})
	one := limit.New(limit.Options{Name: "limits.per-source", Per: limit.Source, Sessions: 1})
	r.Swap(r.snap.Load().With(SnapshotOptions{Limits: []*limit.Limiter{one}}))
	heard := false
	r.ServeCall(t.Context(), flow.Flow{Network: flow.TCP, Source: client, Target: flow.AddrTarget(netip.MustParseAddrPort("198.18.0.9:80"))}, lingering{func(err error) {
		heard = errors.Is(err, syscall.ECONNREFUSED)
		if n := one.Entries(); n != 0 || names.holds() != 0 || r.Stats().Flows != 0 {
			t.Errorf("%d count for a limit, %d leases, %d flows; want none", n, names.holds(), r.Stats().Flows)
		}
	}})
	if !heard {
		t.Error("it was not refused")
	}
}

// TestEvents: of a flow is logged what its rule says, and both its ends are counted.
func TestEvents(t *testing.T) {
	for _, c := range []struct {
		events Events
		good   string // of a flow that is connected: the messages, in their order
		bad    string // of one that is not
	}{
		{0, "flow", "flow"},
		{LogConnect, "connect", ""},
		{LogError, "", "flow"},
		{LogDisconnect, "flow", ""},
		{LogConnect | LogDisconnect, "connect flow", ""},
		{LogConnect | LogError | LogDisconnect, "connect flow", "flow"},
		{LogNone, "", ""},
	} {
		d := newDialer()
		r, _, log := newRouter(t, d, Options{})
		r.Swap(r.snap.Load().With(SnapshotOptions{Rules: []RuleOptions{3: {Log: c.events}}}))
		logged := func() string {
			var said []string
			for line := range strings.Lines(log.String()) {
				if !strings.Contains(line, "net=tcp src=10.0.0.2:4000 dst=192.0.2.1:80 rule=4 line=13 out=p1") {
					t.Errorf("%d: %s", c.events, line)
				}
				_, line, _ = strings.Cut(line, "msg=")
				line, _, _ = strings.Cut(line, " ")
				said = append(said, line)
			}
			log.Reset()
			return strings.Join(said, " ")
		}
		q, done := newRequest("192.0.2.1:80"), make(chan struct{})
		go func() { r.ServeTCP(t.Context(), q); close(done) }()
		(<-d.far).Close()
		(<-q.far).Close()
		<-done
		if got := logged(); got != c.good {
			t.Errorf("%d: of a flow that was connected %q is logged, want %q", c.events, got, c.good)
		}
		d.err = syscall.ECONNREFUSED
		r.ServeTCP(t.Context(), newRequest("192.0.2.1:80"))
		if got := logged(); got != c.bad {
			t.Errorf("%d: of a flow that was not %q is logged, want %q", c.events, got, c.bad)
		}
		if s := r.Stats(); s.TCP != 2 {
			t.Errorf("%d: %d flows counted, want 2", c.events, s.TCP)
		}
	}
}

// TestConnectOfUDP is logged by another than who reads the packets.
func TestConnectOfUDP(t *testing.T) {
	r, _, log := newRouter(t, withUDP{newDialer()}, Options{})
	r.Swap(r.snap.Load().With(SnapshotOptions{Rules: []RuleOptions{3: {Log: LogConnect}}}))
	r.ServeUDP(client, netip.MustParseAddrPort("192.0.2.1:53"), []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx) // waits for it
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg=connect net=udp src=10.0.0.2:4000 dst=192.0.2.1:53 rule=4 line=13 out=p1 hops="d1 > p1"`) {
		t.Errorf("logged: %s", got)
	}
}

// withUDP is asked for UDP too.
type withUDP struct{ *fakeDialer }

func (withUDP) OpenUDP(context.Context) (outbound.PacketConn, error) { return nil, outbound.ErrNoUDP }

// slowDialer takes its time.
type slowDialer struct {
	*fakeDialer
	takes time.Duration
}

func (d slowDialer) DialTCP(ctx context.Context, t flow.Target) (outbound.Conn, error) {
	time.Sleep(d.takes)
	return d.fakeDialer.DialTCP(ctx, t)
}

// BenchmarkLook is what a tick costs when as many flows are open as may be.
func BenchmarkLook(b *testing.B) {
	var g registry
	g.init(DefaultMaxFlows, time.Hour, time.Minute)
	now := time.Now()
	for range DefaultMaxFlows {
		f := &tcpFlow{rec: Record{Start: now}}
		f.relayed.Store(true)
		g.add(f, func(error) {})
	}
	for b.Loop() {
		g.look(now)
	}
}

func TestSwapDecidesNewFlows(t *testing.T) {
	d := newDialer()
	r, _, _ := newRouter(t, d, Options{})
	empty, err := rule.Compile(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSnapshot(empty, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Swap(s)
	q := newRequest("192.0.2.1:80")
	r.ServeTCP(t.Context(), q)
	if e := <-q.refused; e != syscall.EACCES || len(d.targets) != 0 {
		t.Errorf("after Swap: refused with %v and %d dials, want EACCES and none", e, len(d.targets))
	}
}

func TestSnapshotNeedsTheOutboundsOfItsRules(t *testing.T) {
	table, err := rule.Compile([]rule.Rule{{Via: "nowhere"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSnapshot(table, nil); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("NewSnapshot = %v, want an error that names the outbound", err)
	}
}

func TestUDPIsDecidedAtOnce(t *testing.T) {
	r, names, _ := newRouter(t, newDialer(), Options{}) // whose dialer carries no UDP
	for _, c := range []struct {
		dst   string
		taken bool
	}{
		{"192.0.2.1:443", false},  // no UDP through p1
		{"198.18.0.9:443", false}, // the same by name
		{"198.18.0.10:443", false},
		{"192.0.2.66:443", false},
		{"192.0.2.77:443", true}, // dropped
		{"203.0.113.1:443", false},
	} {
		if got := r.ServeUDP(client, netip.MustParseAddrPort(c.dst), []byte("x")); got != c.taken {
			t.Errorf("%s: taken %v, want %v", c.dst, got, c.taken)
		}
	}
	if names.holds() != 0 {
		t.Errorf("%d leases held, want none", names.holds())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Run(ctx)
}

// fakeEcho is an echo request; answer gets "reply" or the errno.
type fakeEcho struct {
	dst    netip.Addr
	answer chan string
}

func (e *fakeEcho) Source() netip.Addr       { return client.Addr() }
func (e *fakeEcho) Destination() netip.Addr  { return e.dst }
func (e *fakeEcho) Data() []byte             { return []byte("data") }
func (e *fakeEcho) Reply()                   { e.answer <- "reply" }
func (e *fakeEcho) Refuse(err syscall.Errno) { e.answer <- err.Error() }

// pinger is an outbound that can ask for echoes.
type pinger struct {
	*fakeDialer
	err error
}

func (p pinger) Echo(context.Context, netip.Addr, []byte) error { return p.err }

func TestEcho(t *testing.T) {
	unreachable := syscall.EHOSTUNREACH.Error()
	for _, c := range []struct {
		name, dst string
		via       outbound.Dialer
		want      string
	}{
		{"a name answers for itself", "198.18.0.9", newDialer(), "reply"},
		{"orphan", "198.18.0.10", newDialer(), unreachable},
		{"through a proxy", "192.0.2.1", newDialer(), unreachable},
		{"direct", "192.0.2.1", pinger{}, "reply"},
		{"direct to nobody", "192.0.2.1", pinger{err: syscall.EHOSTUNREACH}, unreachable},
		{"rejected", "192.0.2.66", pinger{}, unreachable},
	} {
		r, names, _ := newRouter(t, c.via, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() { r.Run(ctx); close(ran) }()
		e := &fakeEcho{netip.MustParseAddr(c.dst), make(chan string, 1)}
		r.ServeEcho(ctx, e)
		if got := <-e.answer; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		cancel()
		<-ran
		if names.holds() != 0 {
			t.Errorf("%s: a lease is still held", c.name)
		}
	}
}

// asked tells which flow it is asked to open something for, notes a choice, and opens
// nothing.
type asked struct{ flow chan *outbound.Flow }

func (a asked) DialTCP(ctx context.Context, _ flow.Target) (outbound.Conn, error) {
	outbound.FlowOf(ctx).Chose("d1", "m")
	a.flow <- outbound.FlowOf(ctx)
	return nil, syscall.ECONNREFUSED
}

func (a asked) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	_, err := a.DialTCP(ctx, flow.Target{})
	return nil, err
}

// TestOutboundIsToldOfTheFlow: where it comes from and what rule sent it, for TCP and
// UDP; what a group notes is in the record.
func TestOutboundIsToldOfTheFlow(t *testing.T) {
	d := asked{make(chan *outbound.Flow, 1)}
	r, _, log := newRouter(t, d, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { r.Run(ctx); close(ran) }()

	r.ServeTCP(ctx, newRequest("198.18.0.9:80"))
	tcp := <-d.flow
	r.ServeUDP(client, netip.MustParseAddrPort("192.0.2.1:53"), []byte("x")) // refused, now or later
	udp := <-d.flow
	cancel()
	<-ran
	for _, c := range []struct {
		got  *outbound.Flow
		net  flow.Network
		host string
		rule int
	}{{tcp, flow.TCP, "a.test", 2}, {udp, flow.UDP, "192.0.2.1", 3}} {
		if f := c.got; f == nil || f.Network != c.net || f.Source != client || f.Inbound != "tun" || f.Target.Host() != c.host || f.Rule != c.rule {
			t.Errorf("%s: the flow is %+v", c.net, f)
		}
	}
	if n := strings.Count(log.String(), `hops="d1/m > p1"`); n != 2 {
		t.Errorf("%d records have the member, want 2: %s", n, log)
	}
}

func TestEndOfDial(t *testing.T) {
	for err, want := range map[error]End{
		outbound.ErrRejected:     EndRejected,
		outbound.ErrDropped:      EndRejected,
		context.Canceled:         EndCanceled,
		syscall.ECONNREFUSED:     EndRefused,
		context.DeadlineExceeded: EndFailed,
		errors.New("whatever"):   EndFailed,
	} {
		if got := endOfDial(err); got != want {
			t.Errorf("endOfDial(%v) = %s, want %s", err, got, want)
		}
	}
}
