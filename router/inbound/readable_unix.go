//go:build unix

package inbound

import (
	"net"
	"syscall"
)

// await blocks until there is a datagram, or until the socket is closed: an association
// that is idle has no buffer.
func await(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
}
