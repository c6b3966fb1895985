package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// The UDP size that look-ups offer: passes every path without fragments, as in
// package dnsfake.
const lookupUDP = 1232

// LookupNetIP returns the addresses of host, like [net.Resolver.LookupNetIP]:
// network is "ip", "ip4" or "ip6". IPv4 addresses come first, each family in the
// order of the answer. An address literal is its own answer, localhost and what
// is below it is loopback; neither is asked for. Search domains are not tried.
//
// Errors are [*net.DNSError]: IsNotFound where there is no such name or it has
// no address of the network, IsTimeout where no server answered in time. Of
// "ip", one family suffices. It blocks like [Resolver.Exchange].
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var types []uint16
	switch network {
	case "ip":
		types = []uint16{dns.TypeA, dns.TypeAAAA}
	case "ip4":
		types = []uint16{dns.TypeA}
	case "ip6":
		types = []uint16{dns.TypeAAAA}
	default:
		return nil, &net.DNSError{Err: fmt.Sprintf("network %q is not ip, ip4 or ip6", network), Name: host}
	}
	known, ok := literal(host)
	if ok {
		var addrs []netip.Addr
		for _, a := range known {
			if network == "ip" || a.Is4() == (network == "ip4") {
				addrs = append(addrs, a)
			}
		}
		if addrs == nil {
			return nil, notFound(host)
		}
		return addrs, nil
	}
	// A backslash would be read as an escape.
	if _, ok := dns.IsDomainName(host); !ok || host == "" || strings.Contains(host, `\`) {
		return nil, notFound(host)
	}

	results := make([]struct {
		addrs []netip.Addr
		err   error
	}, len(types))
	var wg sync.WaitGroup
	for i, t := range types {
		wg.Go(func() { results[i].addrs, results[i].err = r.lookup(ctx, host, t) })
	}
	wg.Wait()
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
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, true
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") { // RFC 6761 §6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	}
	return nil, false
}

// lookup asks for one type of address.
func (r *Resolver) lookup(ctx context.Context, host string, qtype uint16) ([]netip.Addr, error) {
	var query dns.Msg
	query.SetQuestion(dns.Fqdn(host), qtype)
	query.SetEdns0(lookupUDP, false)
	msg, err := query.Pack()
	if err != nil {
		return nil, notFound(host) // a label is too long, or empty
	}
	answer, err := r.Exchange(ctx, msg, "tcp")
	if err != nil {
		var timeout interface{ Timeout() bool }
		return nil, &net.DNSError{
			UnwrapErr:   err,
			Err:         err.Error(),
			Name:        host,
			IsTimeout:   errors.As(err, &timeout) && timeout.Timeout(),
			IsTemporary: true,
		}
	}
	addrs, code, err := addresses(answer, host, qtype)
	switch {
	case err != nil:
		return nil, &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: host, IsTemporary: true}
	case code == dns.RcodeNameError, code == dns.RcodeSuccess && len(addrs) == 0:
		return nil, notFound(host)
	case code != dns.RcodeSuccess:
		return nil, &net.DNSError{Err: "server says " + dns.RcodeToString[code], Name: host, IsTemporary: true}
	}
	return addrs, nil
}

// notFound is the error for a name without addresses, in the words of package
// net, which programs look for.
func notFound(host string) error {
	return &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// addresses returns the addresses of host in an answer, by way of its aliases,
// and the response code.
func addresses(answer []byte, host string, qtype uint16) ([]netip.Addr, int, error) {
	var m dns.Msg
	if err := m.Unpack(answer); err != nil {
		return nil, 0, fmt.Errorf("malformed answer: %w", err)
	}
	aliases := make(map[string]string)
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok {
			aliases[dns.CanonicalName(c.Hdr.Name)] = dns.CanonicalName(c.Target)
		}
	}
	name := dns.CanonicalName(host)
	for range aliases { // no chain is longer, and a circle ends too
		if target, ok := aliases[name]; ok {
			name = target
		}
	}
	var addrs []netip.Addr
	for _, rr := range m.Answer {
		if dns.CanonicalName(rr.Header().Name) != name {
			continue
		}
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		addr, ok := netip.AddrFromSlice(ip)
		if addr = addr.Unmap(); ok && rr.Header().Rrtype == qtype {
			addrs = append(addrs, addr)
		}
	}
	return addrs, m.Rcode, nil
}
