package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// superDevice reads and writes super-segments at the file that wireguard/tun
// holds, past its splitting and joining.
type superDevice struct {
	*device
	conn   syscall.RawConn
	read   vectored // ReadSuper's own
	writes sync.Pool

	datagrams bool   // the kernel passes rows of datagrams as one
	idle      func() // of OnIdle; may be nil
}

var _ OffloadDevice = (*superDevice)(nil)

// newSuper returns the device with super-segments, where fd has virtio-net
// headers.
func newSuper(d *device, fd int) (Device, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return nil, fmt.Errorf("flags of %s: %w", d.name, err)
	}
	if ifr.Uint16()&unix.IFF_VNET_HDR == 0 {
		return d, nil
	}
	datagrams, err := setOffload(fd)
	if err != nil {
		return nil, fmt.Errorf("offload of %s: %w", d.name, err)
	}
	conn, err := d.wg.(*wgtun.NativeTun).File().SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &superDevice{device: d, conn: conn, datagrams: datagrams}
	s.read.try = func(fd uintptr) bool {
		s.read.call(unix.SYS_READV, fd)
		if s.read.err == unix.EAGAIN && s.idle != nil {
			s.idle()
		}
		for s.read.err == unix.EAGAIN && othersRan() {
			s.read.call(unix.SYS_READV, fd)
		}
		return s.read.settled()
	}
	s.writes.New = func() any {
		w := new(vectored)
		w.try = func(fd uintptr) bool {
			w.call(unix.SYS_WRITEV, fd)
			return w.settled()
		}
		return w
	}
	return s, nil
}

// othersRan lets other goroutines run and says whether they took their time. The
// runtime looks at its poller when it has nothing else to run, and else every 10 ms:
// who wants to hear of a packet while there is work looks for itself.
func othersRan() bool {
	const long = 20 * time.Microsecond
	start := time.Now()
	runtime.Gosched()
	return time.Since(start) > long
}

// ReadSuper implements [OffloadDevice].
func (s *superDevice) ReadSuper(bufs [][]byte) (int, error) {
	s.read.bufs = bufs
	if err := s.conn.Read(s.read.try); err != nil {
		return 0, s.failure("read", gone(err))
	}
	if s.read.err != nil {
		return 0, s.failure("read", gone(s.read.err))
	}
	return s.read.n, nil
}

// WriteSuper implements [OffloadDevice].
func (s *superDevice) WriteSuper(bufs [][]byte) error {
	w := s.writes.Get().(*vectored)
	w.bufs = bufs
	err := s.conn.Write(w.try)
	werr := w.err
	w.bufs = nil
	s.writes.Put(w)
	switch {
	case err != nil:
		return s.failure("write", gone(err))
	case werr != nil:
		return s.failure("write", gone(werr))
	}
	return nil
}

// gone makes an os.ErrClosed of the two ways in which a file ends: the poller's
// own error for a closed file, which it does not export, and the kernel's for a
// file whose interface was removed.
func gone(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno == unix.EBADFD {
		return fmt.Errorf("%w (%v)", os.ErrClosed, err)
	}
	return err
}
