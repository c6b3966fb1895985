package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/dnsfake/resolve"
	"tunroute/router"
	"tunroute/router/ident"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
	"tunroute/router/outbound/group"
	"tunroute/router/rule"
	"tunroute/stack"
	"tunroute/tun"
)

// Options are what a config does not say.
type Options struct {
	// Device is where the packets are; [Engine.Run] closes it. Nil where the
	// config has no interface.
	Device stack.Device
	// Logger gets a line per flow, at its end, and what is unusual. Nil
	// discards.
	Logger *slog.Logger
	// Mark is the firewall mark of all sockets that are opened, besides
	// those that upstreams have of their own; 0 sets none.
	Mark uint32
	// Leases is the file in which addresses of names are kept, and LeasesGiven
	// says that somebody has asked for that file: then New fails if another
	// daemon has it, whereas else it warns and goes without. No file keeps none.
	Leases      string
	LeasesGiven bool
	// Ready is called by [Engine.Run] when all listeners are open. May be nil.
	Ready func()
}

// Engine serves the packets of a device as a config says. Its methods are safe
// for concurrent use.
type Engine struct {
	opts   Options
	log    *slog.Logger
	pool   *dnsfake.Pool
	dns    *dnsfake.Server
	router *router.Router
	stack  *stack.Stack // nil without a device
	bridge *bridge
	ident  *ident.Server    // nil where there is no ident.listen
	server *inbound.Server  // nil where there is no listen
	own    *outbound.Direct // for sockets besides those of flows

	mu      sync.Mutex // of Reload; guards groups, limits and same
	groups  runners
	limits  limiters
	same    map[string]any // see builder
	current atomic.Pointer[config.Config]
	names   atomic.Pointer[names] // what is done with names, of current
	lookups resolver              // of current
}

// New makes an Engine. It starts nothing and opens nothing but Options.Leases;
// [Engine.Run] does, and closes that.
// The error says which part of cfg cannot be.
func New(cfg *config.Config, o Options) (_ *Engine, err error) {
	if o.Device == nil && !cfg.TUN.Off {
		return nil, errors.New("engine: a device is required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{opts: o, log: o.Logger}
	e.current.Store(cfg)

	e.pool, err = newPool(cfg, o.Logger)
	if err != nil {
		return nil, err
	}
	b, err := rebuilder(cfg, o.Mark, e.fakes().Owns, o.Logger, &e.lookups, nil)
	if err != nil {
		return nil, err
	}
	if len(cfg.Ident.Listen) > 0 {
		e.ident = ident.New()
	}
	b.ident = e.ident
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	snapshot, err := b.snapshot()
	if err != nil {
		return nil, err
	}
	e.groups.all, e.limits, e.same = b.groups, b.limits, b.same
	e.names.Store(b.names)
	e.dns, err = dnsfake.New(dnsfake.Options{
		Pool:    e.pool,
		Policy:  func(name string) dnsfake.Policy { return e.names.Load().policy(name) },
		SameWay: func(a, b string) bool { return e.names.Load().sameWay(a, b) },
		TTL:     cfg.DNS.TTL,
		Logger:  o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	e.bridge = &bridge{engine: e, dnsTokens: make(chan struct{}, maxQueries), capture: cfg.DNS.Capture}
	e.router, err = router.New(router.Options{
		Snapshot:       snapshot,
		Names:          e.fakes(),
		UDP:            e.bridge,
		Clients:        e.bridge,
		Logger:         o.Logger,
		MaxFlows:       cfg.Limits.Flows,
		MaxUDPSessions: cfg.Limits.UDPSessions,
		UDPIdle:        cfg.Timeouts.UDPIdle,
		TCPIdle:        cfg.Timeouts.TCPIdle,
		HalfClose:      cfg.Timeouts.HalfClose,
	})
	if err != nil {
		return nil, err
	}
	if len(cfg.Listen.Socks) > 0 {
		if e.server, err = e.newServer(); err != nil {
			return nil, err
		}
	}
	if o.Device != nil {
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
	}
	if err := e.openLeases(); err != nil {
		return nil, err
	}
	return e, nil
}

// newPool makes the pool of addresses of a config.
func newPool(cfg *config.Config, log *slog.Logger) (*dnsfake.Pool, error) {
	o := dnsfake.PoolOptions{
		V4: cfg.DNS.Range4,
		V6: cfg.DNS.Range6,
		// It begins when the answer has run out.
		Quarantine: cfg.DNS.Quarantine + cfg.DNS.TTL,
		Logger:     log,
	}
	if key := cfg.DNS.Key.Reveal(); key != "" {
		sum := sha256.Sum256([]byte(key))
		copy(o.Key[:], sum[:])
	}
	p, err := dnsfake.NewPool(o)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	return p, nil
}

// openLeases has the pool keep its leases, unless nobody can get one.
func (e *Engine) openLeases() error {
	if e.opts.Leases == "" || !e.leases() {
		return nil
	}
	err := e.pool.Open(e.opts.Leases)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("dns.state: %w", err)
	if e.opts.LeasesGiven {
		return err
	}
	e.log.Warn("leases are not kept: write dns.state, with another file or none", "err", err)
	return nil
}

// fakes returns who knows the names behind fake addresses: nobody where no client can
// have been given one.
func (e *Engine) fakes() router.Names {
	if !e.leases() {
		return router.NoNames{}
	}
	return e.pool
}

// leases says whether a client can be given a fake address.
func (e *Engine) leases() bool {
	cfg := e.current.Load()
	return !cfg.TUN.Off || len(cfg.DNS.Listen) > 0
}

// Addrs are the addresses that the fake ranges set aside: of the resolver, which
// programs ask, and of the device.
type Addrs struct{ Resolver4, Resolver6, Device4, Device6 netip.Addr }

// AddrsOf returns the addresses that a config sets aside.
func AddrsOf(cfg *config.Config) (Addrs, error) {
	p, err := newPool(cfg, nil)
	if err != nil {
		return Addrs{}, err
	}
	return Addrs{p.Resolver4(), p.Resolver6(), p.Device4(), p.Device6()}, nil
}

// Run serves until ctx ends or the device fails, and returns when all that it
// has started has stopped. The error is nil where ctx ended it. Run is called
// once.
func (e *Engine) Run(ctx context.Context) error {
	var opened closers
	packets, listeners, err := e.listenDNS(ctx, &opened)
	var askers []net.Listener
	if err == nil {
		askers, err = e.listenIdent(ctx, &opened)
	}
	var clients []inbound.Listener
	if err == nil {
		clients, err = e.listenSocks(ctx, &opened)
	}
	var forwards []*forward
	if err == nil {
		forwards, err = e.listenForward(ctx, &opened)
	}
	if err != nil {
		opened.close()
		if e.opts.Device != nil {
			e.opts.Device.Close()
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, e.pool.Run(gone)) // which gives the file of leases back
	}
	if e.opts.Ready != nil {
		e.opts.Ready()
	}
	// What clients come by ends first, and their flows with it; then what serves
	// them.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	front, stopFront := context.WithCancel(ctx)
	defer stopFront()

	var others sync.WaitGroup
	var routerErr, dnsErr, identErr, listenErr, stackErr error
	others.Go(func() {
		if routerErr = e.router.Run(background); routerErr != nil {
			stopFront()
		}
	})
	// What writes the leases down ends last: until then clients are told of them.
	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWriting()
	var writer sync.WaitGroup
	writer.Go(func() { _ = e.pool.Run(writing) }) // it returns nil
	if len(packets)+len(listeners) > 0 {
		others.Go(func() {
			if dnsErr = e.dns.Serve(background, packets, listeners); dnsErr != nil {
				stopFront()
			}
		})
	}
	if len(askers) > 0 {
		others.Go(func() {
			if identErr = e.ident.Serve(background, askers); identErr != nil {
				stopFront()
			}
		})
	}
	e.mu.Lock()
	e.groups.start(background)
	e.mu.Unlock()
	e.bridge.ctx = front
	var ways sync.WaitGroup
	if len(clients) > 0 {
		ways.Go(func() {
			if listenErr = e.server.Run(front, clients); listenErr != nil {
				stopFront()
			}
		})
	}
	for _, f := range forwards {
		ways.Go(func() { f.run(front) })
	}
	if e.stack != nil {
		ways.Go(func() {
			stackErr = e.stack.Run(front)
			stopFront() // also where it has ended by itself
		})
	}
	<-front.Done()
	ways.Wait()
	e.bridge.queries.Wait()
	stop()
	others.Wait()
	stopWriting()
	writer.Wait()
	e.mu.Lock()
	e.groups.end()
	e.lookups.now.Load().close()
	e.names.Load().close()
	e.mu.Unlock()
	if dnsErr != nil {
		dnsErr = fmt.Errorf("dns: %w", dnsErr)
	}
	if identErr != nil {
		identErr = fmt.Errorf("ident: %w", identErr)
	}
	if listenErr != nil {
		listenErr = fmt.Errorf("listen: %w", listenErr)
	}
	return errors.Join(stackErr, routerErr, dnsErr, identErr, listenErr)
}

// closers are what has been opened and is to be closed if something else cannot be.
type closers []io.Closer

func (c *closers) add(one io.Closer) { *c = append(*c, one) }

func (c closers) close() {
	for _, one := range c {
		one.Close()
	}
}

// identPort is where servers ask (RFC 1413 §1); they cannot be told of another.
const identPort = 113

// listenIdent opens the listeners of ident.listen.
func (e *Engine) listenIdent(ctx context.Context, opened *closers) (listeners []net.Listener, err error) {
	var lc net.ListenConfig
	for _, a := range e.current.Load().Ident.Listen {
		l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, identPort).String())
		if err != nil {
			return nil, fmt.Errorf("ident.listen %v: %w", a, err)
		}
		opened.add(l)
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listenDNS opens the listeners of dns.listen: for UDP a socket for each processor,
// among which the kernel shares out the clients, where it can do so.
func (e *Engine) listenDNS(ctx context.Context, opened *closers) (packets []net.PacketConn, listeners []net.Listener, err error) {
	var lc net.ListenConfig
	shared, sockets := net.ListenConfig{Control: sharePort}, 1
	if sharePort != nil {
		sockets = runtime.GOMAXPROCS(0)
	}
	for _, a := range e.current.Load().DNS.Listen {
		// First the one that nobody else can have as well: the others would
		// be shared with another daemon.
		l, err := lc.Listen(ctx, "tcp", a.String())
		if err != nil {
			return nil, nil, fmt.Errorf("dns.listen %v: %w", a, err)
		}
		opened.add(l)
		listeners = append(listeners, l)
		for range sockets {
			p, err := shared.ListenPacket(ctx, "udp", a.String())
			if err != nil {
				return nil, nil, fmt.Errorf("dns.listen %v: %w", a, err)
			}
			opened.add(p)
			packets = append(packets, p)
		}
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
	var kept *lookups
	if cfg.SameResolvers(e.current.Load()) {
		kept = e.lookups.now.Load()
	}
	b, err := rebuilder(cfg, e.opts.Mark, e.fakes().Owns, e.log, &e.lookups, kept)
	if err != nil {
		return err
	}
	b.ident, b.limits = e.ident, e.limits
	b.was, b.same = e.current.Load(), e.same
	s, err := b.snapshot()
	if err != nil {
		b.close()
		return err
	}
	b.inherit(e.groups.all, e.current.Load())
	e.current.Store(cfg)
	b.lookups.ways.Store(&b.made)
	wasNames, wasLookups := e.names.Swap(b.names), e.lookups.now.Swap(b.lookups)
	e.router.Swap(s)
	e.groups.replace(b.groups)
	e.limits, e.same = b.limits, b.same
	wasNames.close()
	if !b.keeps {
		wasLookups.close()
	}
	return nil
}

// Stats are the counters of the rooms.
type Stats struct {
	Stack   stack.Stats
	Router  router.Stats
	DNS     dnsfake.Stats
	Pool    dnsfake.PoolStats
	Lookups resolve.CacheStats // since the resolvers last changed
	Inbound inbound.Stats
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	s := Stats{Router: e.router.Stats(), DNS: e.dns.Stats(), Pool: e.pool.Stats(), Lookups: e.lookups.now.Load().cache.Stats()}
	if e.stack != nil {
		s.Stack = e.stack.Stats()
	}
	if e.server != nil {
		s.Inbound = e.server.Stats()
	}
	return s
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

// ExplainName answers a question as the DNS server does for clients, and returns
// besides what the rules can make of flows to the name, in their order. It blocks
// like [dnsfake.Server.Answer].
func (e *Engine) ExplainName(ctx context.Context, name, qtype string) (dnsfake.Told, []rule.Verdict, error) {
	told, err := e.dns.Explain(ctx, name, qtype)
	if err != nil {
		return told, nil, err
	}
	return told, e.names.Load().verdicts(told.Name), nil
}

// Leases returns all leases, in no order.
func (e *Engine) Leases() []dnsfake.Lease { return slices.Collect(e.pool.Leases()) }

// FindLease returns the lease of a name or of a fake address.
func (e *Engine) FindLease(of string) (dnsfake.Lease, bool) {
	if a, err := netip.ParseAddr(of); err == nil {
		return e.pool.FindAddr(a)
	}
	return e.pool.FindName(of)
}

// DropLease is [dnsfake.Pool.Drop].
func (e *Engine) DropLease(name string) bool { return e.pool.Drop(name) }
