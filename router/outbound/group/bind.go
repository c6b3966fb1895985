package group

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

var _ outbound.Binder = (*Group)(nil)

// Bind has an address opened by the member that the flow of ctx went through, and by
// no other: whoever is to connect to it may well compare it with where the flow came
// from (vsftpd does, unless port_promiscuous). Without such a flow it is the first
// member that does it, in the order in which the policy would try them. The error is an
// [*Error], which Is an [outbound.ErrNoBind] where no member does it.
//
// Nobody is blamed for what goes wrong: a server that does not do BIND, or not now, may
// be well otherwise.
func (g *Group) Bind(ctx context.Context, from flow.Target) (outbound.Bound, error) {
	ctx, cancel := context.WithTimeout(ctx, g.opts.Deadline)
	defer cancel()
	f := outbound.FlowOf(ctx)
	failure := &Error{Group: g.opts.Name}
	open := func(i int32) (outbound.Bound, error) {
		b, err := g.members[i].bind(ctx, from)
		if err != nil {
			failure.add(g.tcp, i, err)
			return nil, err
		}
		return &boundTo{b, g.tcp, i}, nil
	}
	if was := f.Chosen(g.opts.Name); was != "" {
		for i, m := range g.members {
			if m.name == was {
				b, err := open(int32(i))
				if err != nil {
					failure.told = err
					return nil, failure
				}
				return b, nil
			}
		}
	}
	w := walk{s: g.tcp, flow: f, key: g.key(ctx, from)}
	for i := w.next(true); i >= 0 && ctx.Err() == nil; i = w.next(true) {
		b, err := open(i)
		if err == nil {
			f.Chose(g.opts.Name, g.members[i].name)
			return b, nil
		}
		if failure.told == nil || errors.Is(failure.told, outbound.ErrNoBind) {
			failure.told = err // that it cannot be done is so only if all say it
		}
	}
	if failure.told == nil {
		failure.told = context.Cause(ctx)
	}
	return nil, failure
}

func (m *member) bind(ctx context.Context, from flow.Target) (outbound.Bound, error) {
	if m.binder == nil {
		return nil, fmt.Errorf("%s: %w", m.name, outbound.ErrNoBind)
	}
	return m.binder.Bind(ctx, from)
}

// boundTo is an address that a member has opened. The connection that comes of it
// counts as a flow of the member.
type boundTo struct {
	outbound.Bound
	s      *side
	member int32
}

func (b *boundTo) Accept(ctx context.Context) (outbound.Conn, netip.AddrPort, error) {
	conn, peer, err := b.Bound.Accept(ctx)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	b.s.count(b.member, 1)
	if release := b.s.hold(b.member); release != nil {
		conn = &countedConn{Conn: conn, release: release}
	}
	return conn, peer, nil
}
