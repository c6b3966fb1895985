package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
	"tunroute/router/udpnat"
)

// Request is a TCP connection attempt that has had no answer yet.
type Request interface {
	Source() netip.AddrPort
	Destination() netip.AddrPort

	// Accept completes the handshake with the client; the error says that
	// it has gone.
	Accept() (relay.Conn, error)

	// Refuse makes the client's connect(2) return e; 0 is silence.
	Refuse(e syscall.Errno)
}

// Echo is an ICMP echo request that has had no answer yet.
type Echo interface {
	Source() netip.Addr
	Destination() netip.Addr
	Data() []byte
	Reply()
	Refuse(e syscall.Errno)
}

// Names says which name stands behind a fake address. Its methods do not block.
type Names interface {
	// Owns says that addr is within a fake range.
	Owns(addr netip.Addr) bool
	// Acquire returns the name behind addr and keeps the lease from being
	// given to another name until release is called.
	Acquire(addr netip.Addr) (name string, release func(), ok bool)
}

// NoNames is what Names are where there are no fake addresses.
type NoNames struct{}

// Owns returns false.
func (NoNames) Owns(netip.Addr) bool { return false }

// Acquire is not reached.
func (NoNames) Acquire(netip.Addr) (string, func(), bool) { return "", nil, false }

// Outbound is a way out, as the rules name it.
type Outbound struct {
	Name   string
	Hops   []string // the upstreams on the way, nearest first; empty for direct
	Dialer outbound.Dialer

	// Same is equal for Outbounds of different Snapshots that lead the same way:
	// what is open for a client's UDP socket on one is used for the other. It is
	// comparable; nil: there is no other.
	Same any
}

// way is Same, and never nil.
func (o *Outbound) way() any {
	if o.Same != nil {
		return o.Same
	}
	return o
}

// Snapshot is what a config says of flows. It is immutable.
type Snapshot struct {
	table  *rule.Table
	outs   map[string]*Outbound
	before func(f *flow.Flow) *Outbound // may be nil
	more   SnapshotOptions
}

// SnapshotOptions are what a config says besides where flows go.
type SnapshotOptions struct {
	Limits []*limit.Limiter // of all flows that are not rejected, the narrowest first
	Rules  []RuleOptions    // by the number of the rule; rules beyond have none
}

// RuleOptions are what a rule says besides where its flows go.
type RuleOptions struct {
	Limit     *limit.Limiter   // nil: none
	Bandwidth *limit.Bandwidth // nil: no limit
	Log       Events           // what is logged of its flows
}

// NewSnapshot returns the Snapshot of a table and the outbounds that it names.
func NewSnapshot(t *rule.Table, outs []*Outbound) (*Snapshot, error) {
	s := &Snapshot{table: t, outs: make(map[string]*Outbound, len(outs))}
	for _, o := range outs {
		if s.outs[o.Name] != nil {
			return nil, fmt.Errorf("router: two outbounds named %q", o.Name)
		}
		s.outs[o.Name] = o
	}
	for i, r := range t.Rules() {
		if s.outs[r.Via] == nil {
			return nil, fmt.Errorf("router: rule %d goes via %q, which is not an outbound", i+1, r.Via)
		}
	}
	return s, nil
}

// Before returns a Snapshot in which decide is asked before the rules, which decide
// where it returns nil. It runs at flow tempo and keeps nothing of f.
func (s *Snapshot) Before(decide func(f *flow.Flow) *Outbound) *Snapshot {
	return &Snapshot{s.table, s.outs, decide, s.more}
}

// With returns a Snapshot that has these options.
func (s *Snapshot) With(o SnapshotOptions) *Snapshot {
	return &Snapshot{s.table, s.outs, s.before, o}
}

// options returns those of a rule; index is -1 where none matches.
func (s *Snapshot) options(index int) RuleOptions {
	if index < 0 || index >= len(s.more.Rules) {
		return RuleOptions{}
	}
	return s.more.Rules[index]
}

// byDefault is where a flow goes that no rule matches.
var byDefault = &Outbound{Name: "reject", Dialer: outbound.Reject{}}

// route returns the verdict on f and the outbound that it names.
func (s *Snapshot) route(f *flow.Flow) (rule.Verdict, *Outbound) {
	if s.before != nil {
		if out := s.before(f); out != nil {
			return rule.Verdict{Index: -1, Via: out.Name}, out
		}
	}
	v := s.table.Match(f)
	if v.Index < 0 {
		return v, byDefault
	}
	return v, s.outs[v.Via]
}

// rejects says whether no flow gets through the outbound of that name.
func (s *Snapshot) rejects(via string) bool { return s.outs[via].rejects() }

// rejects says whether no flow gets through o.
func (o *Outbound) rejects() bool {
	switch o.Dialer.(type) {
	case outbound.Reject, outbound.Drop:
		return true
	}
	return false
}

// ask returns the flow of rec as its outbound sees it. Where its name is resolved
// here, rules about addresses keep it from what they reject: those above the one that
// decided the name.
func (s *Snapshot) ask(rec *Record) *outbound.Flow {
	asked := &outbound.Flow{Flow: rec.Flow, Rule: rec.Verdict.Index}
	if rec.Flow.Target.Name != "" {
		asked.Rejects = func(a netip.Addr) bool {
			f := asked.Flow
			f.Target.Addr = a
			_, out := s.route(&f)
			return out.rejects()
		}
	}
	return asked
}

// Defaults of [Options].
const (
	// DefaultMaxFlows: a flow costs a socket and, while it is idle, 7 KB;
	// 16,384 of them stay below a limit of 20,000 files.
	DefaultMaxFlows = 16384
	// maxEchoes in flight to other hosts: each costs a socket.
	maxEchoes = 64
	// echoTimeout: ping itself gives up after 10 s.
	echoTimeout = 10 * time.Second
)

// Options configure a [Router]. Snapshot, Names and UDP are required.
type Options struct {
	Snapshot *Snapshot
	Names    Names
	UDP      udpnat.Writer // where replies to datagrams go
	Clients  Clients       // for helpers of rules, who do nothing without
	Logger   *slog.Logger  // one Info line per flow, at its end; nil discards

	MaxFlows       int           // TCP flows; 0: DefaultMaxFlows
	MaxUDPSessions int           // 0: udpnat.DefaultMaxSessions
	UDPIdle        time.Duration // 0: udpnat.DefaultIdle
	TCPIdle        time.Duration // how long a TCP flow may be silent; 0: for ever
	HalfClose      time.Duration // the same when one side has ended
}

// Router serves flows. Its methods are safe for concurrent use.
type Router struct {
	opts   Options
	log    *slog.Logger
	snap   atomic.Pointer[Snapshot]
	flows  registry
	loop   atomic.Pointer[relay.Loop] // nil but during Run, and where this system has none
	udp    *udpnat.Table
	assocs associations
	echoes chan struct{} // a token per echo in flight

	orphans clients // who was told of in the log
	stats   counters
}

// New returns a Router. It starts nothing; [Router.Run] does.
func New(o Options) (*Router, error) {
	if o.Snapshot == nil || o.Names == nil || o.UDP == nil {
		return nil, errors.New("router: Snapshot, Names and UDP are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxFlows <= 0 {
		o.MaxFlows = DefaultMaxFlows
	}
	r := &Router{opts: o, log: o.Logger, echoes: make(chan struct{}, maxEchoes)}
	r.flows.init(o.MaxFlows, o.TCPIdle, o.HalfClose)
	r.flows.tick = func(now time.Time) { r.snap.Load().expire(now) }
	r.udp = udpnat.New(udpnat.Options{
		Decide:      r.decideUDP,
		Writer:      o.UDP,
		Done:        r.doneUDP,
		Idle:        o.UDPIdle,
		MaxSessions: o.MaxUDPSessions,
	})
	r.snap.Store(o.Snapshot)
	return r, nil
}

// Run expires what is idle until ctx ends, then ends all flows and returns when
// they have been told of.
func (r *Router) Run(ctx context.Context) error {
	loop, err := relay.NewLoop()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("router: %w", err)
	}
	var parts sync.WaitGroup
	if loop != nil {
		r.loop.Store(loop)
		parts.Go(func() { loop.Run(ctx) })
	}
	parts.Go(func() { r.flows.watch(ctx) })
	r.udp.Run(ctx)
	r.loop.Store(nil)
	parts.Wait()
	return nil
}

// Swap makes s decide all flows from now on. Flows that are open keep their
// outbound.
func (r *Router) Swap(s *Snapshot) { r.snap.Store(s) }

// ErrOrphan is told of a flow to a fake address behind which there is no name.
var ErrOrphan error = orphanError{}

type orphanError struct{}

func (orphanError) Error() string {
	return "no name behind this fake address: the client holds an answer from before"
}

func (orphanError) Unwrap() error { return outbound.ErrNoName }

// target returns where dst leads, and what gives the lease back.
func (r *Router) target(dst netip.AddrPort) (flow.Target, func(), error) {
	a := dst.Addr().Unmap()
	if !r.opts.Names.Owns(a) {
		return flow.AddrTarget(dst), func() {}, nil
	}
	name, release, ok := r.opts.Names.Acquire(a)
	if !ok {
		r.stats.orphans.Add(1)
		return flow.AddrTarget(dst), func() {}, ErrOrphan
	}
	t, err := flow.NewTarget(name, dst.Port())
	if err != nil {
		release()
		return flow.AddrTarget(dst), func() {}, err
	}
	return t, release, nil
}

// ServeTCP decides q and serves it. The client hears nothing before the last hop
// has answered. It returns when the flow has ended, or as soon as it needs no
// goroutine any more; [Router.Run] waits for such flows. They end with ctx.
func (r *Router) ServeTCP(ctx context.Context, q Request) {
	r.serve(ctx, flow.Flow{Network: flow.TCP, Source: q.Source(), Inbound: flow.Tun}, q.Destination(), packetCall{q})
}

// packetCall is the client of a Request.
type packetCall struct{ Request }

func (q packetCall) Accept(netip.AddrPort) (relay.Conn, []byte, error) {
	c, err := q.Request.Accept()
	return c, nil, err
}

func (q packetCall) Refuse(err error) {
	if errors.Is(err, ErrLimit) {
		q.Request.Refuse(syscall.ECONNREFUSED)
		return
	}
	q.Request.Refuse(outbound.Errno(err))
}

// relayInLoop has f relayed without this goroutine, where its ends allow that.
func (r *Router) relayInLoop(f *tcpFlow, client relay.Conn, upstream outbound.Conn) bool {
	loop := r.loop.Load()
	socket, isSocket := upstream.(*net.TCPConn)
	if loop == nil || !isSocket {
		return false
	}
	var in *relay.Flow
	var err error
	switch c := client.(type) {
	case relay.Stream:
		in, err = loop.Relay(c, socket, &f.counters, f)
	case *net.TCPConn:
		if f.pipe != nil {
			return false // what splice moves does not wait for a turn
		}
		in, err = loop.RelaySockets(c, socket, &f.counters, f)
	default:
		return false
	}
	if err != nil {
		r.log.Warn("relay with a goroutine", "err", err)
		return false
	}
	// From here on the flow can be over, which does no harm.
	r.flows.cancelBy(f, in.Cancel)
	return true
}

// Ended implements relay.Owner, for a flow that was connected.
func (f *tcpFlow) Ended(end relay.End, err error) {
	f.rec.Up, f.rec.Down = f.counters.Up.Load(), f.counters.Down.Load()
	f.settle(endOfRelay(end), err)
}

// Tell implements relay.Owner.
func (f *tcpFlow) Tell() { f.r.finish(&f.rec) }

// end ends a flow that was not connected.
func (f *tcpFlow) end(e End, err error) {
	f.settle(e, err)
	f.Tell()
}

// refuse ends a flow that was not connected, and tells its client. What it holds is given
// back before: a client that is refused may take a while to go.
func (f *tcpFlow) refuse(c Call, e End, err error) {
	f.settle(e, err)
	c.Refuse(err)
	f.Tell()
}

// settle gives back what the flow holds and notes how it ended. It is called once,
// and does not block.
func (f *tcpFlow) settle(e End, err error) {
	f.r.flows.remove(f)
	f.release()
	f.held.release()
	f.pipe.Leave()
	if f.upstream != nil {
		f.upstream.Close()
	}
	if c := f.cut.Load(); c != nil {
		e, err = c.end, c.err
	}
	f.rec.Took = time.Since(f.rec.Start)
	f.rec.end(e, err)
}

// ServeUDP takes a datagram of a client, which may wait for FlushUDP. Packet tempo:
// see [udpnat.Table.Send]. False: the port is unreachable.
func (r *Router) ServeUDP(src, dst netip.AddrPort, payload []byte) bool {
	return r.udp.Send(src, dst, payload)
}

// FlushUDP sends the datagrams that wait. Packet tempo: see [udpnat.Table.Flush].
func (r *Router) FlushUDP() { r.udp.Flush() }

// decideUDP is udpnat's Decide.
func (r *Router) decideUDP(src, dst netip.AddrPort) udpnat.Decision {
	rec := &Record{
		Flow:    flow.Flow{Network: flow.UDP, Source: src, Inbound: flow.Tun},
		Verdict: rule.Verdict{Index: -1},
	}
	return r.decide(rec, dst)
}

// decide decides a path of UDP to dst or, where that is not valid, to the Target that
// its flow has.
func (r *Router) decide(rec *Record, dst netip.AddrPort) udpnat.Decision {
	release := func() {}
	d := udpnat.Decision{Target: rec.Flow.Target, Release: release, Tag: rec}
	if dst.IsValid() {
		rec.Destination = dst
		var err error
		d.Target, release, err = r.target(dst)
		rec.Flow.Target, d.Release = d.Target, release
		if err != nil {
			rec.end(EndOrphan, err)
			return d
		}
	}
	var out *Outbound
	snap := r.snap.Load()
	rec.Verdict, out = snap.route(&rec.Flow)
	rec.Outbound, rec.Hops = out.Name, out.Hops
	rec.events = snap.options(rec.Verdict.Index).Log
	d.Way = out.way()
	switch o := out.Dialer.(type) {
	case outbound.Reject:
		rec.end(EndRejected, o.Err())
	case outbound.Drop:
		rec.end(EndRejected, outbound.ErrDropped)
		d.Drop = true
	case outbound.PacketDialer:
		held, err := snap.admit(&rec.Flow, rec.Verdict.Index, out, time.Now())
		if err != nil {
			rec.end(EndLimit, err)
			break
		}
		var pipe *limit.Pipe
		if b := snap.options(rec.Verdict.Index).Bandwidth; b != nil {
			pipe = b.Join(&rec.Flow)
			d.Up, d.Down = pipe.Up, pipe.Down
		}
		if held != nil || pipe != nil {
			d.Release = func() { release(); held.release(); pipe.Leave() }
		}
		rec.asked = snap.ask(rec)
		d.Flow = rec.asked
		d.Dialer = flowDialer{o, rec.asked}
		if r.logs(rec, LogConnect) {
			// Who reads packets does not wait for a log. A copy, because the
			// record changes when the flow ends.
			first := *rec
			first.asked = nil
			r.flows.work.Go(func() { r.begins(&first) })
		}
	}
	return d
}

// flowDialer tells an outbound for which flow a conversation is opened: the first that
// needs it.
type flowDialer struct {
	outbound.PacketDialer
	flow *outbound.Flow
}

func (d flowDialer) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	return d.PacketDialer.OpenUDP(outbound.WithFlow(ctx, d.flow))
}

// doneUDP is udpnat's Done.
func (r *Router) doneUDP(u udpnat.Record) {
	rec := u.Decision.Tag.(*Record)
	rec.Start, rec.Up, rec.Down = u.Start, u.Up, u.Down
	switch {
	case rec.End != "":
	case u.Err == nil:
		rec.end(EndIdle, nil)
	case errors.Is(u.Err, context.Canceled):
		rec.end(EndCanceled, nil)
	case u.Sent == 0:
		rec.end(endOfDial(u.Err), u.Err)
	default:
		rec.end(EndUpstream, u.Err)
	}
	r.finish(rec)
}

// ServeEcho decides an ICMP echo request. A name answers for itself: whether the
// host behind it is up, only its far end could tell. An address is asked where
// the rules send it directly, and is unreachable otherwise, since no proxy
// carries ICMP. It does not block.
func (r *Router) ServeEcho(ctx context.Context, q Echo) {
	dst := netip.AddrPortFrom(q.Destination(), 0)
	target, release, err := r.target(dst)
	if err != nil {
		q.Refuse(syscall.EHOSTUNREACH)
		return
	}
	if target.Name != "" {
		release()
		q.Reply()
		return
	}
	_, out := r.snap.Load().route(&flow.Flow{Source: netip.AddrPortFrom(q.Source(), 0), Inbound: flow.Tun, Target: target})
	e, ok := out.Dialer.(outbound.Echoer)
	if !ok {
		if _, drop := out.Dialer.(outbound.Drop); !drop {
			q.Refuse(syscall.EHOSTUNREACH)
		}
		return
	}
	select {
	case r.echoes <- struct{}{}:
	default:
		return // as a busy network would
	}
	r.flows.work.Go(func() {
		defer func() { <-r.echoes }()
		ctx, cancel := context.WithTimeout(ctx, echoTimeout)
		defer cancel()
		err := e.Echo(ctx, target.Addr, q.Data())
		switch {
		case err == nil:
			q.Reply()
		case ctx.Err() == nil:
			q.Refuse(outbound.Errno(err))
		}
	})
}
