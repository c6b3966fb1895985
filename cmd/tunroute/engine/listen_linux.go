package engine

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sharePort lets several sockets of ours be bound to one address.
var sharePort = func(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	if e != nil {
		return e
	}
	return err
}
