package engine

import (
	"context"
	"crypto/tls"
	"fmt"

	"tunroute/cmd/tunroute/config"
	"tunroute/router/outbound"
)

// Way returns a function that connects to a server of cfg as its flows do: through the
// chain before it, and with the TLS handshake. What is then spoken over the connection
// is the caller's. The function blocks until it is done or until ctx ends, and is safe
// for concurrent use.
func Way(cfg *config.Config, name string) (func(ctx context.Context) (outbound.Conn, error), error) {
	u := cfg.Upstream(name)
	if u == nil || u.IsGroup() || u.Scheme == config.Direct {
		return nil, fmt.Errorf("%s is no server", name)
	}
	b, err := newBuilder(cfg, 0, nil)
	if err != nil {
		return nil, err
	}
	if _, err := b.snapshot(); err != nil { // a resolver may be behind one of its outbounds
		return nil, err
	}
	via, err := b.way(u)
	if err != nil {
		return nil, err
	}
	secure := clientTLS(u)
	if secure == nil {
		return func(ctx context.Context) (outbound.Conn, error) { return via.DialTCP(ctx, u.Server) }, nil
	}
	if secure.ServerName == "" {
		secure.ServerName = u.Server.Host()
	}
	return func(ctx context.Context) (outbound.Conn, error) {
		conn, err := via.DialTCP(ctx, u.Server)
		if err != nil {
			return nil, err
		}
		c := tls.Client(conn, secure)
		if err := c.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return c, nil
	}, nil
}
