package outbound

import (
	"context"
	"fmt"
	"net/netip"

	"tunroute/router/flow"
)

// unname turns a name that is an address literal into the address, and a 4-in-6
// address into the IPv4 one. A Target should have neither; if one does, no server
// gets it as a name, no resolver is asked for it and no Deny is deceived.
func unname(t flow.Target) flow.Target {
	if t.Name != "" {
		if a, err := netip.ParseAddr(t.Name); err == nil {
			return flow.AddrTarget(netip.AddrPortFrom(a, t.Port))
		}
	}
	t.Addr = t.Addr.Unmap()
	return t
}

// refusal is why a is not to be dialled or sent to a server, nil where it may be: deny,
// which may be nil, is true of it, or it is 0.0.0.0 or [::]. Those name no host, but to
// the kernel that they are given to they are itself (RFC 1122 §3.2.1.3, connect(2)): a
// rule about 127.0.0.0/8 would be passed by.
func refusal(a netip.Addr, deny func(netip.Addr) bool) error {
	switch {
	case a.IsUnspecified():
		return fmt.Errorf("%s is the address of no host: %w", a, ErrDenied)
	case deny != nil && deny(a):
		return fmt.Errorf("%s: %w", a, ErrDenied)
	}
	return nil
}

// resolve returns the addresses that t can be reached at, in the order in which
// to try them: its own or, where it has none, those of its name, the families in
// turn. It returns at least one or an error, and never one that is refused by deny
// ([refusal]), nor one that the flow is kept from ([Flow.Rejects]) that ctx is for.
// The network is "ip", "ip4" or "ip6".
func resolve(ctx context.Context, r Resolver, network string, t flow.Target, deny func(netip.Addr) bool) ([]netip.Addr, error) {
	if t.Addr.IsValid() {
		if err := refusal(t.Addr, deny); err != nil {
			return nil, err
		}
		return []netip.Addr{t.Addr}, nil
	}
	if r == nil {
		return nil, fmt.Errorf("%s: this outbound has no resolver for names", t.Name)
	}
	found, err := r.LookupNetIP(ctx, network, t.Name)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	denied, rejected := false, false
	f := FlowOf(ctx)
	for _, a := range found {
		a = a.Unmap()
		switch {
		case network == "ip4" && !a.Is4(), network == "ip6" && !a.Is6():
		case refusal(a, deny) != nil:
			denied = true
		case f.rejects(t, a):
			rejected = true
		default:
			addrs = append(addrs, a)
		}
	}
	switch {
	case len(addrs) > 0:
		return interleave(addrs), nil
	case rejected:
		return nil, fmt.Errorf("%s leads to an address that is %w", t.Name, ErrRejected)
	case denied:
		return nil, fmt.Errorf("%s: %w", t.Name, ErrDenied)
	}
	return nil, fmt.Errorf("%s: %w", t.Name, ErrNoName)
}

// interleave puts the addresses of the two families in turn, each family in its
// own order, the family of the first address first (RFC 8305 §4): if one family
// does not work, the second attempt finds out.
func interleave(addrs []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range addrs {
		if a.Is4() == addrs[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out
}
