//go:build !linux

package outbound

import (
	"net"
	"net/netip"
)

// udpSender sends datagrams one by one; here it may wait for room.
type udpSender struct{ conn *net.UDPConn }

func newUDPSender(conn *net.UDPConn) (*udpSender, error) { return &udpSender{conn}, nil }

func (s *udpSender) send(payload []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(payload, to)
	return err
}

func (s *udpSender) queue(head, payload []byte, to netip.AddrPort) error {
	if len(head) > 0 {
		payload = append(head[:len(head):len(head)], payload...)
	}
	return s.send(payload, to)
}

func (s *udpSender) flush() error { return nil }

// growUDPBuffers asks for as much as the system allows.
func growUDPBuffers(conn *net.UDPConn) {
	_ = conn.SetReadBuffer(udpBuffer)
	_ = conn.SetWriteBuffer(udpBuffer)
}

// udpReader reads datagrams one by one.
type udpReader = oneByOne

func newUDPReader(conn *net.UDPConn) (*udpReader, error) {
	return &oneByOne{read: func(b []byte) (int, netip.AddrPort, error) {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}}, nil
}
