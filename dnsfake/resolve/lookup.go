package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The UDP size that look-ups offer: passes every path without fragments, as in
// package dnsfake.
const lookupUDP = 1232

// LookupNetIP returns the addresses of host, like [net.Resolver.LookupNetIP]:
// network is "ip", "ip4" or "ip6". IPv4 addresses come first, each family in the
// order of the answer. An address literal, even with a final dot, is its own
// answer, localhost and what is below it is loopback; neither is asked for. Search domains are not tried.
//
// Errors are [*net.DNSError]: IsNotFound where there is no such name or it has
// no address of the network, IsTimeout where no server answered in time. Of
// "ip", one family suffices. It blocks like [Resolver.Exchange].
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if addrs, ok, err := unasked(network, host); ok {
		return addrs, err
	}
	types := typesOf(network)
	results := make([]result, len(types))
	var wg sync.WaitGroup
	for i, t := range types {
		wg.Go(func() {
			a, err := r.ask(ctx, host, t)
			results[i] = resultOf(host, a.addrs, err)
		})
	}
	wg.Wait()
	return merge(results)
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

// unasked is the result of a look-up that nobody has to be asked for; false where
// somebody has to.
func unasked(network, host string) ([]netip.Addr, bool, error) {
	if typesOf(network) == nil {
		return nil, true, &net.DNSError{Err: fmt.Sprintf("network %q is not ip, ip4 or ip6", network), Name: host}
	}
	if known, ok := literal(host); ok {
		var addrs []netip.Addr
		for _, a := range known {
			if network == "ip" || a.Is4() == (network == "ip4") {
				addrs = append(addrs, a)
			}
		}
		if addrs == nil {
			return nil, true, notFound(host)
		}
		return addrs, true, nil
	}
	// A backslash would be read as an escape.
	if _, ok := dns.IsDomainName(host); !ok || host == "" || strings.Contains(host, `\`) {
		return nil, true, notFound(host)
	}
	return nil, false, nil
}

// result is what one question came to: addresses or an error.
type result struct {
	addrs []netip.Addr
	err   error
}

func resultOf(host string, addrs []netip.Addr, err error) result {
	if err == nil && len(addrs) == 0 {
		err = notFound(host)
	}
	return result{addrs, err}
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
	name := strings.ToLower(host)
	if name == "localhost" || strings.HasSuffix(name, ".localhost") { // RFC 6761 §6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, true
	}
	return nil, false
}

// answer is what servers say about one type of address. Without addresses it says
// that there are none.
type answer struct {
	addrs []netip.Addr
	ttl   time.Duration // how long it may be kept; 0: not at all
}

// ask asks for one type of address. An error says that nobody knows.
func (r *Resolver) ask(ctx context.Context, host string, qtype uint16) (answer, error) {
	var query dns.Msg
	query.SetQuestion(dns.Fqdn(host), qtype)
	query.SetEdns0(lookupUDP, false)
	msg, err := query.Pack()
	if err != nil {
		return answer{}, nil // a label is too long, or empty
	}
	reply, err := r.Exchange(ctx, msg, "tcp")
	if err != nil {
		return answer{}, unanswered(host, err)
	}
	a, code, err := addresses(reply, host, qtype)
	switch {
	case err != nil:
		return answer{}, &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: host, IsTemporary: true}
	case code != dns.RcodeSuccess && code != dns.RcodeNameError:
		return answer{}, &net.DNSError{Err: "server says " + dns.RcodeToString[code], Name: host, IsTemporary: true}
	}
	return a, nil
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

// notFound is the error for a name without addresses, in the words of package
// net, which programs look for.
func notFound(host string) error {
	return &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

const (
	// An answer is kept for a day at most, whatever it says: RFC 8767 §4 asks
	// for a bound, and a week, which it allows, is long for a mistake.
	maxTTL = 24 * time.Hour
	// That there is no address is kept for five minutes at most (RFC 2308 §5
	// allows hours): who adds the missing record waits to see it work.
	maxNegativeTTL = 5 * time.Minute
)

// addresses returns the addresses of host in a reply, by way of its aliases, and
// the response code. Only what is said without an error has addresses.
func addresses(reply []byte, host string, qtype uint16) (answer, int, error) {
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		return answer{}, 0, fmt.Errorf("malformed answer: %w", err)
	}
	aliases := make(map[string]*dns.CNAME)
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok {
			aliases[dns.CanonicalName(c.Hdr.Name)] = c
		}
	}
	name := dns.CanonicalName(host)
	ttl := maxTTL
	for range aliases { // no chain is longer, and a circle ends too
		c := aliases[name]
		if c == nil {
			break
		}
		name = dns.CanonicalName(c.Target)
		ttl = min(ttl, seconds(c.Hdr.Ttl))
	}
	if m.Rcode != dns.RcodeSuccess {
		return answer{ttl: min(ttl, negativeTTL(&m, name))}, m.Rcode, nil
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
			ttl = min(ttl, seconds(rr.Header().Ttl))
		}
	}
	if len(addrs) == 0 {
		ttl = min(ttl, negativeTTL(&m, name))
	}
	return answer{addrs, ttl}, m.Rcode, nil
}

// negativeTTL is how long it is known that name has no address: as long as the SOA
// of its zone says, and without one not at all (RFC 2308 §5).
func negativeTTL(m *dns.Msg, name string) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(dns.CanonicalName(soa.Hdr.Name), name) {
			return min(maxNegativeTTL, seconds(min(soa.Hdr.Ttl, soa.Minttl)))
		}
	}
	return 0
}

func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }
