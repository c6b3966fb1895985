//go:build !linux

package dnsfake

import (
	"context"
	"net"
)

// serveUDP answers the datagrams of a socket, one by one.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	return s.serveOneByOne(ctx, conn)
}
