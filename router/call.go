package router

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
)

// Call is a client's request, which has had no answer yet, for a connection to a
// target that it names itself.
type Call interface {
	// Accept tells the client that it is connected. Bound is our own address of
	// the connection to the target, and not valid where that is another's. What
	// the client has sent behind its request is early, which is the caller's. The
	// error says that the client has gone.
	Accept(bound netip.AddrPort) (client relay.Conn, early []byte, err error)

	// Refuse tells the client why it is not: [ErrLimit], [ErrOrphan], or what an
	// outbound has said.
	Refuse(err error)
}

// BindCall is a Call that asks to be connected to.
type BindCall interface {
	Call
	// Announce tells the client where it can be connected to; Accept then tells
	// it who has. The context ends when the client has gone or when ctx ends;
	// stop has to be called before Accept or Refuse.
	Announce(ctx context.Context, at netip.AddrPort) (waiting context.Context, stop func(), err error)
}

// Admits says whether anything could be served that comes from source by way of an
// inbound. It does not block.
func (r *Router) Admits(source netip.AddrPort, inbound string) bool {
	s := r.snap.Load()
	return s.table.Admits(flow.Flow{Source: source, Inbound: inbound}, s.rejects)
}

// ServeCall decides the flow f, whose Target the client has named, and serves it as
// [Router.ServeTCP] does. A Target that is a fake address becomes the name behind it.
func (r *Router) ServeCall(ctx context.Context, f flow.Flow, c Call) {
	var dst netip.AddrPort
	if f.Target.Name == "" {
		dst = f.Target.AddrPort()
	}
	r.serve(ctx, f, dst, c)
}

// serve serves a flow to dst or, where that is not valid, to the Target that it has.
func (r *Router) serve(ctx context.Context, of flow.Flow, dst netip.AddrPort, c Call) {
	f := &tcpFlow{r: r, release: func() {}, rec: Record{
		Flow:        of,
		Destination: dst,
		Start:       time.Now(),
		Verdict:     rule.Verdict{Index: -1},
	}}
	if dst.IsValid() {
		var err error
		if f.rec.Flow.Target, f.release, err = r.target(dst); err != nil {
			f.refuse(c, EndOrphan, err)
			return
		}
	}
	var out *Outbound
	snap := r.snap.Load()
	f.rec.Verdict, out = snap.route(&f.rec.Flow)
	f.rec.Outbound, f.rec.Hops = out.Name, out.Hops
	f.rec.events = snap.options(f.rec.Verdict.Index).Log
	var err error
	if f.held, err = snap.admit(&f.rec.Flow, f.rec.Verdict.Index, out, f.rec.Start); err != nil {
		f.refuse(c, EndLimit, err)
		return
	}
	if b := snap.options(f.rec.Verdict.Index).Bandwidth; b != nil {
		f.shares(b.Join(&f.rec.Flow))
	}

	dial, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !r.flows.add(f, cancel) {
		f.refuse(c, EndLimit, errFlowLimit)
		return
	}
	asked := snap.ask(&f.rec)
	open := out.Dialer.DialTCP
	var peer netip.AddrPort
	if of.Asks() == flow.Bind {
		open = func(ctx context.Context, from flow.Target) (conn outbound.Conn, err error) {
			conn, peer, err = bind(ctx, out.Dialer, from, c)
			return conn, err
		}
	}
	upstream, err := open(outbound.WithFlow(dial, asked), f.rec.Flow.Target)
	f.rec.Hops = asked.Way(out.Hops)
	if err != nil {
		f.refuse(c, endOfDial(err), err)
		return
	}
	if counted, ok := upstream.(outbound.Relayed); ok {
		f.upstream, upstream = upstream, counted.Socket()
	}
	bound := peer
	if a, ok := upstream.LocalAddr().(*net.TCPAddr); ok && len(out.Hops) == 0 && !peer.IsValid() {
		bound = a.AddrPort()
	}
	client, early, err := c.Accept(bound)
	if err != nil {
		relay.Reset(upstream)
		f.end(EndClient, fmt.Errorf("client left before its connect was answered: %w", err))
		return
	}
	if len(early) > 0 {
		// The connection is new, so that there is room for so little.
		n, err := upstream.Write(early)
		f.counters.Up.Add(int64(n))
		if err != nil {
			relay.Reset(client)
			relay.Reset(upstream)
			f.Ended(relay.Upstream, err)
			f.Tell()
			return
		}
	}
	r.begins(&f.rec)
	r.relay(dial, f, r.help(ctx, f, asked, out, client), upstream)
}

// relay relays a flow that is connected, with this goroutine if it has to be.
func (r *Router) relay(ctx context.Context, f *tcpFlow, client relay.Conn, upstream outbound.Conn) {
	f.relayed.Store(true)
	if !r.relayInLoop(f, client, upstream) {
		f.Ended(relay.Relay(ctx, client, upstream, &f.counters))
		f.Tell()
	}
}

// bindTime is how long a client of BIND waits for its connection: what the text of
// SOCKS4 has.
const bindTime = 2 * time.Minute

// bind has the far end of d be connected to, tells c where that is, and waits. A from of
// 0.0.0.0 or [::] is anybody.
func bind(ctx context.Context, d outbound.Dialer, from flow.Target, c Call) (outbound.Conn, netip.AddrPort, error) {
	call, ok := c.(BindCall)
	if !ok {
		return nil, netip.AddrPort{}, outbound.ErrNoBind
	}
	if from.Addr.IsUnspecified() {
		from = flow.Target{}
	}
	var bound outbound.Bound
	switch d := d.(type) {
	case outbound.Reject, outbound.Drop:
		_, err := d.DialTCP(ctx, from)
		return nil, netip.AddrPort{}, err
	case outbound.Binder:
		var err error
		if bound, err = d.Bind(ctx, from); err != nil {
			return nil, netip.AddrPort{}, err
		}
	default:
		return nil, netip.AddrPort{}, outbound.ErrNoBind
	}
	defer bound.Close()
	waiting, stop, err := call.Announce(ctx, bound.Addr())
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("client left before it was told where: %w", err)
	}
	defer stop()
	waiting, cancel := context.WithTimeout(waiting, bindTime)
	defer cancel()
	conn, peer, err := bound.Accept(waiting)
	if err != nil {
		return nil, netip.AddrPort{}, fmt.Errorf("nobody has connected to %s: %w", bound.Addr(), err)
	}
	return conn, peer, nil
}
