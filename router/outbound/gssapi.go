package outbound

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tunroute/router/gssapi"
	"tunroute/router/socks"
)

// GSSAPI says how a SOCKS5 server and we authenticate each other by RFC 1961.
type GSSAPI struct {
	// Initiate returns a context with the server. It blocks until there is one or
	// ctx ends; it may have to ask a third party.
	Initiate func(ctx context.Context) (gssapi.Context, error)
	// Protection is what is wanted for all that is sent behind that, datagrams among
	// it. A server that answers less is not used; one that answers more is.
	Protection gssapi.Protection
	// NEC says that the server takes the protection unprotected, as NEC's does.
	NEC bool
}

// authenticate returns the connection as it is protected from then on. Each message of
// the negotiation may take limit.
func (g *GSSAPI) authenticate(ctx context.Context, conn Conn, limit time.Duration) (_ Conn, op string, err error) {
	within, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no ticket within %v: %w", limit, context.DeadlineExceeded))
	defer cancel()
	c, err := g.Initiate(within)
	if err != nil {
		return conn, opAuthenticate, err
	}
	conn.SetDeadline(time.Now().Add(limit))
	if _, err := conn.Write(socks.AppendMethods(nil, socks.MethodGSSAPI)); err != nil {
		return conn, opNegotiate, err
	}
	if _, err := socks.ReadMethod(conn, socks.MethodGSSAPI); err != nil {
		return conn, opNegotiate, err
	}
	p, err := gssapi.Initiate(conn, c, g.Protection, g.NEC)
	switch {
	case HungUp(err):
		// danted says nothing to a ticket that it does not take, nor to a level.
		err = errors.New("the server closed the connection instead of taking our ticket and the protection: its log says why; look at its keytab, the clocks, and what protection it allows")
	case errors.Is(err, gssapi.ErrRefused):
		err = fmt.Errorf("the server refuses us (%w): its log says why", err)
	}
	if err != nil || p == gssapi.None {
		return conn, opAuthenticate, err
	}
	return gssapi.NewConn(conn, c, p), opAuthenticate, nil
}
