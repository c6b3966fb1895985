package outbound

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// readMessages of one recvmmsg.
	readMessages = 16
	// readBytes of a message: the kernel joins datagrams up to the largest
	// packet (UDP_GRO), and one that does not fit is cut.
	readBytes = 64 << 10
)

// readBatch is what one recvmmsg brings. A conversation has one only as long as
// it looks at it: all that wait have none.
type readBatch struct {
	bytes    []byte // of memory, what has been used at least once
	msgs     [readMessages]mmsghdr
	iovecs   [readMessages]unix.Iovec
	names    [readMessages]unix.RawSockaddrInet6
	controls [readMessages]control

	payloads [][]byte
	from     []netip.AddrPort
}

var readBatches = sync.Pool{New: func() any {
	b := &readBatch{bytes: make([]byte, readMessages*readBytes)}
	for i := range b.msgs {
		h := &b.msgs[i].hdr
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&b.names[i])), &b.iovecs[i]
		h.SetIovlen(1)
		b.iovecs[i].Base = &b.bytes[i*readBytes]
		b.iovecs[i].SetLen(readBytes)
		h.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
	}
	return b
}}

// udpReader reads datagrams, many at a time. One goroutine uses it.
type udpReader struct {
	raw   syscall.RawConn
	batch *readBatch
	n     int
	err   syscall.Errno
	try   func(fd uintptr) bool
}

func newUDPReader(conn *net.UDPConn) (*udpReader, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &udpReader{raw: raw}
	r.try = func(fd uintptr) bool {
		b := readBatches.Get().(*readBatch)
		for i := range b.msgs {
			h := &b.msgs[i].hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(int(unsafe.Sizeof(control{})))
		}
		n, err := uintptr(0), syscall.Errno(unix.EINTR)
		for err == unix.EINTR {
			// Raw, as when sending.
			n, _, err = unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.msgs[0])), readMessages, unix.MSG_DONTWAIT, 0, 0)
		}
		if err == unix.EAGAIN {
			readBatches.Put(b)
			return false
		}
		r.batch, r.n, r.err = b, int(n), err
		return true
	}
	// Datagrams of one sender that come in a row are joined on their way in,
	// if the socket can take them apart (Linux 5.0). Without it they come one
	// by one.
	err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) })
	return r, err
}

// ReadBatch implements [BatchReader]. Packet tempo.
func (r *udpReader) ReadBatch(take func(payloads [][]byte, from []netip.AddrPort)) error {
	if err := r.raw.Read(r.try); err != nil {
		return err
	}
	b := r.batch
	r.batch = nil
	defer readBatches.Put(b)
	if r.err != 0 {
		return os.NewSyscallError("recvmmsg", r.err)
	}
	b.payloads, b.from = b.payloads[:0], b.from[:0]
	for i := range r.n {
		b.unpack(i)
	}
	take(b.payloads, b.from)
	return nil
}

// unpack appends the datagrams of message i.
func (b *readBatch) unpack(i int) {
	p := b.bytes[i*readBytes:][:b.msgs[i].n]
	from := sockaddr6(&b.names[i])
	size := len(p)
	if c := &b.controls[i]; b.msgs[i].hdr.Controllen >= unix.SizeofCmsghdr+4 && c.Level == unix.SOL_UDP && c.Type == unix.UDP_GRO {
		if n := int(binary.NativeEndian.Uint32(c.data[:])); n > 0 {
			size = n
		}
	}
	for {
		n := min(size, len(p))
		b.payloads, b.from = append(b.payloads, p[:n:n]), append(b.from, from)
		if p = p[n:]; len(p) == 0 {
			return
		}
	}
}

// sockaddr6 returns the address in name, which may hold an IPv4 one.
func sockaddr6(name *unix.RawSockaddrInet6) netip.AddrPort {
	port := func(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }
	if name.Family == unix.AF_INET {
		name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(name4.Addr), port(&name4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port(&name.Port))
}

// growUDPBuffers asks for more than net.core.rmem_max and wmem_max, which takes
// CAP_NET_ADMIN, else for what they allow.
func growUDPBuffers(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for _, o := range [...][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o[0], udpBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o[1], udpBuffer)
			}
		}
	})
}
