package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vectored is a readv or writev in progress. It is kept so that the poller's
// callback, which refers to it, is allocated once, and the vectors as well.
type vectored struct {
	bufs   [][]byte
	iovecs []unix.Iovec
	n      int
	err    error
	try    func(fd uintptr) (done bool)
}

// call is one readv or writev, which must not block. It is raw: the scheduler is
// not told. It would take the processor from a call that lasts for more than
// 20 µs, as one does that carries a packet all the way to a socket's reader, and
// wake a thread to look after that: a fifth of our CPU time at 65,000 datagrams a
// second. For this long nothing else needs the processor.
func (v *vectored) call(trap, fd uintptr) {
	v.iovecs = v.iovecs[:0]
	for _, b := range v.bufs {
		if len(b) > 0 {
			iov := unix.Iovec{Base: unsafe.SliceData(b)}
			iov.SetLen(len(b))
			v.iovecs = append(v.iovecs, iov)
		}
	}
	n, _, errno := unix.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(v.iovecs))), uintptr(len(v.iovecs)))
	clear(v.iovecs)
	v.n, v.err = int(n), nil
	if errno != 0 {
		v.n, v.err = 0, errno
	}
}

// settled says whether the call need not be tried again when the file is ready.
func (v *vectored) settled() bool { return v.err != unix.EAGAIN && v.err != unix.EINTR }
