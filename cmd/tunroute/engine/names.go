package engine

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/dnsfake/resolve"
	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/rule"
)

// names says what is done with names: the config's modes, and what the rules could
// make of flows to them. It is immutable.
type names struct {
	cfg   *config.Config
	table *rule.Table

	// local asks dns.resolvers, nil where there are none. far ask
	// dns.remote-resolvers, each through the outbound of the rule with that
	// index; nil where nothing leads through a server that takes names, or where
	// nobody is to be asked there.
	local dnsfake.Exchanger
	far   []dnsfake.Exchanger
	own   []*resolve.Resolver // of far

	away   []bool // by index of a rule: its flows leave by a server that resolves names
	noIPv6 bool   // no rule leads an IPv6 address anywhere

	cluster []string // domains that are local unless the config lists a name of theirs
}

// newNames returns the names of what b has made.
func (b *builder) newNames(table *rule.Table) (*names, error) {
	n := &names{cfg: b.cfg, table: table, local: b.exchanger, noIPv6: true, cluster: b.lookups.cluster}
	for i, r := range table.Rules() {
		n.noIPv6 = n.noIPv6 && !b.carriesIPv6(r)
		ends := b.cfg.Ends(r.Via)
		away := slices.ContainsFunc(ends, func(u *config.Upstream) bool { return u.Scheme.TakesNames() })
		n.away = append(n.away, away)
		var far dnsfake.Exchanger
		if away && len(b.cfg.DNS.RemoteResolvers) > 0 {
			f, err := b.newFar(n, b.made[r.Via], i)
			if err != nil {
				n.close()
				return nil, fmt.Errorf("dns.remote-resolvers: %w", err)
			}
			far = f
		}
		n.far = append(n.far, far)
	}
	return n, nil
}

// close ends what is asked of dns.remote-resolvers.
func (n *names) close() {
	for _, r := range n.own {
		r.Close()
	}
}

// carriesIPv6 tells whether a flow to an IPv6 address may match r and leave.
func (b *builder) carriesIPv6(r rule.Rule) bool {
	if len(r.To) > 0 && !slices.ContainsFunc(r.To, func(d rule.Dest) bool {
		return d.Kind == rule.Addresses && d.Prefix.Addr().Is6()
	}) {
		return false
	}
	switch r.Via {
	case config.ViaReject, config.ViaDrop:
		return false
	case config.ViaDirect:
		return true
	}
	carries := func(u *config.Upstream) bool {
		switch u.Scheme {
		case config.Socks4, config.Socks4a: // four octets for an address
			return false
		case config.Direct:
			return !u.Bind.IsValid() || u.Bind.Is6()
		}
		return true
	}
	u := b.cfg.Upstream(r.Via)
	return u.IsGroup() && slices.Contains(u.Group, config.ViaDirect) || slices.ContainsFunc(b.cfg.Ends(r.Via), carries)
}

// policy is dnsfake's Policy. It does not allocate.
func (n *names) policy(name string) dnsfake.Policy {
	p := dnsfake.Policy{
		Resolver: n.local,
		NoIPv6:   n.noIPv6,
		Services: n.cfg.DNS.HTTPS == config.Fetch,
		StripECH: n.cfg.DNS.ECH == config.Strip,
	}
	if n.cfg.DNS.RejectsName(name) {
		p.Denied = true
		return p
	}
	mode := n.cfg.NameMode(name)
	if mode != config.Local && n.inCluster(name) {
		mode = config.Local
	}
	switch mode {
	case config.Local:
		p.Mode = dnsfake.Local
		return p
	case config.LocalThenRemote:
		p.Mode = dnsfake.LocalThenRemote
		return p // its flows may have an address, about which other rules decide
	}
	rejected, direct, away := true, true, -1
	for v := range n.table.OfName(rule.Host(name)) {
		rejected = rejected && v.Via == config.ViaReject
		direct = direct && v.Via == config.ViaDirect
		if away < 0 && v.Index >= 0 && n.away[v.Index] {
			away = v.Index
		}
	}
	switch {
	case rejected:
		// Nobody is asked about it, since nothing goes to it.
		p.Denied, p.Resolver = n.cfg.DNS.Rejected == config.NXDomain, nil
	case direct && n.cfg.DNS.Direct == config.Real:
		p.Mode = dnsfake.Local
	case away >= 0:
		// One way that the name may go tells it to somebody else; that the
		// resolver here must not hear of it then, whatever other ways do.
		p.Resolver = n.far[away]
	}
	return p
}

// inCluster reports whether a name is one of the cluster's, and the config says nothing
// of it.
func (n *names) inCluster(name string) bool {
	for _, d := range n.cluster {
		if rest, ok := strings.CutSuffix(name, d); ok && (rest == "" || rest[len(rest)-1] == '.') {
			return !n.cfg.ListsName(name)
		}
	}
	return false
}

// clusterDomains returns the domains of a search list if it is one of Kubernetes, which
// begins with NAMESPACE.svc.CLUSTER, svc.CLUSTER, CLUSTER; behind that are the domains
// of the node. With its "ndots:5" nearly every name is first tried below each of them:
// were these leased, no program would get to the name that it means.
func clusterDomains(search []string) []string {
	for _, d := range search {
		if cluster, ok := strings.CutPrefix(d, "svc."); ok && slices.Contains(search, cluster) {
			return search
		}
	}
	return nil
}

// sameWay is dnsfake's SameWay.
func (n *names) sameWay(a, b string) bool {
	return n.table.SameOfName(rule.Host(a), rule.Host(b))
}

// farTimeout is for one server, reached through a chain: a handshake with each hop
// besides what the server takes. glibc and musl ask again after five seconds.
const farTimeout = 5 * time.Second

// far asks dns.remote-resolvers through an outbound.
type far struct {
	resolver *resolve.View
	rule     int
}

func (b *builder) newFar(n *names, way outbound.Dialer, index int) (dnsfake.Exchanger, error) {
	o := resolve.Options{Timeout: farTimeout / 2, Attempts: 1, Private: func(string) bool { return true }}
	for _, at := range b.cfg.DNS.RemoteResolvers {
		o.Servers = append(o.Servers, resolve.Server{
			// A SOCKS server's UDP costs a connection to it as well, and then a
			// relay; many have none. All DNS servers have TCP (RFC 7766 §5).
			Transport: resolve.TCP,
			Addrs:     []string{at.String()},
			Alone:     true, // the way may depend on the flow
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return way.DialTCP(ctx, flow.AddrTarget(at))
			},
		})
	}
	r, err := resolve.New(o)
	if err != nil {
		return nil, err
	}
	n.own = append(n.own, r)
	return &far{b.lookups.cache.Of(r), index}, nil
}

var (
	_ dnsfake.Exchanger = (*far)(nil)
	_ dnsfake.Recaller  = (*far)(nil)
)

// Exchange implements dnsfake.Exchanger.
func (f *far) Exchange(ctx context.Context, query []byte, network string) ([]byte, error) {
	return exchanged(f.resolver.Exchange(f.flow(ctx, query), query, network))
}

// Recall implements dnsfake.Recaller.
func (f *far) Recall(ctx context.Context, query []byte) ([]byte, bool) {
	return f.resolver.Recall(f.flow(ctx, query), query)
}

// flow returns a context with the flow that a question is: whoever chooses a way or a
// user by the flow is to choose as for those to the name.
func (f *far) flow(ctx context.Context, query []byte) context.Context {
	asked := &outbound.Flow{Flow: flow.Flow{Network: flow.TCP}, Rule: f.rule}
	if t, err := flow.NewTarget(rule.Host(dnsfake.QuestionName(query)), DNSPort); err == nil {
		asked.Target = t
	}
	return outbound.WithFlow(ctx, asked)
}

// verdicts returns what the rules can make of flows to a name.
func (n *names) verdicts(name string) []rule.Verdict {
	return slices.Collect(n.table.OfName(rule.Host(name)))
}
