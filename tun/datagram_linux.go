package tun

import (
	"errors"

	"golang.org/x/sys/unix"
)

// setOffload takes segments of TCP unsplit and, where the kernel has it (Linux
// 6.2), rows of datagrams that a program has sent as one, by UDP_SEGMENT. Who
// may read those may also write them: an older kernel refuses both.
func setOffload(fd int) (datagrams bool, err error) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return err == nil, err
	}
	return false, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp)
}

// SuperDatagrams implements [OffloadDevice].
func (s *superDevice) SuperDatagrams() bool { return s.datagrams }
