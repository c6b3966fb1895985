package router

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"tunroute/router/flow"
	"tunroute/router/ftp"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
)

// help returns the client's end of a flow that is connected, with the helper in front
// of it that its rule wants. A client of a SOCKS server asks for BIND itself.
func (r *Router) help(ctx context.Context, f *tcpFlow, asked *outbound.Flow, out *Outbound, client relay.Conn) relay.Conn {
	if f.rec.Verdict.Helper != rule.FTP || f.rec.Flow.Inbound != flow.Tun || r.opts.Clients == nil {
		return client
	}
	a := &active{r: r, ctx: ctx, control: f, asked: asked, out: out}
	return ftp.New(client, ftp.Options{
		Client: f.rec.Flow.Source,
		Open:   a.open,
		Refused: func(err error) {
			r.log.Warn("an FTP client is refused active mode", "src", f.rec.Flow.Source.String(), "dst", f.rec.Flow.Target.String(), "out", out.Name, "err", err.Error())
		},
	})
}

// active is the active mode of an FTP control connection.
type active struct {
	r       *Router
	ctx     context.Context // which data connections end with; the control connection ends before
	control *tcpFlow
	asked   *outbound.Flow
	out     *Outbound
}

// open is ftp's Open: it has an address opened by the outbound of the control
// connection, and waits there for the server.
func (a *active) open(ctx context.Context, at netip.AddrPort) (ftp.Opened, error) {
	b, ok := a.out.Dialer.(outbound.Binder)
	if !ok {
		return nil, outbound.ErrNoBind
	}
	bound, err := b.Bind(outbound.WithFlow(ctx, a.asked), a.asked.From())
	if err != nil {
		return nil, err
	}
	a.r.flows.work.Go(func() { a.serve(bound, at) })
	return bound, nil
}

// serve brings the server's connection to the client at an address, and relays it. It
// ends with a Close of the Bound, as long as the server has not come.
func (a *active) serve(bound outbound.Bound, at netip.AddrPort) {
	upstream, peer, err := bound.Accept(a.ctx)
	if err != nil {
		if !errors.Is(err, net.ErrClosed) && a.ctx.Err() == nil {
			a.r.log.Warn("an FTP server does not reach its client", "src", at.String(), "dst", a.control.rec.Flow.Target.String(), "out", a.out.Name, "err", err.Error())
		}
		return
	}
	// The client knows the server by the address that it has connected to.
	from := netip.AddrPortFrom(a.control.rec.Destination.Addr(), peer.Port())
	f := &tcpFlow{r: a.r, rec: Record{
		Flow:        a.control.rec.Flow,
		Destination: from,
		Start:       time.Now(),
		Verdict:     a.control.rec.Verdict,
		Outbound:    a.out.Name,
		Hops:        a.asked.Way(a.out.Hops),
		events:      a.control.rec.events,
	}}
	// The control connection counts for the limits of the rule, for all that it brings.
	f.shares(a.control.pipe.Again())
	f.rec.Flow.Source, f.rec.Flow.Target.Port = at, peer.Port()
	_, release, _ := a.r.target(from)
	a.control.data.Add(1)
	f.release = func() { a.control.data.Add(-1); release() }
	a.r.bring(a.ctx, f, upstream, from, at)
}
