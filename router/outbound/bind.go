package outbound

import (
	"context"
	"net/netip"

	"tunroute/router/flow"
)

// Binder is what a [Dialer] also implements if its far end can be connected to: by
// BIND of a SOCKS server, or by a listener of this machine.
type Binder interface {
	// Bind has an address opened at which from, and nobody else, may connect
	// once. From is the target of the flow that this belongs to, as BIND
	// wants it (RFC 1928 §4). Only its host counts, and its address where it has
	// a name as well: a server's own connections come from another port than the
	// one that it listens at. The zero Target is anybody, where the far end
	// does that.
	//
	// It blocks until the address is known, until ctx ends or until one of
	// the outbound's own time-outs does. An error that Is [ErrNoBind] says
	// that the outbound does not do it, now and the next time. It is safe
	// for concurrent use.
	Bind(ctx context.Context, from flow.Target) (Bound, error)
}

// Bound is an address that waits for its one connection.
type Bound interface {
	// Addr is where to connect, as the far end sees it. It does not change.
	Addr() netip.AddrPort

	// Accept blocks until the connection has come, and returns it and who
	// it is from: an unspecified address where the far end did not say. It
	// ends with ctx and with Close, has no time-out of its own, and is called
	// once. A connection that came before is not lost. Whoever has the Conn
	// closes it; the Bound is over.
	Accept(ctx context.Context) (Conn, netip.AddrPort, error)

	// Close gives the address up, unless Accept has returned its
	// connection. It may be called more than once and from anywhere.
	Close() error
}
