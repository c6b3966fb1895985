package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"tunroute/router/flow"
)

var _ Binder = (*Direct)(nil)

// Bind listens at the address from which our own connections to from would come, so
// that from can connect to it, and at no other. Of a name all addresses may. For
// anybody it listens at Bind, or at all addresses.
func (d *Direct) Bind(ctx context.Context, from flow.Target) (Bound, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opts.Connect)
	defer cancel()
	b := &directBound{}
	at := d.opts.Bind
	if from.Name != "" || from.Addr.IsValid() {
		addrs, err := d.resolve(ctx, from)
		if err != nil {
			return nil, err
		}
		b.from = addrs
		if at, err = d.facing(ctx, addrs); err != nil {
			return nil, err
		}
	}
	local := ":0"
	if at.IsValid() {
		local = netip.AddrPortFrom(at, 0).String()
	}
	var err error
	if b.listener, err = d.listen(ctx, local); err != nil {
		return nil, err
	}
	return b, nil
}

// Listen listens at an address of this machine with the interface and the mark of our
// own connections. Its connections are *net.TCPConns.
func (d *Direct) Listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	return d.listen(ctx, at.String())
}

func (d *Direct) listen(ctx context.Context, at string) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: d.Control, KeepAliveConfig: keepAlive}
	// Multipath TCP, for which Go would listen, cannot be spliced.
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// facing returns the address that this machine shows to the first of addrs to which it
// has a way.
func (d *Direct) facing(ctx context.Context, addrs []netip.Addr) (netip.Addr, error) {
	var told error
	for _, a := range addrs {
		local, err := d.routed(ctx, a)
		if err == nil {
			return local, nil
		}
		told = moreTelling(told, err)
	}
	return netip.Addr{}, fmt.Errorf("no way to %s: %w", addrs[0], told)
}

// directBound is a listener for one connection.
type directBound struct {
	listener *net.TCPListener
	from     []netip.Addr // nil: anybody
}

// Addr implements [Bound].
func (b *directBound) Addr() netip.AddrPort {
	a := b.listener.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Accept implements [Bound]. Whoever else connects is sent a RST, and counts for
// nothing.
func (b *directBound) Accept(ctx context.Context) (Conn, netip.AddrPort, error) {
	stop := context.AfterFunc(ctx, func() { b.listener.Close() })
	defer b.listener.Close()
	for {
		conn, err := b.listener.AcceptTCP()
		switch {
		case errors.Is(err, syscall.ECONNABORTED):
			continue
		case err != nil:
			if !stop() {
				err = context.Cause(ctx)
			}
			return nil, netip.AddrPort{}, err
		}
		peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
		if b.from != nil && !slices.Contains(b.from, peer.Addr().WithZone("")) {
			conn.SetLinger(0)
			conn.Close()
			continue
		}
		if !stop() {
			conn.Close()
			return nil, netip.AddrPort{}, context.Cause(ctx)
		}
		return conn, peer, nil
	}
}

// Close implements [Bound].
func (b *directBound) Close() error {
	b.listener.Close()
	return nil
}
