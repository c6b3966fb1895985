package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An interface of several queues (IFF_MULTI_QUEUE) has a file for each. Which one
// a packet comes out of is the kernel's choice, in drivers/net/tun.c: that on
// which it has last seen a packet of the same flow written (tun_flow_update), and
// where it has seen none, within three seconds (TUN_FLOW_EXPIRE) or because it
// remembers no more than 4,096 flows (MAX_TAP_FLOWS), one by the flow's hash
// (tun_automq_select_queue), of which the key is the kernel's secret.
//
// So a packet is written where the packets of its flow have come in last: then
// what the kernel remembers is what the hash says, and a flow never moves. With a
// choice of our own, a hash of the flow say, it would move at our first packet and
// whenever the kernel has forgotten it, and two readers would then have packets of
// one flow at the same time. The way in needs no such care: whatever its queue, a
// packet is with the kernel's IP by the time that its write returns
// (tun_rx_batched).

// queue is one file of an interface: one goroutine reads it, any may write it.
type queue struct {
	file *os.File
	conn syscall.RawConn
	read vectored // its reader's
	idle func()   // of OnQueueIdle; may be nil
}

func newQueue(file *os.File) (*queue, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	q := &queue{file: file, conn: conn}
	q.read.try = func(fd uintptr) bool {
		q.read.call(unix.SYS_READV, fd)
		if q.read.err == unix.EAGAIN && q.idle != nil {
			q.idle()
		}
		for q.read.err == unix.EAGAIN && othersRan() {
			q.read.call(unix.SYS_READV, fd)
		}
		return q.read.settled()
	}
	return q, nil
}

// attachQueues makes an interface of several queues, or takes a persistent one
// that nobody holds, and returns their files.
func attachQueues(c Config) (fds []int, name string, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	// The kernel lets anybody in, who may, while there is room for another
	// queue: a second daemon would get a part of the first one's flows.
	fd, name, err := attach(c.Name, unix.IFF_MULTI_QUEUE|unix.IFF_TUN_EXCL)
	if errors.Is(err, unix.EBUSY) { // there is an interface of that name
		var held int
		if held, err = attached(c.Name); err != nil {
			return nil, "", err
		}
		if held > 0 {
			return nil, "", attachError(c.Name, true, true, unix.EBUSY)
		}
		fd, name, err = attach(c.Name, unix.IFF_MULTI_QUEUE)
	}
	for err == nil {
		fds = append(fds, fd)
		if len(fds) == c.Queues {
			break
		}
		fd, _, err = attach(name, unix.IFF_MULTI_QUEUE)
	}
	if err != nil {
		return fds, "", err
	}
	held, err := attached(name)
	if err == nil && held > c.Queues { // somebody came at the same moment
		err = attachError(name, true, true, unix.EBUSY)
	}
	return fds, name, err
}

// attached returns how many files hold queues of an interface; 0 where that is not
// of several queues, or where the kernel does not tell (before Linux 4.17).
func attached(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("queues of %s: %w", name, err)
	}
	t, ok := l.(*netlink.Tuntap)
	if !ok {
		return 0, nil
	}
	return t.Queues + t.DisabledQueues, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// flowSlots is a power of two. The kernel remembers 4,096 flows; of as many, one
// in thirty shares a slot with one of another queue. It then moves to that one's
// queue, once: no more than a packet is read too early.
const flowSlots = 1 << 16

// flowQueues remembers the queue on which packets of each flow have come in last,
// by a hash of the flow; of one that it does not know, it says the first. 256 KiB,
// which nobody can make larger. Its methods run at packet tempo and may be called
// concurrently.
type flowQueues [flowSlots]atomic.Uint32

func (f *flowQueues) came(slot uint32, queue int) {
	if f[slot].Load() != uint32(queue) { // else the line stays with all processors
		f[slot].Store(uint32(queue))
	}
}

func (f *flowQueues) of(slot uint32) int { return int(f[slot].Load()) }

// flowHeaders is as much of a packet as tells its flow: an IPv4 header with
// options, and two ports.
const flowHeaders = 60 + 4

// packetHead returns the first bytes of the packet of n bytes that bufs hold
// behind its virtio-net header, in room where they are not in one piece.
func packetHead(bufs [][]byte, n int, room *[flowHeaders]byte) []byte {
	skip, got, want := SuperHeader, 0, min(max(n, 0), flowHeaders)
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b, skip = b[skip:], 0
		if got == 0 && len(b) >= want {
			return b[:want]
		}
		if got += copy(room[got:want], b); got == want {
			break
		}
	}
	return room[:got]
}

// flowSlot returns the slot of the flow of a packet, the same for both directions.
// A flow is what it is to the kernel (__skb_get_hash_symmetric in
// net/core/flow_dissector.c): of fragments it does not look at the ports.
func flowSlot(p []byte) uint32 {
	var src, dst uint64
	var proto byte
	ports := 0 // where they are
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		src, dst = uint64(binary.BigEndian.Uint32(p[12:])), uint64(binary.BigEndian.Uint32(p[16:]))
		proto = p[9]
		if binary.BigEndian.Uint16(p[6:])&0x3fff == 0 {
			ports = int(p[0]&15) * 4
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		src = mix(binary.BigEndian.Uint64(p[8:])) + binary.BigEndian.Uint64(p[16:])
		dst = mix(binary.BigEndian.Uint64(p[24:])) + binary.BigEndian.Uint64(p[32:])
		proto, ports = p[6], 40
	default:
		return 0
	}
	if (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && ports >= 20 && len(p) >= ports+4 {
		src += uint64(binary.BigEndian.Uint16(p[ports:])) << 40
		dst += uint64(binary.BigEndian.Uint16(p[ports+2:])) << 40
	}
	return uint32(mix(mix(src)+mix(dst)+uint64(proto)) % flowSlots)
}

// mix is the finalizer of MurmurHash3: every bit depends on every bit.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
