package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
)

// Clients opens connections to the programs behind the device.
type Clients interface {
	// DialTCP connects to a program as if from had, which may be any address; a
	// port of 0 is one that is free. It blocks until the program has answered or
	// ctx ends; an error Is the errno that connect(2) would have.
	DialTCP(ctx context.Context, from, to netip.AddrPort) (relay.Conn, error)
}

// Inward is a connection of somebody outside, for a program behind the device.
type Inward struct {
	Conn     outbound.Conn
	Peer     netip.AddrPort // who has opened it
	Inbound  string         // where it came in, as the log calls it
	From, To netip.AddrPort // whom the program sees, and where it listens
}

// ServeInward brings a connection to its program, and serves it as ServeTCP does. No
// rule is asked.
func (r *Router) ServeInward(ctx context.Context, in Inward) {
	f := &tcpFlow{r: r, release: func() {}, rec: Record{
		Flow:        flow.Flow{Network: flow.TCP, Source: in.Peer, Inbound: in.Inbound, Target: flow.AddrTarget(in.To)},
		Destination: in.To,
		Start:       time.Now(),
		Verdict:     rule.Verdict{Index: -1},
	}}
	r.bring(ctx, f, in.Conn, in.From, in.To)
}

// bring connects to a program for a connection from outside, and relays it. Nobody is
// told of a program that does not take it but by a RST.
func (r *Router) bring(ctx context.Context, f *tcpFlow, upstream outbound.Conn, from, to netip.AddrPort) {
	if counted, ok := upstream.(outbound.Relayed); ok {
		f.upstream, upstream = upstream, counted.Socket()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !r.flows.add(f, cancel) {
		relay.Reset(upstream)
		f.end(EndLimit, errFlowLimit)
		return
	}
	client, err := r.opts.Clients.DialTCP(ctx, from, to)
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		// The last connection between the two has hardly ended.
		client, err = r.opts.Clients.DialTCP(ctx, netip.AddrPortFrom(from.Addr(), 0), to)
	}
	if err != nil {
		relay.Reset(upstream)
		f.end(EndClient, fmt.Errorf("client does not take the connection that is for it: %w", err))
		return
	}
	r.begins(&f.rec)
	r.relay(ctx, f, client, upstream)
}

// Dialer returns the outbound of a name; nil where there is none.
func (r *Router) Dialer(name string) outbound.Dialer {
	if o := r.snap.Load().outs[name]; o != nil {
		return o.Dialer
	}
	return nil
}
