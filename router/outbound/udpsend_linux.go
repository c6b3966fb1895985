package outbound

import (
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// udpSender sends datagrams without ever waiting: the goroutine that does so may
// be the one that all packets of all clients come by. What the socket has no room
// for is lost, as on any link that is full.
type udpSender struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	v6   bool // the socket's family
	ops  sync.Pool
}

// udpSend is a sendto in progress, kept so that it allocates nothing.
type udpSend struct {
	payload []byte
	sa4     unix.SockaddrInet4
	sa6     unix.SockaddrInet6
	to      unix.Sockaddr
	err     error
	try     func(fd uintptr) bool
}

func newUDPSender(conn *net.UDPConn) (*udpSender, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	local, _ := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	s := &udpSender{conn: conn, raw: raw, v6: local.Is6() && !local.Is4In6()}
	s.ops.New = func() any {
		op := new(udpSend)
		op.try = func(fd uintptr) bool {
			op.err = unix.Sendto(int(fd), op.payload, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, op.to)
			return op.err != unix.EINTR
		}
		return op
	}
	return s, nil
}

// send runs at packet tempo. An error Is EAGAIN where there was no room.
func (s *udpSender) send(payload []byte, to netip.AddrPort) error {
	if to.Addr().Zone() != "" { // link-local: rare, and its number has to be looked up
		_, err := s.conn.WriteToUDPAddrPort(payload, to)
		return err
	}
	op := s.ops.Get().(*udpSend)
	defer s.ops.Put(op)
	if s.v6 {
		op.sa6 = unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		op.to = &op.sa6
	} else {
		if !to.Addr().Unmap().Is4() {
			return syscall.EAFNOSUPPORT
		}
		op.sa4 = unix.SockaddrInet4{Addr: to.Addr().Unmap().As4(), Port: int(to.Port())}
		op.to = &op.sa4
	}
	op.payload = payload
	err := s.raw.Write(op.try)
	op.payload = nil
	if err == nil {
		err = op.err
	}
	return err
}
