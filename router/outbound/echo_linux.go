package outbound

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

var _ Echoer = (*Direct)(nil)

const icmpHeader = 8

// icmpFamily is what differs between ICMP (RFC 792) and ICMPv6 (RFC 4443 §4).
type icmpFamily struct {
	domain, proto  int
	request, reply byte
}

var (
	icmp4 = icmpFamily{unix.AF_INET, unix.IPPROTO_ICMP, 8, 0}
	icmp6 = icmpFamily{unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129}
)

// Echo implements [Echoer]. It takes an ICMP datagram socket, which needs no
// privilege where net.ipv4.ping_group_range has one of our groups, else a raw
// one, which needs CAP_NET_RAW.
func (d *Direct) Echo(ctx context.Context, dst netip.Addr, data []byte) error {
	dst = dst.Unmap()
	if err := refusal(dst, d.opts.Deny); err != nil {
		return err
	}
	family := icmp4
	if dst.Is6() {
		family = icmp6
	}
	conn, raw, err := d.icmpSocket(family, dst)
	if err != nil {
		return fmt.Errorf("ICMP socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	// A datagram socket puts an identifier of its own and gets only the
	// replies to it; a raw one gets those of everybody.
	id := uint16(rand.Uint32())
	message := make([]byte, icmpHeader, icmpHeader+len(data))
	message[0] = family.request
	binary.BigEndian.PutUint16(message[4:], id)
	binary.BigEndian.PutUint16(message[6:], 1)
	message = append(message, data...)
	if dst.Is4() { // the kernel fills it in for IPv6
		binary.BigEndian.PutUint16(message[2:], internetChecksum(message))
	}
	if _, err := conn.Write(message); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	b := make([]byte, 64<<10)
	for {
		n, err := conn.Read(b)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		reply := b[:n]
		if raw && dst.Is4() && n > 0 { // with its IP header
			reply = reply[min(n, int(reply[0]&0xf)*4):]
		}
		if len(reply) < icmpHeader || reply[0] != family.reply || raw && binary.BigEndian.Uint16(reply[4:]) != id {
			continue
		}
		if bytes.Equal(reply[icmpHeader:], data) {
			return nil
		}
	}
}

// icmpSocket returns a socket connected to dst, so that only what comes from
// there is read, and ICMP errors are.
func (d *Direct) icmpSocket(family icmpFamily, dst netip.Addr) (conn net.Conn, raw bool, err error) {
	kind := unix.SOCK_DGRAM
	fd, err := unix.Socket(family.domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family.proto)
	if errors.Is(err, unix.EACCES) {
		raw, kind = true, unix.SOCK_RAW
		fd, err = unix.Socket(family.domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family.proto)
	}
	if err != nil {
		return nil, false, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "icmp")
	defer f.Close() // FileConn makes its own
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	if err := d.Control("icmp", "", rc); err != nil {
		return nil, false, err
	}
	if d.opts.Bind.IsValid() && d.opts.Bind.Is4() == dst.Is4() {
		if err := unix.Bind(fd, sockaddr(d.opts.Bind)); err != nil {
			return nil, false, os.NewSyscallError("bind", err)
		}
	}
	if err := unix.Connect(fd, sockaddr(dst)); err != nil {
		return nil, false, os.NewSyscallError("connect", err)
	}
	conn, err = net.FileConn(f)
	return conn, raw, err
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// internetChecksum is the one of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
