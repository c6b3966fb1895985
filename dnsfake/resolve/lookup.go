package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// LookupNetIP returns the addresses of host, like [net.Resolver.LookupNetIP]:
// network is "ip", "ip4" or "ip6". IPv4 addresses come first, each family in the
// order of the answer each time. They are not rotated, since an order may mean something
// and callers try all of them. Of a family's addresses the first 64 count. The slice is
// the caller's own; it is all that is allocated where addresses are known and host is in
// lower case.
//
// An address literal, even with a final dot, is its own answer, localhost and what is
// below it is loopback; neither is asked for. A name of a hosts file has the addresses
// there. A name without final dot is tried with the domains of the search list, if
// there is one, as resolv.conf(5) says.
//
// Errors are [*net.DNSError]: IsNotFound where there is no such name or it has no
// address of the network, IsTimeout where no server answered in time. Of "ip", one
// family suffices. The name in an error may be in lower case and without its final dot.
// It blocks like [Cache.Exchange].
func (c *Cache) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	name := canonical(host)
	plain := c.opts.Search == nil || strings.HasSuffix(host, ".")
	if plain && len(c.opts.Hosts) == 0 {
		if addrs, ok, err := c.known(ctx, network, name); ok {
			return addrs, err
		}
	}
	if addrs, ok, err := unasked(network, host); ok {
		return addrs, err
	}
	for _, h := range c.opts.Hosts {
		if addrs := h.lookup(name); addrs != nil {
			if addrs = ofNetwork(addrs, network); len(addrs) == 0 {
				return nil, notFound(host)
			}
			return addrs, nil
		}
	}
	if plain {
		return c.lookup(ctx, network, name)
	}
	conf, _ := c.opts.Search.Conf() // without it there is no list
	var first error
	for _, candidate := range conf.candidates(name) {
		addrs, err := c.lookup(ctx, network, candidate)
		var dnsErr *net.DNSError
		switch {
		case err == nil:
			return addrs, nil
		case errors.As(err, &dnsErr) && dnsErr.IsTimeout || ctx.Err() != nil:
			// Another name may not stand in for one that is not heard of.
			return nil, err
		case first == nil || candidate == name:
			first = err
		}
	}
	return nil, first
}

// lookup returns the addresses of a name, and asks for what is not known.
func (c *Cache) lookup(ctx context.Context, network, name string) ([]netip.Addr, error) {
	if addrs, ok, err := c.known(ctx, network, name); ok {
		return addrs, err
	}
	if c.absent(name) {
		return nil, notFound(name)
	}
	types := typesOf(network)
	now := time.Now()
	outcomes := make([]outcome, len(types))
	questions := make([]*question, len(types))
	c.mu.Lock()
	for i, t := range types {
		k := keyOf(name, t)
		if res, ok := c.kept(ctx, k, now); ok {
			outcomes[i] = res
		} else if q, err := c.join(ctx, k, now); err != nil {
			outcomes[i].err = err
		} else {
			questions[i] = q
		}
	}
	c.mu.Unlock()
	results := make([]result, len(types))
	for i, q := range questions {
		if q != nil {
			outcomes[i] = c.wait(ctx, keyOf(name, types[i]), q)
		}
		results[i].addrs, results[i].err = outcomes[i].addrs(name)
	}
	return merge(results)
}

// known returns what a look-up comes to where nothing has to be asked for.
func (c *Cache) known(ctx context.Context, network, name string) (addrs []netip.Addr, ok bool, err error) {
	now := time.Now()
	var entries [2]*entry
	c.mu.Lock()
	defer c.mu.Unlock()
	types := typesOf(network)
	for i, t := range types {
		if entries[i] = c.usable(keyOf(name, t), now); entries[i] == nil {
			return nil, false, nil
		}
	}
	var found [2][]netip.Addr
	for i := range types {
		c.use(ctx, entries[i], now)
		found[i] = entries[i].answer.addrs[:min(len(entries[i].answer.addrs), maxAddrs)]
	}
	if addrs = slices.Concat(found[0], found[1]); addrs == nil {
		err = notFound(name)
	}
	return addrs, len(types) > 0, err
}

// typesOf returns the questions for a network; nil where it is none.
func typesOf(network string) []uint16 {
	switch network {
	case "ip":
		return []uint16{dns.TypeA, dns.TypeAAAA}
	case "ip4":
		return []uint16{dns.TypeA}
	case "ip6":
		return []uint16{dns.TypeAAAA}
	}
	return nil
}

// ofNetwork returns the addresses that are of a network, in a slice of its own.
func ofNetwork(addrs []netip.Addr, network string) []netip.Addr {
	var list []netip.Addr
	for _, a := range addrs {
		if network == "ip" || a.Is4() == (network == "ip4") {
			list = append(list, a)
		}
	}
	return list
}

// unasked is the result of a look-up that nobody has to be asked for; false where
// somebody has to.
func unasked(network, host string) ([]netip.Addr, bool, error) {
	if typesOf(network) == nil {
		return nil, true, &net.DNSError{Err: fmt.Sprintf("network %q is not ip, ip4 or ip6", network), Name: host}
	}
	if known, ok := literal(host); ok {
		if addrs := ofNetwork(known, network); addrs != nil {
			return addrs, true, nil
		}
		return nil, true, notFound(host)
	}
	// A backslash would be read as an escape.
	if _, ok := dns.IsDomainName(host); !ok || host == "" || strings.Contains(host, `\`) {
		return nil, true, notFound(host)
	}
	if _, ok := keyOf(canonical(host), dns.TypeA).query(); !ok {
		return nil, true, notFound(host) // a label is too long, or empty
	}
	return nil, false, nil
}

// result is what one question came to: addresses or an error.
type result struct {
	addrs []netip.Addr
	err   error
}

// merge makes one result of those of the families, in a slice of its own.
func merge(results []result) ([]netip.Addr, error) {
	var (
		addrs []netip.Addr
		err   error
	)
	for _, res := range results {
		addrs = append(addrs, res.addrs...)
		// Not to have one family says less than not to know.
		var dnsErr *net.DNSError
		if err == nil || errors.As(err, &dnsErr) && dnsErr.IsNotFound && res.err != nil {
			err = res.err
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	return nil, err
}

// literal returns the addresses of a host that nobody has to be asked for.
func literal(host string) ([]netip.Addr, bool) {
	host = strings.TrimSuffix(host, ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, true
	}
	if below(lower(host), "localhost") { // RFC 6761 §6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	}
	return nil, false
}

// unanswered is the error for a question that nobody has answered.
func unanswered(host string, err error) error {
	var timeout interface{ Timeout() bool }
	return &net.DNSError{
		UnwrapErr:   err,
		Err:         err.Error(),
		Name:        host,
		IsTimeout:   errors.As(err, &timeout) && timeout.Timeout(),
		IsTemporary: true,
	}
}

// failed is the error for an answer that is none.
func failed(host string, rcode int) error {
	return &net.DNSError{Err: "server says " + codeText(rcode), Name: host, IsTemporary: true}
}

// notFound is the error for a name without addresses, in the words of package
// net, which programs look for.
func notFound(host string) error {
	return &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}
