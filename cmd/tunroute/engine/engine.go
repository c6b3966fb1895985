package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/router"
	"tunroute/router/ident"
	"tunroute/router/outbound/group"
	"tunroute/stack"
	"tunroute/tun"
)

// Options are what a config does not say.
type Options struct {
	// Device is where the packets are; [Engine.Run] closes it.
	Device stack.Device
	// Logger gets a line per flow, at its end, and what is unusual. Nil
	// discards.
	Logger *slog.Logger
	// Mark is the firewall mark of all sockets that are opened, besides
	// those that upstreams have of their own; 0 sets none.
	Mark uint32
}

// Engine serves the packets of a device as a config says. Its methods are safe
// for concurrent use.
type Engine struct {
	opts   Options
	log    *slog.Logger
	pool   *dnsfake.Pool
	dns    *dnsfake.Server
	router *router.Router
	stack  *stack.Stack
	bridge *bridge
	ident  *ident.Server // nil where there is no ident.listen

	mu      sync.Mutex // of Reload; guards groups
	groups  runners
	current atomic.Pointer[config.Config]
	names   atomic.Pointer[names] // what is done with names, of current
}

// New makes an Engine. It starts nothing and opens nothing; [Engine.Run] does.
// The error says which part of cfg cannot be.
func New(cfg *config.Config, o Options) (*Engine, error) {
	if o.Device == nil {
		return nil, errors.New("engine: a device is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{opts: o, log: o.Logger}
	e.current.Store(cfg)

	var err error
	e.pool, err = dnsfake.NewPool(dnsfake.PoolOptions{V4: cfg.DNS.Range4, V6: cfg.DNS.Range6})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	b, err := newBuilder(cfg, o.Mark, e.pool.Owns)
	if err != nil {
		return nil, err
	}
	if len(cfg.Ident.Listen) > 0 {
		e.ident = ident.New()
	}
	b.log, b.ident = o.Logger, e.ident
	snapshot, err := b.snapshot()
	if err != nil {
		return nil, err
	}
	e.groups.all = b.groups
	e.names.Store(b.names)
	e.dns, err = dnsfake.New(dnsfake.Options{
		Pool:     e.pool,
		Policy:   func(name string) dnsfake.Policy { return e.names.Load().policy(name) },
		SameWay:  func(a, b string) bool { return e.names.Load().sameWay(a, b) },
		StripECH: cfg.DNS.ECH == config.Strip,
		TTL:      cfg.DNS.TTL,
		Logger:   o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	e.bridge = &bridge{engine: e, dnsTokens: make(chan struct{}, maxQueries), capture: cfg.DNS.Capture}
	e.router, err = router.New(router.Options{
		Snapshot:       snapshot,
		Names:          e.pool,
		UDP:            e.bridge,
		Logger:         o.Logger,
		MaxFlows:       cfg.Limits.Flows,
		MaxUDPSessions: cfg.Limits.UDPSessions,
		UDPIdle:        cfg.Timeouts.UDPIdle,
	})
	if err != nil {
		return nil, err
	}
	e.stack, err = stack.New(stack.Options{
		Device:            o.Device,
		Headroom:          tun.Headroom,
		Handler:           e.bridge,
		Logger:            o.Logger,
		HalfOpen:          cfg.Limits.HalfOpen,
		HalfOpenPerSource: cfg.Limits.HalfOpenPerSource,
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Addrs are the addresses that the fake ranges set aside: of the resolver, which
// programs ask, and of the device.
type Addrs struct{ Resolver4, Resolver6, Device4, Device6 netip.Addr }

// AddrsOf returns the addresses that a config sets aside.
func AddrsOf(cfg *config.Config) (Addrs, error) {
	p, err := dnsfake.NewPool(dnsfake.PoolOptions{V4: cfg.DNS.Range4, V6: cfg.DNS.Range6})
	if err != nil {
		return Addrs{}, fmt.Errorf("dns: %w", err)
	}
	return Addrs{p.Resolver4(), p.Resolver6(), p.Device4(), p.Device6()}, nil
}

// Run serves until ctx ends or the device fails, and returns when all that it
// has started has stopped. The error is nil where ctx ended it. Run is called
// once.
func (e *Engine) Run(ctx context.Context) error {
	packets, listeners, err := e.listenDNS(ctx)
	if err != nil {
		e.opts.Device.Close()
		return err
	}
	askers, err := e.listenIdent(ctx)
	if err != nil {
		e.opts.Device.Close()
		for _, p := range packets {
			p.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	// The stack ends first, and its flows with it; then what serves them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	stackCtx, stopStack := context.WithCancel(ctx)
	defer stopStack()

	var others sync.WaitGroup
	var routerErr, dnsErr, identErr error
	others.Go(func() {
		if routerErr = e.router.Run(background); routerErr != nil {
			stopStack()
		}
	})
	if len(packets)+len(listeners) > 0 {
		others.Go(func() {
			if dnsErr = e.dns.Serve(background, packets, listeners); dnsErr != nil {
				stopStack()
			}
		})
	}
	if len(askers) > 0 {
		others.Go(func() {
			if identErr = e.ident.Serve(background, askers); identErr != nil {
				stopStack()
			}
		})
	}
	e.mu.Lock()
	e.groups.start(background)
	e.mu.Unlock()
	e.bridge.ctx = stackCtx
	err = e.stack.Run(stackCtx)
	stopStack()
	e.bridge.queries.Wait()
	stop()
	others.Wait()
	e.mu.Lock()
	e.groups.end()
	e.mu.Unlock()
	if dnsErr != nil {
		dnsErr = fmt.Errorf("dns: %w", dnsErr)
	}
	if identErr != nil {
		identErr = fmt.Errorf("ident: %w", identErr)
	}
	return errors.Join(err, routerErr, dnsErr, identErr)
}

// identPort is where servers ask (RFC 1413 §1); they cannot be told of another.
const identPort = 113

// listenIdent opens the listeners of ident.listen.
func (e *Engine) listenIdent(ctx context.Context) (listeners []net.Listener, err error) {
	var lc net.ListenConfig
	for _, a := range e.current.Load().Ident.Listen {
		l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, identPort).String())
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("ident.listen %v: %w", a, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listenDNS opens the listeners of dns.listen.
func (e *Engine) listenDNS(ctx context.Context) (packets []net.PacketConn, listeners []net.Listener, err error) {
	var lc net.ListenConfig
	fail := func(a netip.AddrPort, err error) ([]net.PacketConn, []net.Listener, error) {
		for _, p := range packets {
			p.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
		return nil, nil, fmt.Errorf("dns.listen %v: %w", a, err)
	}
	for _, a := range e.current.Load().DNS.Listen {
		p, err := lc.ListenPacket(ctx, "udp", a.String())
		if err != nil {
			return fail(a, err)
		}
		packets = append(packets, p)
		l, err := lc.Listen(ctx, "tcp", a.String())
		if err != nil {
			return fail(a, err)
		}
		listeners = append(listeners, l)
	}
	return packets, listeners, nil
}

// Reload makes cfg decide all flows from now on; flows that are open keep their
// outbound, and leases their addresses. What only a new start can change (the
// device, the fake ranges, the listeners, limits) is refused, and so is a config
// with an error: nothing has changed then. What groups know of members that are the
// same is kept.
func (e *Engine) Reload(cfg *config.Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if what := needsRestart(e.current.Load(), cfg); what != "" {
		return fmt.Errorf("%s has changed, which takes a new start", what)
	}
	b, err := newBuilder(cfg, e.opts.Mark, e.pool.Owns)
	if err != nil {
		return err
	}
	b.log, b.ident = e.log, e.ident
	s, err := b.snapshot()
	if err != nil {
		return err
	}
	b.inherit(e.groups.all, e.current.Load())
	e.current.Store(cfg)
	e.names.Store(b.names)
	e.router.Swap(s)
	e.groups.replace(b.groups)
	return nil
}

// Stats are the counters of the rooms.
type Stats struct {
	Stack  stack.Stats
	Router router.Stats
	DNS    dnsfake.Stats
	Pool   dnsfake.PoolStats
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	return Stats{e.stack.Stats(), e.router.Stats(), e.dns.Stats(), e.pool.Stats()}
}

// Flows returns the TCP flows that are open, in no order.
func (e *Engine) Flows() []router.OpenFlow { return e.router.Flows() }

// Groups returns how the members of the groups are, by group.
func (e *Engine) Groups() map[string][]group.Status {
	e.mu.Lock()
	groups := e.groups.all
	e.mu.Unlock()
	all := make(map[string][]group.Status, len(groups))
	for name, g := range groups {
		all[name] = g.Status()
	}
	return all
}
