package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/router"
	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/relay"
)

// forward is a way in to a program behind the device.
type forward struct {
	e        *Engine
	cfg      config.Forward
	listener net.Listener // nil where it is a server that is connected to
	last     string       // what went wrong the last time
}

// listenForward opens the listeners of forward.
func (e *Engine) listenForward(ctx context.Context, opened *closers) (all []*forward, err error) {
	for _, cfg := range e.current.Load().Forward {
		f := &forward{e: e, cfg: cfg}
		if at := netip.AddrPort(cfg.Listen); at.IsValid() {
			direct, ok := e.router.Dialer(cfg.Via).(*outbound.Direct)
			if !ok {
				return nil, fmt.Errorf("forward %v: %q is not the way out of this machine", at, cfg.Via)
			}
			if f.listener, err = direct.Listen(ctx, at); err != nil {
				return nil, fmt.Errorf("forward %v: %w", at, err)
			}
			opened.add(f.listener)
		}
		all = append(all, f)
	}
	return all, nil
}

// run serves until ctx ends.
func (f *forward) run(ctx context.Context) {
	next := f.bound
	if f.listener != nil {
		stop := context.AfterFunc(ctx, func() { f.listener.Close() })
		defer stop()
		next = f.accepted
	}
	var flows sync.WaitGroup
	defer flows.Wait()
	pause := time.Duration(0)
	for ctx.Err() == nil {
		conn, peer, err := next(ctx)
		if err != nil {
			pause = f.failed(ctx, err, pause)
			continue
		}
		pause, f.last = 0, ""
		flows.Go(func() { f.serve(ctx, conn, peer) })
	}
}

// How long to wait before the next attempt, from the first failure to the last.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// failed tells of a failure, once for each in a row that is the same, and waits; it
// returns how long.
func (f *forward) failed(ctx context.Context, err error, pause time.Duration) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	if text := err.Error(); text != f.last {
		f.last = text
		f.e.log.Warn("forward: nobody can connect", "forward", f.cfg.Name(), "err", text)
	}
	pause = min(max(2*pause, firstPause), lastPause)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return pause
}

// accepted returns the next connection of the listener.
func (f *forward) accepted(context.Context) (outbound.Conn, netip.AddrPort, error) {
	conn, err := f.listener.Accept()
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	return conn.(*net.TCPConn), netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()), nil
}

// errNobody is told of a connection whose BIND has said no address for it.
var errNobody = errors.New("the server does not say who has connected, and not everybody may")

// bound returns the next connection of the server, which opens an address for each.
func (f *forward) bound(ctx context.Context) (outbound.Conn, netip.AddrPort, error) {
	b, ok := f.e.router.Dialer(f.cfg.Via).(outbound.Binder)
	if !ok {
		return nil, netip.AddrPort{}, outbound.ErrNoBind
	}
	var from flow.Target
	single, one := f.cfg.Single()
	if one {
		from.Addr = single
	}
	bound, err := b.Bind(ctx, from)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	defer bound.Close()
	f.e.log.Info("forward", "at", bound.Addr().String(), "out", f.cfg.Via, "to", f.cfg.To.String())
	conn, peer, err := bound.Accept(ctx)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if peer.Addr().IsUnspecified() && !one && len(f.cfg.From) > 0 {
		relay.Reset(conn)
		return nil, netip.AddrPort{}, errNobody
	}
	return conn, peer, nil
}

// serve brings a connection to its program.
func (f *forward) serve(ctx context.Context, conn outbound.Conn, peer netip.AddrPort) {
	known := !peer.Addr().IsUnspecified()
	if known && !f.cfg.Allows(peer.Addr()) {
		relay.Reset(conn)
		return
	}
	p := f.e.pool
	to := netip.AddrPortFrom(f.cfg.To.Addr, f.cfg.To.Port)
	if !to.Addr().IsValid() {
		to = netip.AddrPortFrom(p.Device4(), to.Port())
		if peer.Addr().Is6() && f.cfg.KeepSource {
			to = netip.AddrPortFrom(p.Device6(), to.Port())
		}
	}
	// What always leads back here, and is nobody's.
	from := netip.AddrPortFrom(p.Resolver4(), 0)
	if to.Addr().Is6() {
		from = netip.AddrPortFrom(p.Resolver6(), 0)
	}
	if f.cfg.KeepSource && known && peer.Addr().Is4() == to.Addr().Is4() {
		from = peer
	}
	f.e.router.ServeInward(ctx, router.Inward{Conn: conn, Peer: peer, Inbound: "forward", From: from, To: to})
}
