package dnsfake

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many questions come, and answers go, by one system call:
	// what waits at 200,000 a second while a reader is away for a sixth of a
	// millisecond. Each costs a socket 5 KB.
	batchSize = 32

	// maxQuery is the longest question by UDP. One is some 300 octets at most
	// but for EDNS options; what is longer is cut, and so malformed.
	maxQuery = 4096

	// queryBuffer of a socket holds the questions of some milliseconds at the
	// highest rates, for which a reader may wait for a processor.
	queryBuffer = 4 << 20
)

// mmsghdr is struct mmsghdr of sys/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// peer is who asked and which address of ours, as the kernel wrote it and reads it.
type peer struct {
	name    unix.RawSockaddrInet6 // also holds an IPv4 one
	control struct {
		unix.Cmsghdr
		data [24]byte // in_pktinfo or in6_pktinfo, with padding
	}
}

// address makes h lead to p, of which the kernel filled in so much.
func (p *peer) address(h *unix.Msghdr, nameLen uint32, controlLen uint64) {
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(&p.name)), nameLen
	h.Control = (*byte)(unsafe.Pointer(&p.control))
	h.SetControllen(int(controlLen))
}

// addr is the address of who asked.
func (p *peer) addr() netip.Addr {
	if p.name.Family == unix.AF_INET {
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name)).Addr)
	}
	return netip.AddrFrom16(p.name.Addr)
}

// fromThere makes the address that was asked the source of the answer, by whichever
// interface the routes have for it: what came is where a packet arrived.
func (p *peer) fromThere() {
	switch p.control.Level {
	case unix.SOL_IP: // struct in_pktinfo
		clear(p.control.data[:4])
	case unix.SOL_IPV6: // struct in6_pktinfo; a link-local address needs its link
		if !netip.AddrFrom16([16]byte(p.control.data[:16])).IsLinkLocalUnicast() {
			clear(p.control.data[16:20])
		}
	}
}

// batch is what one recvmmsg brings and what becomes of it. One goroutine uses it.
type batch struct {
	raw syscall.RawConn

	peers   [batchSize]peer
	in      [batchSize]mmsghdr
	inVecs  [batchSize]unix.Iovec
	out     [batchSize]mmsghdr
	outVecs [batchSize]unix.Iovec
	queries [batchSize][maxQuery]byte
	answers [batchSize][minUDP]byte

	n    int // of in
	err  syscall.Errno
	read func(fd uintptr) bool

	sender sender
}

// sender sends messages by a socket.
type sender struct {
	raw  syscall.RawConn
	msgs []mmsghdr // that are left
	try  func(fd uintptr) bool
}

func (s *sender) init(raw syscall.RawConn) {
	s.raw = raw
	s.try = func(fd uintptr) bool {
		for len(s.msgs) > 0 {
			// Raw, as in package outbound: the call does not block.
			n, _, err := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(len(s.msgs)),
				unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
			switch err {
			case 0:
				s.msgs = s.msgs[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				s.msgs = s.msgs[1:] // lost, as any datagram may be
			}
		}
		return true
	}
}

// send sends all of msgs, and waits for room.
func (s *sender) send(msgs []mmsghdr) {
	s.msgs = msgs
	_ = s.raw.Write(s.try)
}

// serveUDP answers the datagrams of a socket, many by one system call and without an
// allocation where AnswerInto needs none. Answers go out from the address that was
// asked.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	if err := prepare(conn, raw); err != nil {
		return fmt.Errorf("read dns questions at %v: %w", conn.LocalAddr(), err)
	}
	b := newBatch(raw)
	var forward sync.WaitGroup // bounded by Options.MaxForwards
	defer forward.Wait()
	for {
		if err := raw.Read(b.read); err != nil {
			return fmt.Errorf("read dns questions at %v: %w", conn.LocalAddr(), err)
		}
		if b.err != 0 {
			return fmt.Errorf("read dns questions at %v: %w", conn.LocalAddr(), os.NewSyscallError("recvmmsg", b.err))
		}
		replies := b.out[:0]
		for i := range b.n {
			h := &b.in[i]
			query := b.queries[i][:h.n]
			answer, done := s.AnswerInto(b.answers[i][:0], query)
			if answer == nil && done {
				continue
			}
			b.peers[i].fromThere()
			if !done {
				s.later(ctx, &forward, raw, query, b.peers[i], &h.hdr)
				continue
			}
			k := len(replies)
			replies = replies[:k+1]
			b.outVecs[k].Base = unsafe.SliceData(answer)
			b.outVecs[k].SetLen(len(answer))
			b.peers[i].address(&replies[k].hdr, h.hdr.Namelen, uint64(h.hdr.Controllen))
		}
		if len(replies) > 0 {
			b.sender.send(replies)
		}
	}
}

// later answers a question that waits for a resolver.
func (s *Server) later(ctx context.Context, forward *sync.WaitGroup, raw syscall.RawConn, query []byte, p peer, h *unix.Msghdr) {
	query = append([]byte(nil), query...)
	nameLen, controlLen := h.Namelen, uint64(h.Controllen)
	forward.Go(func() {
		answer := s.Answer(WithClient(ctx, p.addr()), query, "udp")
		if answer == nil {
			return
		}
		var msg [1]mmsghdr
		vec := unix.Iovec{Base: unsafe.SliceData(answer)}
		vec.SetLen(len(answer))
		msg[0].hdr.Iov = &vec
		msg[0].hdr.SetIovlen(1)
		p.address(&msg[0].hdr, nameLen, controlLen)
		var to sender
		to.init(raw)
		to.send(msg[:])
	})
}

func newBatch(raw syscall.RawConn) *batch {
	b := &batch{raw: raw}
	for i := range batchSize {
		b.inVecs[i].Base = &b.queries[i][0]
		b.inVecs[i].SetLen(maxQuery)
		b.in[i].hdr.Iov, b.out[i].hdr.Iov = &b.inVecs[i], &b.outVecs[i]
		b.in[i].hdr.SetIovlen(1)
		b.out[i].hdr.SetIovlen(1)
	}
	b.sender.init(raw)
	b.read = func(fd uintptr) bool {
		for i := range b.in {
			p := &b.peers[i]
			p.address(&b.in[i].hdr, unix.SizeofSockaddrInet6, uint64(unsafe.Sizeof(p.control)))
			p.control.Level = 0
		}
		n, err := uintptr(0), syscall.Errno(unix.EINTR)
		for err == unix.EINTR {
			n, _, err = unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), batchSize, unix.MSG_DONTWAIT, 0, 0)
		}
		if err == unix.EAGAIN {
			return false
		}
		b.n, b.err = int(n), err
		return true
	}
	return b
}

// prepare has the kernel say to which address a datagram was sent, where that is not
// plain, and gives the socket room.
func prepare(conn *net.UDPConn, raw syscall.RawConn) error {
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	var err error
	e := raw.Control(func(fd uintptr) {
		// As much as the machine allows, or more for those who may.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queryBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, queryBuffer)
		}
		switch {
		case !local.IsUnspecified():
		case local.Is4():
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		default:
			// For IPv4 too, in IPv6 clothes.
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	if e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}
