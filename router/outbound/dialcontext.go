package outbound

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// DialContext opens a plain socket to an address literal and a port, network
// being "tcp" or "udp", with the options of this outbound: for a DNS resolver,
// say. It is safe for concurrent use.
func (d *Direct) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	if err := refusal(ap.Addr().Unmap(), d.opts.Deny); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	dialer := d.dialer
	if d.opts.Bind.IsValid() && strings.HasPrefix(network, "udp") {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.opts.Bind, 0))
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Connect)
	defer cancel()
	return dialer.DialContext(ctx, network, addr)
}
