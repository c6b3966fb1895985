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
// holds, past its splitting and joining, and at the files of more queues.
type superDevice struct {
	*device
	queues []*queue    // the first is of wireguard/tun's file
	flows  *flowQueues // nil where there is one queue
	writes sync.Pool

	datagrams bool // the kernel passes rows of datagrams as one
}

var _ OffloadDevice = (*superDevice)(nil)

// newSuper returns the device with super-segments, where fd has virtio-net
// headers; more are the files of further queues.
func newSuper(d *device, fd int, more []*os.File) (Device, error) {
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
	datagrams, err := setOffload(fd) // of the interface, whichever the queue
	if err != nil {
		return nil, fmt.Errorf("offload of %s: %w", d.name, err)
	}
	s := &superDevice{device: d, datagrams: datagrams}
	if len(more) > 0 {
		s.flows = new(flowQueues)
	}
	for _, file := range append([]*os.File{d.wg.(*wgtun.NativeTun).File()}, more...) {
		q, err := newQueue(file)
		if err != nil {
			return nil, err
		}
		s.queues = append(s.queues, q)
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

// Queues implements [OffloadDevice].
func (s *superDevice) Queues() int { return len(s.queues) }

// ReadSuper implements [OffloadDevice].
func (s *superDevice) ReadSuper(bufs [][]byte) (int, error) { return s.ReadQueue(0, bufs) }

// ReadQueue implements [OffloadDevice].
func (s *superDevice) ReadQueue(queue int, bufs [][]byte) (int, error) {
	q := s.queues[queue]
	q.read.bufs = bufs
	if err := q.conn.Read(q.read.try); err != nil {
		return 0, s.failure("read", gone(err))
	}
	if q.read.err != nil {
		return 0, s.failure("read", gone(q.read.err))
	}
	n := q.read.n
	if s.flows != nil {
		var room [flowHeaders]byte
		s.flows.came(flowSlot(packetHead(bufs, n-SuperHeader, &room)), queue)
	}
	return n, nil
}

// WriteSuper implements [OffloadDevice].
func (s *superDevice) WriteSuper(bufs [][]byte) error {
	q := s.queues[0]
	if s.flows != nil {
		var room [flowHeaders]byte
		q = s.queues[s.flows.of(flowSlot(packetHead(bufs, flowHeaders, &room)))]
	}
	w := s.writes.Get().(*vectored)
	w.bufs = bufs
	err := q.conn.Write(w.try)
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

// OnIdle implements [OffloadDevice].
func (s *superDevice) OnIdle(f func()) { s.OnQueueIdle(0, f) }

// OnQueueIdle implements [OffloadDevice].
func (s *superDevice) OnQueueIdle(queue int, f func()) { s.queues[queue].idle = f }

// Close implements [Device].
func (s *superDevice) Close() error {
	s.closed.Store(true) // before a reader of another queue can ask
	for _, q := range s.queues[1:] {
		q.file.Close()
	}
	return s.device.Close()
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
