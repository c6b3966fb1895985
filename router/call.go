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

// Admits says whether anything could be served that comes from source by way of an
// inbound. It does not block.
func (r *Router) Admits(source netip.AddrPort, inbound string) bool {
	s := r.snap.Load()
	return s.table.Admits(flow.Flow{Source: source, Inbound: inbound}, func(via string) bool {
		switch s.outs[via].Dialer.(type) {
		case outbound.Reject, outbound.Drop:
			return true
		}
		return false
	})
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
			c.Refuse(err)
			f.end(EndOrphan, err)
			return
		}
	}
	var out *Outbound
	snap := r.snap.Load()
	f.rec.Verdict, out = snap.route(&f.rec.Flow)
	f.rec.Outbound, f.rec.Hops = out.Name, out.Hops
	var err error
	if f.held, err = snap.admit(&f.rec.Flow, f.rec.Verdict.Index, out, f.rec.Start); err != nil {
		c.Refuse(err)
		f.end(EndLimit, err)
		return
	}

	dial, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !r.flows.add(f, cancel) {
		c.Refuse(errFlowLimit)
		f.end(EndLimit, errFlowLimit)
		return
	}
	asked := &outbound.Flow{Flow: f.rec.Flow, Rule: f.rec.Verdict.Index}
	upstream, err := out.Dialer.DialTCP(outbound.WithFlow(dial, asked), f.rec.Flow.Target)
	f.rec.Hops = asked.Way(out.Hops)
	if err != nil {
		c.Refuse(err)
		f.end(endOfDial(err), err)
		return
	}
	if counted, ok := upstream.(outbound.Relayed); ok {
		f.upstream, upstream = upstream, counted.Socket()
	}
	var bound netip.AddrPort
	if a, ok := upstream.LocalAddr().(*net.TCPAddr); ok && len(out.Hops) == 0 {
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
