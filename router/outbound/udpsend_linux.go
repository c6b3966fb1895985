package outbound

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpSender sends datagrams without ever waiting: the goroutine that does so may
// be the one that all packets of all clients come by. What the socket has no room
// for is lost, as on any link that is full.
//
// Datagrams that are queued go out by one sendmmsg, and those of them that follow
// each other to one address and are of one length, of which the last may be
// shorter, as one datagram that the kernel cuts (UDP_SEGMENT, Linux 4.18): it
// then finds the route, passes the queues and wakes the reader once for all.
type udpSender struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	v6   bool // the socket's family

	mu    sync.Mutex // guards what follows; held while sending, which does not wait
	batch *sendBatch // what is queued; nil: nothing
	// The largest datagram that may be cut from a larger one: there is no
	// fragmenting of these. It shrinks when the kernel says so; 0: none may.
	segment int
}

const (
	sendBytes = 64 << 10 // holds the largest datagram
	sendRuns  = 64       // messages of one sendmmsg

	// maxSegments is UDP_MAX_SEGMENTS of kernels before 6.9
	// (include/linux/udp.h).
	maxSegments = 64
	// maxRunBytes of one message that the kernel cuts: what the length of an
	// IPv4 header allows, headers included.
	maxRunBytes = 65535 - 20 - 8
)

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// sendRun is a message of a batch: one datagram, or several to be cut.
type sendRun struct {
	to         netip.AddrPort
	start, end int // in the batch's bytes
	segment    int // length of its datagrams but the last
	n          int // how many
}

// control is room for one control message with a number.
type control struct {
	unix.Cmsghdr
	data [8]byte
}

// sendBatch is datagrams on their way out. All of it is made once, so that sending
// allocates nothing.
type sendBatch struct {
	bytes []byte
	used  int
	runs  [sendRuns]sendRun
	n     int

	msgs     [sendRuns]mmsghdr
	iovecs   [sendRuns]unix.Iovec
	names    [sendRuns]unix.RawSockaddrInet6 // also holds an IPv4 one
	controls [sendRuns]control

	first, sent int // of msgs; what the call has to send, and has sent
	err         syscall.Errno
	try         func(fd uintptr) bool
}

var sendBatches = sync.Pool{New: func() any {
	b := &sendBatch{bytes: make([]byte, sendBytes)}
	for i := range b.msgs {
		h := &b.msgs[i].hdr
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&b.names[i])), &b.iovecs[i]
		h.SetIovlen(1)
	}
	// Raw: the scheduler is not told, since the call does not block. It would
	// take the processor away from a call of more than 20 µs, which this is
	// where a packet is carried all the way to another socket, and wake
	// another thread for it (a third of all CPU time at 65,000 datagrams a
	// second).
	b.try = func(fd uintptr) bool {
		n, err := uintptr(0), syscall.Errno(unix.EINTR)
		for err == unix.EINTR {
			n, _, err = unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.msgs[b.first])), uintptr(b.n-b.first),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		}
		b.sent, b.err = int(n), err
		return true
	}
	return b
}}

func newUDPSender(conn *net.UDPConn) (*udpSender, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	local, _ := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	s := &udpSender{conn: conn, raw: raw, v6: local.Is6() && !local.Is4In6()}
	err = raw.Control(func(fd uintptr) {
		if _, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT); err == nil {
			s.segment = maxDatagram
		}
	})
	return s, err
}

// send sends one datagram, behind those that are queued. Packet tempo. An error Is
// EAGAIN where there was no room.
func (s *udpSender) send(payload []byte, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushLocked()
	if err := s.queueLocked(nil, payload, to); err != nil {
		return err
	}
	return s.flushLocked()
}

// queue keeps a copy of a datagram, of two parts, until flush, or sends it at once.
// Packet tempo.
func (s *udpSender) queue(head, payload []byte, to netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queueLocked(head, payload, to)
}

func (s *udpSender) queueLocked(head, payload []byte, to netip.AddrPort) error {
	if to.Addr().Zone() != "" { // link-local: rare, and its number has to be looked up
		s.flushLocked()
		_, err := s.conn.WriteToUDPAddrPort(append(head[:len(head):len(head)], payload...), to)
		return err
	}
	if !s.v6 && !to.Addr().Unmap().Is4() {
		return syscall.EAFNOSUPPORT
	}
	size := len(head) + len(payload)
	if size > maxDatagram {
		return syscall.EMSGSIZE
	}
	b := s.batch
	if b != nil && b.used+size > len(b.bytes) {
		s.flushLocked()
		b = nil
	}
	if b == nil {
		b = sendBatches.Get().(*sendBatch)
		b.used, b.n = 0, 0
		s.batch = b
	}
	copy(b.bytes[b.used:], head)
	copy(b.bytes[b.used+len(head):], payload)
	var run *sendRun
	if b.n > 0 {
		run = &b.runs[b.n-1]
	}
	if run == nil || !run.takes(size, to, s.segment) {
		b.runs[b.n] = sendRun{to: to, start: b.used, segment: size}
		run = &b.runs[b.n]
		b.n++
	}
	b.used += size
	run.end = b.used
	run.n++
	if b.n == sendRuns {
		s.flushLocked()
	}
	return nil
}

// takes says whether one more datagram may be cut from the run.
func (r *sendRun) takes(size int, to netip.AddrPort, most int) bool {
	bytes := r.end - r.start
	return size > 0 && size <= r.segment && r.segment <= most && r.n < maxSegments &&
		bytes == r.n*r.segment && bytes+size <= maxRunBytes && r.to == to
}

// flush sends what is queued. Packet tempo. The error is that of one datagram.
func (s *udpSender) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushLocked()
}

func (s *udpSender) flushLocked() error {
	b := s.batch
	if b == nil {
		return nil
	}
	s.batch = nil
	defer sendBatches.Put(b)
	for i := range b.n {
		b.prepare(i, s.v6)
	}
	var first error
	for b.first = 0; b.first < b.n; {
		if err := s.raw.Write(b.try); err != nil {
			return err // closed
		}
		if b.err == 0 {
			b.first += b.sent
			continue
		}
		// The error is the first message's.
		run := &b.runs[b.first]
		if run.n > 1 && s.tooLong(b.err, run.segment) {
			s.separateLocked(b)
			continue
		}
		if first == nil {
			first = b.err
		}
		if b.err == unix.EAGAIN || b.err == unix.ENOBUFS {
			return first
		}
		b.first++
	}
	return first
}

// tooLong says whether err may be about cutting, and takes note of it. EINVAL and
// EMSGSIZE: a datagram is longer than the way takes in one packet, which one that
// any way takes is not (IPv6's 1280 bytes, less headers): then it is about the
// destination. EIO: the way cannot do it at all (net/ipv4/udp.c, udp_send_skb).
func (s *udpSender) tooLong(err syscall.Errno, segment int) bool {
	switch err {
	case unix.EINVAL, unix.EMSGSIZE:
		if segment > 1280-40-8 {
			s.segment = min(s.segment, segment-1)
		}
	case unix.EIO:
		s.segment = 0
	default:
		return false
	}
	return true
}

// separateLocked sends the datagrams of b's first message one by one.
func (s *udpSender) separateLocked(b *sendBatch) {
	run, rest := b.runs[b.first], b.n
	for at := run.start; at < run.end; at += run.segment {
		b.runs[b.first] = sendRun{to: run.to, start: at, end: min(at+run.segment, run.end), n: 1}
		b.prepare(b.first, s.v6)
		b.n = b.first + 1
		if s.raw.Write(b.try) != nil {
			break
		}
	}
	b.n = rest
	b.first++
}

// prepare writes the message of run i.
func (b *sendBatch) prepare(i int, v6 bool) {
	run, h := &b.runs[i], &b.msgs[i].hdr
	h.Namelen = putSockaddr(&b.names[i], run.to, v6)
	b.iovecs[i].Base = nil
	if run.end > run.start {
		b.iovecs[i].Base = &b.bytes[run.start]
	}
	b.iovecs[i].SetLen(run.end - run.start)
	h.Control = nil
	h.SetControllen(0)
	if run.n > 1 {
		c := &b.controls[i]
		c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		c.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(c.data[:], uint16(run.segment))
		h.Control = (*byte)(unsafe.Pointer(c))
		h.SetControllen(unix.CmsgSpace(2))
	}
}

// putSockaddr writes an address as a socket of IPv6, or of IPv4, has it, and
// returns its length.
func putSockaddr(name *unix.RawSockaddrInet6, a netip.AddrPort, v6 bool) uint32 {
	if v6 {
		*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16()}
		putPort(&name.Port, a.Port())
		return unix.SizeofSockaddrInet6
	}
	name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
	*name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().Unmap().As4()}
	putPort(&name4.Port, a.Port())
	return unix.SizeofSockaddrInet4
}

func putPort(p *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], port)
}
