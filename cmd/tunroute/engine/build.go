package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/router"
	"tunroute/router/flow"
	"tunroute/router/gssapi/krb5"
	"tunroute/router/ident"
	"tunroute/router/outbound"
	"tunroute/router/outbound/group"
	"tunroute/router/socks"
)

// builder makes what a config describes.
type builder struct {
	cfg  *config.Config
	mark uint32
	deny func(netip.Addr) bool

	// resolver is for names that are dialled from here, exchanger for
	// questions that are passed on; nil where no resolver is known.
	resolver  outbound.Resolver
	exchanger dnsfake.Exchanger
	lookups   *lookups // that both ask
	keeps     bool     // lookups are those of a config before

	ident *ident.Server // is told of connections to servers; nil where nobody can ask

	kerberos map[[3]string]*krb5.Client // by where their tickets come from

	made   map[string]outbound.Dialer
	groups map[string]*group.Group // of made, those that have to run
	limits limiters                // of the config before, and after snapshot of this one
	was    *config.Config          // the config before; nil: none
	same   map[string]any          // outbounds by name, as limits: equal where an upstream is as it was
	names  *names                  // made by snapshot
	log    *slog.Logger            // of groups; nil discards
}

// newBuilder returns a builder. What it holds open b.close ends.
func newBuilder(cfg *config.Config, mark uint32, deny func(netip.Addr) bool) (*builder, error) {
	return rebuilder(cfg, mark, deny, nil, new(resolver), nil)
}

// rebuilder returns a builder of outbounds that ask r, which goes on asking whom it
// does until the builder's lookups are stored in it. Those are kept if they are not nil.
func rebuilder(cfg *config.Config, mark uint32, deny func(netip.Addr) bool, log *slog.Logger, r *resolver, kept *lookups) (*builder, error) {
	b := &builder{
		cfg: cfg, mark: mark, deny: deny, log: log, lookups: kept, keeps: kept != nil,
		made: make(map[string]outbound.Dialer), groups: make(map[string]*group.Group),
	}
	if kept == nil {
		var err error
		if b.lookups, err = newLookups(cfg, mark, log); err != nil {
			return nil, err
		}
	}
	if len(cfg.DNS.Resolvers) > 0 {
		b.resolver, b.exchanger = r, r
	}
	r.now.CompareAndSwap(nil, b.lookups)
	return b, nil
}

// close ends what b has opened and nobody has taken over.
func (b *builder) close() {
	if !b.keeps {
		b.lookups.close()
	}
	if b.names != nil {
		b.names.close()
	}
}

// snapshot makes the outbounds and the rules.
func (b *builder) snapshot() (*router.Snapshot, error) {
	table, err := b.cfg.Table()
	if err != nil {
		return nil, err
	}
	direct, err := b.direct(&config.Upstream{}, nil)
	if err != nil {
		return nil, err
	}
	outs := []*router.Outbound{
		{Name: "direct", Dialer: direct, Same: config.ViaDirect},
		{Name: "reject", Dialer: outbound.Reject{}},
		{Name: "drop", Dialer: outbound.Drop{}},
	}
	same := make(map[string]any)
	for _, u := range b.cfg.Upstreams {
		d, err := b.dialer(u)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", u.Name, err)
		}
		o := &router.Outbound{Name: u.Name, Dialer: d}
		if c, ok := d.(outbound.Chain); ok {
			o.Hops = c.Hops()
		}
		if o.Same = b.same[u.Name]; o.Same == nil || !b.cfg.SameUpstream(b.was, u.Name) {
			o.Same = u
		}
		same[u.Name] = o.Same
		outs = append(outs, o)
	}
	b.same = same
	if b.names, err = b.newNames(table); err != nil {
		return nil, err
	}
	if !b.keeps {
		b.lookups.ways.Store(&b.made)
	}
	s, err := router.NewSnapshot(table, outs)
	if err != nil {
		return nil, err
	}
	var more router.SnapshotOptions
	more, b.limits = b.limits.options(b.cfg)
	s = s.With(more)
	if !b.cfg.DNS.RejectEncrypted {
		return s, nil
	}
	return s.Before(func(f *flow.Flow) *router.Outbound {
		if b.cfg.DNS.RejectsFlow(f) {
			return encryptedDNS
		}
		return nil
	}), nil
}

// encryptedDNS is where flows of encrypted DNS go that are rejected.
var encryptedDNS = &router.Outbound{Name: "reject", Dialer: outbound.Reject{Why: "dns.reject-encrypted"}}

// dialer makes the outbound of u, and of those that it is reached through. The
// config has no cycles: it is checked when it is read.
func (b *builder) dialer(u *config.Upstream) (outbound.Dialer, error) {
	if d := b.made[u.Name]; d != nil {
		return d, nil
	}
	d, err := b.make(u)
	if err != nil {
		return nil, err
	}
	b.made[u.Name] = d
	return d, nil
}

func (b *builder) make(u *config.Upstream) (outbound.Dialer, error) {
	if u.IsGroup() {
		return b.group(u)
	}
	if u.Scheme == config.Direct {
		return b.direct(u, nil)
	}
	via, err := b.way(u)
	if err != nil {
		return nil, err
	}
	secure := clientTLS(u)
	users, err := flow.ParseTemplate(u.User)
	if err != nil {
		return nil, fmt.Errorf("a user that %w", err)
	}
	user := ""
	if users.Fixed() {
		user, users = users.Text(nil, 0), nil
	}
	if u.Scheme == config.HTTP {
		return outbound.NewHTTP(outbound.HTTPOptions{
			Name:      u.Name,
			Server:    u.Server,
			Via:       via,
			TLS:       secure,
			User:      user,
			Users:     users,
			Password:  u.Password.Reveal(),
			Deny:      b.deny,
			Connect:   b.cfg.Timeouts.Connect,
			Negotiate: b.cfg.Timeouts.Negotiate,
			Request:   b.cfg.Timeouts.Request,
		})
	}
	gss, err := b.gssapi(u)
	if err != nil {
		return nil, err
	}
	version := byte(socks.Version5)
	if u.Scheme == config.Socks4 || u.Scheme == config.Socks4a {
		version = socks.Version4
	}
	return outbound.NewSocks(outbound.SocksOptions{
		Name:        u.Name,
		Version:     version,
		RemoteNames: u.Scheme.TakesNames(),
		Server:      u.Server,
		Via:         via,
		TLS:         secure,
		User:        user,
		Users:       users,
		Password:    u.Password.Reveal(),
		GSSAPI:      gss,
		Pipeline:    u.Pipeline,
		EarlyReply:  u.EarlyReply,
		Resolver:    b.resolver,
		Deny:        b.deny,
		Connect:     b.cfg.Timeouts.Connect,
		Negotiate:   b.cfg.Timeouts.Negotiate,
		Request:     b.cfg.Timeouts.Request,
	})
}

// way makes the way to u.
func (b *builder) way(u *config.Upstream) (outbound.Dialer, error) {
	switch {
	case u.Transport == config.Unix:
		return outbound.NewUnix(u.Path, b.cfg.Timeouts.Connect)
	case u.Via == "":
		track, err := b.track(u)
		if err != nil {
			return nil, err
		}
		return b.direct(u, track)
	}
	before := b.cfg.Upstream(u.Via)
	if before == nil {
		return nil, fmt.Errorf("via %q, which is not an upstream", u.Via)
	}
	return b.dialer(before)
}

// policies are those of a config without hash, which has two.
var policies = map[config.Policy]group.Policy{
	config.Fallback: group.Fallback, config.Random: group.Random, config.RoundRobin: group.RoundRobin,
	config.LeastFlows: group.LeastFlows, config.Hash: group.HashSource, config.Fastest: group.Fastest,
}

// group makes a choice among others.
func (b *builder) group(u *config.Upstream) (*group.Group, error) {
	o := group.Options{
		Name:       u.Name,
		Policy:     policies[u.Policy],
		MaxFail:    u.MaxFail,
		BadExpire:  u.BadExpire,
		Hedge:      u.Hedge,
		Deadline:   u.Deadline,
		Probe:      group.Probe{Target: u.Probe.Target, ConnectOnly: u.Probe.ConnectOnly},
		ProbeEvery: u.ProbeEvery,
		Logger:     b.log,
	}
	if u.Policy == config.Hash && u.By == config.ByTarget {
		o.Policy = group.HashTarget
	}
	for _, name := range u.Group {
		m := group.Member{Name: name, Weight: u.Weights[name]}
		var err error
		if member := b.cfg.Upstream(name); member != nil {
			m.Dialer, err = b.dialer(member)
		} else if name == config.ViaDirect {
			m.Dialer, err = b.direct(&config.Upstream{}, nil)
		} else {
			err = errors.New("not an upstream")
		}
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", name, err)
		}
		o.Members = append(o.Members, m)
	}
	g, err := group.New(o)
	if err != nil {
		return nil, err
	}
	b.groups[u.Name] = g
	return g, nil
}

// inherit has the groups know what those of another config have found out about
// members that are the same in both.
func (b *builder) inherit(was map[string]*group.Group, from *config.Config) {
	for name, g := range b.groups {
		if old := was[name]; old != nil {
			g.Inherit(old, func(member string) bool { return b.cfg.SameUpstream(from, member) })
		}
	}
}

// track returns what tells ident of the connections to u, nil where nobody can ask.
func (b *builder) track(u *config.Upstream) (func(context.Context, netip.AddrPort) outbound.Tracked, error) {
	if b.ident == nil {
		return nil, nil
	}
	text := b.cfg.Ident.User
	if u.User != "" && (u.Scheme == config.Socks4 || u.Scheme == config.Socks4a) {
		text = u.User // or the reply is 93
	}
	users, err := flow.ParseTemplate(text)
	if err != nil {
		return nil, fmt.Errorf("a user that %w", err)
	}
	return func(ctx context.Context, to netip.AddrPort) outbound.Tracked {
		if f := outbound.FlowOf(ctx); f != nil {
			return b.ident.Opening(to, users.Text(&f.Flow, f.Rule+1))
		}
		return b.ident.Opening(to, users.Text(nil, 0))
	}, nil
}

// direct makes the way out of this machine with u's socket options.
func (b *builder) direct(u *config.Upstream, track func(context.Context, netip.AddrPort) outbound.Tracked) (*outbound.Direct, error) {
	return outbound.NewDirect(outbound.DirectOptions{
		Bind:      u.Bind,
		Interface: u.Interface,
		Mark:      b.mark | u.Mark,
		Resolver:  b.resolver,
		Deny:      b.deny,
		Track:     track,
		Connect:   b.cfg.Timeouts.Connect,
	})
}

// fixedParts are what a running engine cannot change, but for the key of dns and where
// the log goes.
var fixedParts = []struct {
	name string
	of   func(*config.Config) any
}{
	{"tun", func(c *config.Config) any { return c.TUN }},
	{"dns", func(c *config.Config) any { return fixed(c.DNS) }},
	{"listen", func(c *config.Config) any { return c.Listen }},
	{"forward", func(c *config.Config) any { return c.Forward }},
	{"ident.listen", func(c *config.Config) any { return c.Ident.Listen }},
	{"limits.flows", func(c *config.Config) any { return c.Limits.Flows }},
	{"limits.half-open", func(c *config.Config) any { return c.Limits.HalfOpen }},
	{"limits.half-open-per-source", func(c *config.Config) any { return c.Limits.HalfOpenPerSource }},
	{"limits.udp-sessions", func(c *config.Config) any { return c.Limits.UDPSessions }},
	{"timeouts.udp-idle", func(c *config.Config) any { return c.Timeouts.UDPIdle }},
	{"timeouts.tcp-idle", func(c *config.Config) any { return c.Timeouts.TCPIdle }},
	{"timeouts.half-close", func(c *config.Config) any { return c.Timeouts.HalfClose }},
}

// needsRestart names what differs between two configs and a running engine cannot
// change; "" where there is nothing.
func needsRestart(was, is *config.Config) string {
	for _, part := range fixedParts {
		if a, b := part.of(was), part.of(is); !config.Same(a, b) {
			return part.name + config.Difference(a, b)
		}
	}
	if was.DNS.Key.Reveal() != is.DNS.Key.Reveal() {
		return "dns.key"
	}
	if !was.Log.SameSinks(is.Log) {
		return "log" // log.to or log.format
	}
	return ""
}

// fixed is what of dns takes a new start to change.
func fixed(d config.DNS) config.DNS {
	d.Resolvers, d.Strategy, d.Hosts, d.RebindAllow, d.RemoteResolvers = nil, 0, nil, nil, nil
	d.HTTPS, d.ECH, d.Rejected, d.Direct, d.RejectEncrypted = 0, 0, 0, 0, false
	return d
}

// Outside returns what connects from this machine, past our own rules: to an address
// literal and a port, by "tcp" or "udp".
func Outside(cfg *config.Config, mark uint32) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	d, err := outbound.NewDirect(outbound.DirectOptions{Mark: mark, Connect: cfg.Timeouts.Connect})
	if err != nil {
		return nil, err
	}
	return d.DialContext, nil
}

// Server is somebody to whom this machine opens connections itself: a server
// that is reached directly, a resolver, or one that logs are sent to.
type Server struct {
	Name string // as the config has it
	Addr netip.Addr
	Mark uint32 // of its own connections, besides the daemon's
}

// LookupError is that of a server whose name has no address, or none yet.
type LookupError struct {
	Server string // as the config has it
	Err    error
}

func (e *LookupError) Error() string { return fmt.Sprintf("%s: %v", e.Server, e.Err) }

func (e *LookupError) Unwrap() error { return e.Err }

// Servers resolves all that cfg has, by sockets with the mark. It blocks until then or
// until ctx ends. A server whose name has no address is a [LookupError]. One within a
// fake range, which leads nowhere, is an error too.
func Servers(ctx context.Context, cfg *config.Config, mark uint32) ([]Server, error) {
	b, err := newBuilder(cfg, mark, nil)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if _, err := b.snapshot(); err != nil { // a resolver may be behind one of its outbounds
		return nil, err
	}
	var all []Server
	add := func(s Server) error {
		if cfg.DNS.Range4.Contains(s.Addr) || cfg.DNS.Range6.Contains(s.Addr) {
			return fmt.Errorf("%s: %s is within the range of fake addresses, which leads back here; "+
				"is this machine's resolver set to a tunroute?", s.Name, s.Addr)
		}
		all = append(all, s)
		return nil
	}
	for _, u := range cfg.Upstreams {
		if u.Scheme == config.Direct || u.IsGroup() || u.Via != "" || u.Transport == config.Unix {
			continue
		}
		name := "upstream " + u.Name
		if u.Server.Addr.IsValid() {
			if err := add(Server{name, u.Server.Addr, u.Mark}); err != nil {
				return nil, err
			}
			continue
		}
		if b.resolver == nil {
			return nil, fmt.Errorf("%s: no resolver for its name %s: set dns.resolvers", name, u.Server.Name)
		}
		addrs, err := b.resolver.LookupNetIP(ctx, "ip", u.Server.Name)
		if err != nil {
			return nil, &LookupError{name, err}
		}
		for _, a := range addrs {
			if err := add(Server{name, a.Unmap(), u.Mark}); err != nil {
				return nil, err
			}
		}
	}
	for _, to := range cfg.Log.To {
		if to.Server.IsValid() {
			if err := add(Server{Name: "log.to udp:" + to.Server.String(), Addr: to.Server.Addr()}); err != nil {
				return nil, err
			}
		}
	}
	servers, err := resolvers(cfg, mark)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return all, nil
}
