package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/dnsfake/resolve"
	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/rule"
)

// lookups is whom names are asked of, and what they have said.
type lookups struct {
	cache     *resolve.Cache
	resolvers []*resolve.Resolver // of dns.resolvers
	cluster   []string            // of the system's search list: see clusterDomains
	ways      atomic.Pointer[map[string]outbound.Dialer]
}

// resolver asks the lookups of the config that counts now: flows outlive a reload, and
// what they are resolved by does not.
type resolver struct{ now atomic.Pointer[lookups] }

var (
	_ outbound.Resolver = (*resolver)(nil)
	_ dnsfake.Exchanger = (*resolver)(nil)
	_ dnsfake.Recaller  = (*resolver)(nil)
)

// LookupNetIP implements outbound.Resolver.
func (r *resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	return fromCurrent(r, func(c *resolve.Cache) ([]netip.Addr, error) { return c.LookupNetIP(ctx, network, host) })
}

// Exchange implements dnsfake.Exchanger.
func (r *resolver) Exchange(ctx context.Context, query []byte, network string) ([]byte, error) {
	return exchanged(fromCurrent(r, func(c *resolve.Cache) ([]byte, error) { return c.Exchange(ctx, query, network) }))
}

// exchanged is what package resolve has answered, as dnsfake wants to hear it.
func exchanged(answer []byte, err error) ([]byte, error) {
	if errors.Is(err, resolve.ErrBusy) {
		err = fmt.Errorf("%w: %w", dnsfake.ErrBusy, err)
	}
	return answer, err
}

// Recall implements dnsfake.Recaller.
func (r *resolver) Recall(ctx context.Context, query []byte) ([]byte, bool) {
	return r.now.Load().cache.Recall(ctx, query)
}

// fromCurrent asks, and asks again what a reload has interrupted.
func fromCurrent[T any](r *resolver, ask func(c *resolve.Cache) (T, error)) (T, error) {
	for {
		l := r.now.Load()
		answer, err := ask(l.cache)
		if err == nil || !errors.Is(err, resolve.ErrClosed) || r.now.Load() == l {
			return answer, err
		}
	}
}

var strategies = map[config.Strategy]resolve.Strategy{config.Failover: resolve.Failover, config.Race: resolve.Race}

// newLookups makes what dns says of resolvers and hosts files. Before anybody is asked
// through an upstream, ways has to have it.
func newLookups(cfg *config.Config, mark uint32, log *slog.Logger) (_ *lookups, err error) {
	l := &lookups{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	outside, err := Outside(cfg, mark)
	if err != nil {
		return nil, err
	}
	system := newSystem(mark)
	private := cfg.PrivateNames()
	var table rule.NameTable[*resolve.Resolver]
	var all *resolve.Resolver // for names that are in none of table
	o := resolve.CacheOptions{Choose: func(name string) *resolve.Resolver {
		if r, ok := table.LookupService(name); ok {
			return r
		}
		return all
	}}
	public := true // none of those for all other names is of this network
	o.Absent = func(name string) bool {
		if !public || !config.MeantElsewhere(name) {
			return false
		}
		_, listed := private.LookupService(name)
		_, theirs := table.LookupService(name)
		return !listed && !theirs
	}
	for _, split := range cfg.DNS.Split() {
		if len(split.Resolvers) == 0 {
			continue // there are none at all
		}
		ro := resolve.Options{
			Strategy: strategies[cfg.DNS.Strategy],
			Logger:   log,
			// Whoever is asked for some names only is asked for those of a
			// network of his own.
			Private: func(string) bool { return true },
		}
		others := split.For == (rule.Dest{})
		if others {
			ro.Private = func(name string) bool { ok, _ := private.LookupService(name); return ok }
		}
		for _, r := range split.Resolvers {
			if r.Protocol == config.System {
				conf, err := system.Conf()
				if err != nil {
					return nil, fmt.Errorf("dns.resolvers: system: %w", err)
				}
				if others {
					o.Search, l.cluster = system, clusterDomains(conf.Search)
				}
			}
			public = public && !(others && isOfThisNetwork(r))
			ro.Servers = append(ro.Servers, l.server(r, system, outside))
		}
		r, err := resolve.New(ro)
		if err != nil {
			return nil, fmt.Errorf("dns.resolvers: %w", err)
		}
		l.resolvers = append(l.resolvers, r)
		if others {
			all = r
			continue
		}
		table.Insert(split.For, r)
	}
	for _, path := range cfg.DNS.HostsFiles() {
		h := resolve.NewHosts(path)
		if err := h.Check(); err != nil {
			return nil, fmt.Errorf("dns.hosts: %w", err)
		}
		o.Hosts = append(o.Hosts, h)
	}
	l.cache = resolve.NewCache(o)
	return l, nil
}

// isOfThisNetwork reports whether a resolver may know names that mean something in this
// network only: that of the system, and one at a private address.
func isOfThisNetwork(r *config.Resolver) bool {
	return r.Protocol == config.System || slices.ContainsFunc(r.Addrs(), func(text string) bool {
		a, err := netip.ParseAddrPort(text)
		return err == nil && resolve.IsPrivate(a.Addr())
	})
}

var transports = map[config.Protocol]resolve.Transport{
	config.DNSUDP: resolve.UDP, config.DNSTCP: resolve.TCP, config.DNSTLS: resolve.TLS, config.DNSHTTPS: resolve.HTTPS,
}

// server makes a server of what the config says.
func (l *lookups) server(r *config.Resolver, system *resolve.System, outside resolve.Dial) resolve.Server {
	if r.Protocol == config.System {
		return resolve.Server{System: system, Dial: outside}
	}
	s := resolve.Server{
		Transport: transports[r.Protocol],
		Addrs:     r.Addrs(),
		Name:      r.Name,
		Roots:     r.Roots,
		Dial:      outside,
	}
	if s.Name == "" {
		s.Name = r.Server.Host()
	}
	if r.Protocol == config.DNSHTTPS {
		// Whose certificate it is is who is asked.
		host := netip.AddrPortFrom(r.Server.Addr, r.Server.Port).String()
		if r.Name != "" {
			host = r.Name
		} else if r.Server.Name != "" {
			host = r.Server.String()
		}
		s.URL = "https://" + host + r.Path
	}
	if r.Via != "" {
		s.Dial = l.through(r.Via)
	}
	return s
}

// through returns what connects through an upstream.
func (l *lookups) through(name string) resolve.Dial {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var way outbound.Dialer
		if ways := l.ways.Load(); ways != nil {
			way = (*ways)[name]
		}
		if way == nil {
			return nil, fmt.Errorf("upstream %s is not there yet", name)
		}
		target, err := flow.ParseTarget(addr)
		if err != nil {
			return nil, err
		}
		if network != "udp" {
			return way.DialTCP(ctx, target)
		}
		d, ok := way.(outbound.PacketDialer)
		if !ok {
			return nil, outbound.ErrNoUDP
		}
		conn, err := d.OpenUDP(ctx)
		if err != nil {
			return nil, err
		}
		if target, err = conn.Prepare(ctx, target); err != nil {
			conn.Close()
			return nil, err
		}
		return &datagrams{PacketConn: conn, to: target}, nil
	}
}

// datagrams is a UDP conversation with one target.
type datagrams struct {
	outbound.PacketConn
	net.Conn // nil: nobody asks for addresses or sets deadlines
	to       flow.Target
}

func (d *datagrams) Write(b []byte) (int, error) { return len(b), d.WriteTo(b, d.to) }

// Read returns the next datagram of the target. Where the far end says not who has sent
// it, the port has to do.
func (d *datagrams) Read(b []byte) (int, error) {
	for {
		n, from, err := d.ReadFrom(b)
		if err != nil {
			return 0, err
		}
		a := from.Addr().Unmap()
		if from.Port() == d.to.Port && (a == d.to.Addr || a.IsUnspecified() || !d.to.Addr.IsValid()) {
			return n, nil
		}
	}
}

func (d *datagrams) Close() error { return d.PacketConn.Close() }

// close ends all questions and connections.
func (l *lookups) close() {
	if l.cache != nil {
		l.cache.Close()
	}
	for _, r := range l.resolvers {
		r.Close()
	}
}

// newSystem returns how this machine resolves names. A mark keeps our own questions out
// of a TUN that catches all, but not those of a resolver on this host.
func newSystem(mark uint32) *resolve.System {
	s := resolve.NewSystem("")
	if mark != 0 {
		s.BehindStub("")
	}
	return s
}

// resolvers returns the addresses of those of dns.resolvers that this machine asks
// itself, as they are now.
func resolvers(cfg *config.Config, mark uint32) ([]Server, error) {
	var all []Server
	system := newSystem(mark)
	for i := range cfg.DNS.Resolvers {
		r := &cfg.DNS.Resolvers[i]
		var mark uint32
		if r.Via != "" {
			u := cfg.Upstream(r.Via)
			if u == nil || u.Scheme != config.Direct {
				continue
			}
			mark = u.Mark
		}
		addrs := r.Addrs()
		if r.Protocol == config.System {
			conf, err := system.Conf()
			if err != nil {
				return nil, fmt.Errorf("dns.resolvers: system: %w", err)
			}
			addrs = nil
			for _, a := range conf.Servers {
				addrs = append(addrs, a.String())
			}
		}
		for _, text := range addrs {
			a, err := netip.ParseAddrPort(text)
			if err != nil {
				continue
			}
			s := Server{"resolver " + r.String(), a.Addr(), mark}
			if r.Protocol == config.System {
				s.Name = "resolver " + a.String()
			}
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all, nil
}
