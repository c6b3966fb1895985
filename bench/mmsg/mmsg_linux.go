package mmsg

import (
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxSize is the largest payload of a UDP datagram (RFC 768, and RFC 791: 65,535
// bytes less the headers).
const MaxSize = 65507

// buffer is how much the kernel may keep for a socket: a few milliseconds at the
// highest rates that are measured, since a reader may wait that long for a
// processor.
const buffer = 8 << 20

// Listen opens a UDP socket with large buffers, as root even beyond the limits of
// the machine.
func Listen(addr netip.AddrPort) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: enlarge}
	c, err := lc.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// Dial opens a UDP socket as Listen does, and connects it.
func Dial(addr netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{Control: enlarge}
	c, err := d.Dial("udp", addr.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func enlarge(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		for option, other := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, buffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, other, buffer)
			}
		}
	})
}

// header is struct mmsghdr of the kernel.
type header struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is what both directions have.
type batch struct {
	raw      syscall.RawConn
	headers  []header
	iovecs   []unix.Iovec
	names    []unix.RawSockaddrInet6 // large enough for IPv4 as well
	controls []control
	v6       bool // the socket is one of IPv6
	// step is a system call for headers[from:to]; it sets from and err.
	step     func(fd uintptr) bool
	from, to int
	err      error
}

// control is a control message about segments: UDP_SEGMENT has 16 bits of data,
// UDP_GRO has 32.
type control struct {
	hdr  unix.Cmsghdr
	data [8]byte
}

func (b *batch) init(c *net.UDPConn, size int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	b.raw = raw
	b.headers = make([]header, size)
	b.iovecs = make([]unix.Iovec, size)
	b.names = make([]unix.RawSockaddrInet6, size)
	b.controls = make([]control, size)
	return raw.Control(func(fd uintptr) {
		domain, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		b.v6 = domain == unix.AF_INET6
	})
}

// call makes the system call for as much as is left, and says whether there was
// anything to do.
func (b *batch) call(trap, fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(&b.headers[b.from])), uintptr(b.to-b.from), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.from += int(n)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			b.err = errno
		}
		return true
	}
}

// Reader receives datagrams. It is for one goroutine.
type Reader struct {
	batch
	buffers []byte
	size    int
}

// NewReader returns a reader of up to count messages at a time, with room for
// size bytes each; what is longer is cut. A message is a datagram; with merged,
// it may be several of the same size and source, where the kernel has them
// together (UDP_GRO): size must then be MaxSize.
func NewReader(c *net.UDPConn, count, size int, merged bool) (*Reader, error) {
	r := &Reader{buffers: make([]byte, count*size), size: size}
	if err := r.init(c, count); err != nil {
		return nil, err
	}
	for i := range r.headers {
		r.iovecs[i].Base = &r.buffers[i*size]
		r.iovecs[i].SetLen(size)
		h := &r.headers[i].hdr
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		if merged {
			h.Control = (*byte)(unsafe.Pointer(&r.controls[i]))
		}
	}
	if merged {
		r.raw.Control(func(fd uintptr) {
			// A kernel without it (before 5.0) has nothing to merge.
			unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)
		})
	}
	r.step = func(fd uintptr) bool { return r.call(unix.SYS_RECVMMSG, fd) }
	return r, nil
}

// Read waits for messages and returns how many there are. They are good until
// the next call. An ICMP error that the socket has been sent is skipped.
func (r *Reader) Read() (int, error) {
	for {
		r.from, r.to, r.err = 0, len(r.headers), nil
		for i := range r.headers {
			h := &r.headers[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			if h.Control != nil {
				h.SetControllen(int(unsafe.Sizeof(control{})))
			}
		}
		if err := r.raw.Read(r.step); err != nil {
			return 0, err
		}
		if r.err == nil {
			return r.from, nil
		}
		if !passing(r.err) {
			return 0, os.NewSyscallError("recvmmsg", r.err)
		}
	}
}

// passing says whether an error of a socket is about what it has sent before, as
// ICMP told.
func passing(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

// Message returns message i as it came.
func (r *Reader) Message(i int) []byte { return r.buffers[i*r.size:][:r.headers[i].n] }

// Datagrams returns the datagrams of message i.
func (r *Reader) Datagrams(i int) iter.Seq[[]byte] {
	p := r.Message(i)
	each := max(len(p), 1)
	if h := &r.headers[i].hdr; h.Control != nil && h.Controllen >= unix.SizeofCmsghdr+4 {
		c := &r.controls[i]
		if c.hdr.Level == unix.SOL_UDP && c.hdr.Type == unix.UDP_GRO {
			each = int(binary.NativeEndian.Uint32(c.data[:]))
		}
	}
	return func(yield func([]byte) bool) {
		for rest := p; ; rest = rest[each:] {
			if len(rest) <= each {
				yield(rest)
				return
			}
			if !yield(rest[:each]) {
				return
			}
		}
	}
}

// From returns where message i comes from.
func (r *Reader) From(i int) netip.AddrPort {
	name := &r.names[i]
	if name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), ntohs(name.Port))
}

// Writer sends datagrams. It is for one goroutine.
type Writer struct {
	batch
	merge    bool
	messages int      // that there are
	keep     [][]byte // what iovecs point to
	last     message  // the last of them
}

// message is what a datagram must fit to be merged with those before.
type message struct {
	to          netip.AddrPort
	each, bytes int
	closed      bool // the last datagram was shorter than the others
}

// maxSegments is how many datagrams a message may have: UDP_MAX_SEGMENTS of the
// kernel, before 6.9.
const maxSegments = 64

// NewWriter returns a writer of up to count datagrams at a time. With merge,
// those of the same size and destination that follow each other are handed to
// the kernel together (UDP_SEGMENT), which is only cheap where they stay on the
// host.
func NewWriter(c *net.UDPConn, count int, merge bool) (*Writer, error) {
	w := &Writer{keep: make([][]byte, 0, count), merge: merge}
	if err := w.init(c, count); err != nil {
		return nil, err
	}
	w.step = func(fd uintptr) bool { return w.call(unix.SYS_SENDMMSG, fd) }
	return w, nil
}

// Add puts a datagram behind those that are to be sent, and says whether there
// is room for another. The payload must not change before Flush. An address that
// is not valid is for a connected socket.
func (w *Writer) Add(payload []byte, to netip.AddrPort) (more bool) {
	i := len(w.keep)
	w.keep = append(w.keep, payload)
	w.iovecs[i].Base = unsafe.SliceData(payload)
	w.iovecs[i].SetLen(len(payload))
	if !w.join(payload, to) {
		w.last = message{to: to, each: len(payload), bytes: len(payload)}
		h := &w.headers[w.messages].hdr
		*h = unix.Msghdr{Iov: &w.iovecs[i]}
		h.SetIovlen(1)
		if to.IsValid() {
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&w.names[w.messages])), w.name(w.messages, to)
		}
		w.messages++
	}
	return i+1 < len(w.headers)
}

// join puts the datagram that was added last into the last message, if it fits.
func (w *Writer) join(payload []byte, to netip.AddrPort) bool {
	m := &w.last
	if !w.merge || w.messages == 0 || m.closed || m.each == 0 || len(payload) == 0 || len(payload) > m.each ||
		m.to != to || m.bytes+len(payload) > MaxSize || m.bytes >= maxSegments*m.each {
		return false
	}
	m.bytes += len(payload)
	m.closed = len(payload) < m.each
	i := w.messages - 1
	h := &w.headers[i].hdr
	h.SetIovlen(int(h.Iovlen) + 1)
	c := &w.controls[i]
	c.hdr.Level, c.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.hdr.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(c.data[:], uint16(m.each))
	h.Control = (*byte)(unsafe.Pointer(c))
	h.SetControllen(unix.CmsgSpace(2))
	return true
}

// name sets name i and returns its length.
func (w *Writer) name(i int, to netip.AddrPort) uint32 {
	if w.v6 {
		w.names[i] = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: htons(to.Port()), Addr: to.Addr().As16()}
		return unix.SizeofSockaddrInet6
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&w.names[i])) = unix.RawSockaddrInet4{
		Family: unix.AF_INET, Port: htons(to.Port()), Addr: to.Addr().As4()}
	return unix.SizeofSockaddrInet4
}

// Flush sends what was added. A datagram that the kernel does not take, because
// there is nobody or no room, is lost as it would be on a wire.
func (w *Writer) Flush() error {
	w.from, w.to = 0, w.messages
	for w.from < w.to {
		w.err = nil
		if err := w.raw.Write(w.step); err != nil {
			return err
		}
		switch {
		case w.err == nil:
		case errors.Is(w.err, unix.EMSGSIZE), errors.Is(w.err, unix.EINVAL):
			w.from++ // longer than the path takes
		case passing(w.err), errors.Is(w.err, unix.EPERM):
			// It may be about an earlier one, and then this one can be sent;
			// but it cannot be told.
			w.from++
		case errors.Is(w.err, unix.ENOBUFS):
			w.from++
			time.Sleep(100 * time.Microsecond) // the queue of the interface is full
		default:
			return os.NewSyscallError("sendmmsg", w.err)
		}
	}
	clear(w.keep)
	w.keep, w.messages = w.keep[:0], 0
	return nil
}

func htons(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

func ntohs(n uint16) uint16 { return htons(n) }
