package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

var _ Binder = (*Socks)(nil)

// Bind asks the server for BIND (RFC 1928 §4, SOCKS4's as well). In a chain it is the
// last server that is connected to. The server decides whom it lets in: danted only the
// address that it was given, others anybody.
//
// It is an [ErrNoBind] if the server answers "command not supported" or hangs up.
func (s *Socks) Bind(ctx context.Context, from flow.Target) (Bound, error) {
	to := []socks.Addr{{IP: netip.IPv4Unspecified()}}
	if from.Name != "" || from.Addr.IsValid() {
		var err error
		if to, err = s.addresses(ctx, from); err != nil {
			return nil, err
		}
	}
	request, err := s.encode(ctx, socks.Bind, to[0])
	if err != nil {
		return nil, s.hopError(opRequest, err)
	}
	conn, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	server := s.serverSeen(conn)
	conn, bound, err := s.exchange(ctx, conn, request)
	if err != nil {
		var hop *HopError
		if errors.As(err, &hop) && hop.Op == opRequest && (errors.Is(err, socks.ReplyCommand) || HungUp(err)) {
			hop.Err = fmt.Errorf("%w: %w", ErrNoBind, hop.Err)
		}
		return nil, err
	}
	at, err := bindAddr(bound, server, to[0].IP)
	if err != nil {
		conn.Close()
		return nil, s.hopError(opRequest, err)
	}
	return &socksBound{s: s, conn: conn, at: at}, nil
}

// bindAddr returns where a server can be connected to that says bound, from an address
// that may not be known.
//
// An unspecified address means "here, where you talk to me". A private one of a server
// that we reach at a public one is what a server says that does not know of the NAT
// in front of it; only to somebody within is it the right one.
func bindAddr(bound socks.Addr, server flow.Target, from netip.Addr) (netip.AddrPort, error) {
	if bound.Port == 0 {
		return netip.AddrPort{}, fmt.Errorf("%w: BIND at port 0", socks.ErrProtocol)
	}
	own := netip.AddrPortFrom(server.Addr, bound.Port)
	ip := bound.IP
	switch {
	case bound.Name != "" || !ip.IsValid() || ip.IsUnspecified():
		if !own.IsValid() {
			return netip.AddrPort{}, fmt.Errorf("%w: it listens at %s, and its own address is not known here", socks.ErrProtocol, bound)
		}
		return own, nil
	case own.IsValid() && ip.Is4() == server.Addr.Is4() && local(ip) && !local(server.Addr) && !local(from):
		return own, nil
	}
	return netip.AddrPortFrom(ip, bound.Port), nil
}

// shared are the addresses of carriers' NATs (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// local says whether an address means something to those near it only.
func local(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || shared.Contains(a)
}

// socksBound is a connection to a server that has answered a BIND once.
type socksBound struct {
	s    *Socks
	conn Conn
	at   netip.AddrPort

	accepting atomic.Bool // Accept has been called
	over      atomic.Bool // conn is Accept's, or closed
}

// Addr implements [Bound].
func (b *socksBound) Addr() netip.AddrPort { return b.at }

// Accept implements [Bound]: it reads the second reply. danted waits for as long as its
// timeout.io says, for ever as it comes; the RFC's own server gave up after two
// minutes.
func (b *socksBound) Accept(ctx context.Context) (Conn, netip.AddrPort, error) {
	if b.accepting.Swap(true) || b.over.Load() {
		return nil, netip.AddrPort{}, net.ErrClosed
	}
	var peer socks.Addr
	err := b.s.speak(ctx, b.conn, func() (op string, err error) {
		peer, err = b.s.readReply(b.conn)
		if err != nil && b.over.Load() {
			err = net.ErrClosed
		}
		return opRequest, noAnswer(err, 0)
	})
	if err == nil && b.over.Swap(true) {
		err = net.ErrClosed
	}
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if peer.Name != "" {
		peer.IP = netip.IPv4Unspecified()
	}
	return b.conn, netip.AddrPortFrom(peer.IP, peer.Port), nil
}

// Close implements [Bound].
func (b *socksBound) Close() error {
	if !b.over.Swap(true) {
		b.conn.Close()
	}
	return nil
}
