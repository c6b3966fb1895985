package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
	"tunroute/dnsfake/resolve"
	"tunroute/router/outbound"
)

// lookups is whom names are asked of, and what they have said.
type lookups struct {
	cache    *resolve.Cache
	resolver *resolve.Resolver // of dns.resolvers; nil where there are none
}

// resolver asks the lookups of the config that counts now: flows outlive a reload, and
// what they are resolved by does not.
type resolver struct{ now atomic.Pointer[lookups] }

var (
	_ outbound.Resolver = (*resolver)(nil)
	_ dnsfake.Exchanger = (*resolver)(nil)
)

// LookupNetIP implements outbound.Resolver.
func (r *resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	return fromCurrent(r, func(c *resolve.Cache) ([]netip.Addr, error) { return c.LookupNetIP(ctx, network, host) })
}

// Exchange implements dnsfake.Exchanger.
func (r *resolver) Exchange(ctx context.Context, query []byte, network string) ([]byte, error) {
	return fromCurrent(r, func(c *resolve.Cache) ([]byte, error) { return c.Exchange(ctx, query, network) })
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

// newLookups makes what dns.resolvers describes.
func newLookups(cfg *config.Config, mark uint32) (*lookups, error) {
	l := &lookups{}
	o := resolve.CacheOptions{Choose: func(string) *resolve.Resolver { return l.resolver }}
	if len(cfg.DNS.Resolvers) == 0 {
		l.cache = resolve.NewCache(o)
		return l, nil
	}
	// Resolvers are asked from this machine.
	outside, err := Outside(cfg, mark)
	if err != nil {
		return nil, err
	}
	system := resolve.NewSystem("")
	onlySystem := true
	var servers []resolve.Server
	for _, r := range cfg.DNS.Resolvers {
		if r.System {
			if _, err := system.Conf(); err != nil {
				return nil, fmt.Errorf("dns.resolvers: system: %w", err)
			}
			servers = append(servers, resolve.Server{System: system, Dial: outside})
			continue
		}
		onlySystem = false
		servers = append(servers, resolve.Plain(r.Addr, outside))
	}
	if onlySystem {
		// Then names are looked up as every program here does.
		o.Hosts, o.Search = []*resolve.Hosts{resolve.NewHosts("")}, system
	}
	l.resolver, err = resolve.New(resolve.Options{Servers: servers, Private: func(string) bool { return true }})
	if err != nil {
		return nil, fmt.Errorf("dns.resolvers: %w", err)
	}
	l.cache = resolve.NewCache(o)
	return l, nil
}

// close ends all questions and connections.
func (l *lookups) close() {
	l.cache.Close()
	if l.resolver != nil {
		l.resolver.Close()
	}
}

// resolvers returns the addresses of dns.resolvers as they are now.
func resolvers(cfg *config.Config) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	for _, r := range cfg.DNS.Resolvers {
		if !r.System {
			servers = append(servers, r.Addr)
			continue
		}
		conf, err := resolve.NewSystem("").Conf()
		if err != nil {
			return nil, fmt.Errorf("dns.resolvers: system: %w", err)
		}
		servers = append(servers, conf.Servers...)
	}
	return servers, nil
}
