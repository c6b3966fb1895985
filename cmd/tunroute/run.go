package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/tun"
	"tunroute/tun/route"
)

func newRun() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "run [-c FILE]",
		Short: "Route this host, and those behind it, as a config says",
		Long: `Run makes a TUN interface, sends the routes of the config into it and serves
what comes until it is told to stop. It marks its own packets, refuses to start
where they would come back to it, and takes back all that it has changed when it
ends. If it is killed, what would have gone into the TUN is unreachable instead
of leaving by another way; the next start cleans up.

SIGHUP reads the config again: the new one decides the flows that come then. If
it has an error, nothing changes. The files of the log are opened anew in any case.
SIGTERM and SIGINT end it.`,
		Args: noFile,
		RunE: func(c *cobra.Command, _ []string) error {
			outliveReaders()
			cfg, err := load(file)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			l, err := openLogs(cfg)
			if err != nil {
				return err
			}
			defer l.start()()
			d := &daemon{file: file, cfg: cfg, log: l, started: time.Now()}
			err = d.run(ctx)
			if ctx.Err() != nil && onlyCanceled(err) {
				return nil // it was told to end while it started
			}
			return withRemedy(err)
		},
	}
	configFlag(c, &file, defaultConfig)
	return c
}

// daemon is what run runs.
type daemon struct {
	file    string
	cfg     *config.Config // as it was at the start
	log     *logs
	started time.Time
	device  string
	engine  *engine.Engine
	since   time.Time // when clients could come first; for who runs the engine

	mu       sync.Mutex // of reload; guards what follows
	reloaded time.Time  // the zero Time while it never was
}

// onlyCanceled says whether an error is about nothing but the end of a context.
func onlyCanceled(err error) bool {
	switch e := err.(type) {
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !onlyCanceled(err) })
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return onlyCanceled(inner)
		}
	}
	return errors.Is(err, context.Canceled)
}

// withRemedy adds what to do about a port that is not for everybody.
func withRemedy(err error) error {
	var op *net.OpError
	if errors.Is(err, syscall.EACCES) && errors.As(err, &op) && op.Op == "listen" && op.Net != "unix" {
		return fmt.Errorf("%w: a port below 1024 takes root, or CAP_NET_BIND_SERVICE", err)
	}
	return err
}

// run serves until ctx ends, and leaves the host as it was.
func (d *daemon) run(ctx context.Context) (err error) {
	// First of all, and given back last: a SIGHUP that nobody waits for would
	// end this process in the middle of a change to the host.
	hup := make(chan os.Signal, 1)
	notifyReload(hup)
	defer signal.Stop(hup)

	if d.cfg.TUN.Off {
		e, err := engine.New(d.cfg, engine.Options{
			Logger:      d.log.Logger,
			Leases:      leaseFile(d.cfg),
			LeasesGiven: d.cfg.DNS.State != "",
			Ready:       func() { d.ready() },
		})
		if err != nil {
			return err
		}
		d.engine = e
		return d.serve(ctx, hup)
	}
	addrs, err := engine.AddrsOf(d.cfg)
	if err != nil {
		return err
	}
	servers, early := d.earlyServers(ctx)
	if err := lasting(early); err != nil {
		return err
	}
	// A second daemon fails here, before it touches what is the first one's.
	dev, err := tun.Open(tun.Config{Name: d.cfg.TUN.Name, MTU: d.cfg.TUN.MTU, Queues: d.cfg.TUN.Queues})
	const needs = "run needs root, or CAP_NET_ADMIN and a /dev/net/tun that it may open; a config with `tun: off` needs neither"
	switch {
	case errors.Is(err, syscall.EACCES):
		return errors.New(needs) // what the error advises, to be let at the device, is enough for exec only
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: %w", needs, err)
	case err != nil:
		return err
	}
	defer dev.Close()

	e, err := engine.New(d.cfg, engine.Options{
		Device:      dev,
		Logger:      d.log.Logger,
		Mark:        d.cfg.TUN.Mark.Value,
		Leases:      leaseFile(d.cfg),
		LeasesGiven: d.cfg.DNS.State != "",
		Ready:       func() { d.ready("device", dev.Name(), "mtu", dev.MTU(), "resolver", addrs.Resolver4) },
	})
	if err != nil {
		return err
	}
	d.engine, d.device = e, dev.Name()
	applied, err := d.applyRoutes(ctx, dev.Name(), addrs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, applied.Undo()) }()
	// From here on nothing takes another way. What goes into the device waits there.
	if early != nil {
		servers, err = d.awaitServers(ctx)
		if err != nil {
			return err
		}
	}
	if err := d.checkLoops(dev.Name(), servers); err != nil {
		return err
	}
	d.adviseGateway()
	return d.serve(ctx, hup)
}

// How long to wait before names are looked up again: twice as long each time.
const (
	firstWait = time.Second
	lastWait  = 30 * time.Second
)

// earlyServers resolves the servers before there are routes, while a resolver on this host
// can: its own questions will go into the TUN. Whoever is slow is asked again behind them.
func (d *daemon) earlyServers(ctx context.Context) ([]engine.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	return engine.Servers(ctx, d.cfg, d.cfg.TUN.Mark.Value)
}

// awaitServers resolves the servers, as soon as it can be done: after a boot there may be
// no network yet. Our queries have the mark, by which they are let out.
func (d *daemon) awaitServers(ctx context.Context) ([]engine.Server, error) {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		servers, err := engine.Servers(ctx, d.cfg, d.cfg.TUN.Mark.Value)
		var none *engine.LookupError
		if !errors.As(err, &none) {
			return servers, err
		}
		d.log.Warn(fmt.Sprintf("a server has no address yet, and nothing leaves by another way: asking again in %s", wait), "server", none.Server, "err", none.Err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lasting returns err unless time may mend it: a server's name has no address.
func lasting(err error) error {
	if none := (*engine.LookupError)(nil); errors.As(err, &none) {
		return nil
	}
	return err
}

// leaseFile returns the file of leases, or "".
func leaseFile(cfg *config.Config) string {
	switch cfg.DNS.State {
	case config.StateNone:
		return ""
	case "":
		dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // systemd.exec(5)
		if dir == "" {
			dir = "/var/lib/tunroute"
		}
		return filepath.Join(dir, cfg.Instance()+".leases")
	}
	return cfg.DNS.State
}

// ready tells that clients may come, and what there is for them.
func (d *daemon) ready(what ...any) {
	var at []string
	for _, l := range d.cfg.Listen.Socks {
		at = append(at, l.At.String())
	}
	if len(at) > 0 {
		what = append(what, "listen", strings.Join(at, " "))
	}
	d.log.Info("ready", what...)
	d.since = time.Now()
}

// serve runs the engine until ctx ends, and reloads where hup says so.
func (d *daemon) serve(ctx context.Context, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked, err := d.listenAdmin()
	if err != nil {
		return err
	}
	var beside sync.WaitGroup
	beside.Go(func() {
		for {
			select {
			case <-hup:
				_ = d.Reload() // it has told
			case <-ctx.Done():
				return
			}
		}
	})
	beside.Go(func() { d.serveAdmin(ctx, asked) })
	err = serve(ctx, d.engine)
	cancel()
	beside.Wait()
	if d.since.IsZero() {
		return err
	}
	s := d.engine.Stats()
	d.log.Info("stopped", "after", time.Since(d.since).Round(time.Second), "tcp", s.Router.TCP, "udp", s.Router.UDP,
		"up", s.Router.Up, "down", s.Router.Down)
	return err
}

// routeOptions says what cfg has sent into a device.
func routeOptions(cfg *config.Config, device string, addrs engine.Addrs) route.Options {
	return route.Options{
		Device: device,
		Addresses: []netip.Prefix{
			netip.PrefixFrom(addrs.Device4, addrs.Device4.BitLen()),
			netip.PrefixFrom(addrs.Device6, addrs.Device6.BitLen()),
		},
		Routes:     cfg.TUNRoutes(),
		Exclude:    cfg.TUN.Exclude,
		Table:      int(cfg.TUN.Table),
		Mark:       cfg.TUN.Mark.Value,
		MarkMask:   cfg.TUN.Mark.Mask,
		CaptureDNS: cfg.DNS.Capture,
		Strict:     cfg.TUN.Strict,
	}
}

// applyRoutes cleans up after a run that was killed and sends the routes into
// the device.
func (d *daemon) applyRoutes(ctx context.Context, device string, addrs engine.Addrs) (*route.Applied, error) {
	o := routeOptions(d.cfg, device, addrs)
	if err := route.Clean(o); err != nil {
		return nil, err
	}
	host, err := route.ReadHost(device)
	if err != nil {
		return nil, err
	}
	plan, err := route.New(o, host)
	if err != nil {
		return nil, err
	}
	for _, w := range plan.Warnings {
		d.log.Warn(w)
	}
	d.log.Debug("routes", "plan", plan.String())
	applied, err := route.Apply(ctx, plan)
	if err != nil {
		return nil, err
	}
	for _, w := range applied.Warnings {
		d.log.Warn(w)
	}
	return applied, nil
}

// checkLoops refuses what would come back: a server, or a resolver, to which our
// own packets leave by our own device.
func (d *daemon) checkLoops(device string, servers []engine.Server) error {
	for _, s := range servers {
		ifname, _, local, err := route.Via(s.Addr, d.cfg.TUN.Mark.Value|s.Mark)
		switch {
		case err != nil:
			// It may come up later, and flows to it fail until then.
			d.log.Warn("a server cannot be reached now", "server", s.Name, "err", err)
		case ifname == device:
			return fmt.Errorf("loop: our own packets to %s (%s) would go into %s again; "+
				"is there a rule before ours that ignores the mark %s? see `ip rule`", s.Name, s.Addr, device, d.cfg.TUN.Mark)
		case local:
			d.log.Warn("a server is on this host: what it opens itself goes into the TUN too, and comes back to it, "+
				"unless tun.exclude or a mark of its own keeps it out", "server", s.Name, "addr", s.Addr)
		}
	}
	return nil
}

// adviseGateway tells what keeps this host from forwarding for others. Whether
// it is meant to, only its owner knows: so it is for those who look.
func (d *daemon) adviseGateway() {
	warnings, err := route.Forwarding()
	if err != nil {
		d.log.Debug("gateway settings", "err", err)
		return
	}
	for _, w := range warnings {
		d.log.Debug("as a gateway: "+w.What, "remedy", w.Remedy)
	}
}
