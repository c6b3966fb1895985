//go:build !linux

package outbound

import (
	"net"
	"net/netip"
)

// udpSender sends datagrams; here it may wait for room.
type udpSender struct{ conn *net.UDPConn }

func newUDPSender(conn *net.UDPConn) (*udpSender, error) { return &udpSender{conn}, nil }

func (s *udpSender) send(payload []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(payload, to)
	return err
}
