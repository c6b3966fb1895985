package tun

import (
	"fmt"
	"os"
)

// Device is one end of a point-to-point link that carries whole IPv4 and IPv6
// packets, without any link header.
//
// One goroutine may read while another writes, and Close may be called from
// anywhere at any time. Read and Write run at packet tempo: they do not allocate.
type Device interface {
	// Read blocks until there is a packet, then reads up to len(bufs) packets
	// without waiting for more. Packet i is bufs[i][offset:offset+sizes[i]].
	// Every buffer must have room for offset plus the MTU, sizes must be as
	// long as bufs, and offset must be at least [Headroom]: what is before it
	// is scribbled on. It wants [Device.BatchSize] buffers; where there are
	// fewer, packets may be lost.
	//
	// After Close it returns an error that Is os.ErrClosed. Any error is the
	// end of the device; a packet that cannot be read is passed over.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)

	// Write sends the packets bufs[i][offset:], in order, and returns how many
	// it took: all of them, unless there is an error. It blocks while the
	// other side has no room and never drops.
	//
	// offset must be at least [Headroom]. The device does not keep the
	// buffers; but it writes before offset, joins packets within them, and
	// may leave the elements of bufs resliced.
	//
	// After Close the error Is os.ErrClosed. Any other error is about some
	// packets of this call, of which the rest may have been sent; the device
	// goes on.
	Write(bufs [][]byte, offset int) (int, error)

	// BatchSize is the number of buffers that Read wants, and of packets that
	// one Write does well with. It never changes.
	BatchSize() int

	// MTU is the size of the largest packet. It never changes.
	MTU() int

	// Name is the name of the interface.
	Name() string

	// Close ends the device. A Read that blocks returns. The interface goes
	// when the last one who holds its file lets go of it, unless it was made
	// persistent before. Close may be called again.
	Close() error
}

// SuperHeader is the length of the virtio-net header in front of each packet of an
// [OffloadDevice], in bytes (struct virtio_net_hdr in
// include/uapi/linux/virtio_net.h).
const SuperHeader = 10

// OffloadDevice is what a [Device] also is where the kernel passes TCP segments of
// up to 64 KiB unsplit and leaves checksums to whoever is last, each packet behind
// a virtio-net header that says so. Its methods are for those who understand the
// header; they run at packet tempo and allocate nothing. Read and ReadSuper must
// not be mixed.
type OffloadDevice interface {
	Device

	// ReadSuper blocks until there is a packet and reads it, header first,
	// into bufs, one after the other. It returns the length of both. What
	// has no room is lost: 64 KiB and the header always have. Only one
	// goroutine may read.
	ReadSuper(bufs [][]byte) (int, error)

	// WriteSuper sends the packet that bufs hold one after the other, header
	// first. It blocks while the other side has no room, does not keep bufs,
	// and is safe for concurrent use. Errors are as Write's.
	WriteSuper(bufs [][]byte) error

	// SuperDatagrams says that rows of UDP datagrams are passed as one both
	// ways (VIRTIO_NET_HDR_GSO_UDP_L4): of one length, the last may be
	// shorter. Where it is false none are read, and none may be written.
	SuperDatagrams() bool

	// OnIdle has f called by each ReadSuper that finds nothing to read,
	// before it blocks: whoever saves work up for several packets does it
	// then. f must not use the device's ReadSuper. It is set before the
	// first ReadSuper.
	OnIdle(f func())

	// Queues is how many queues there are: see [Config]. It never changes.
	// Where there are several, all of them have to be read, by ReadQueue.
	Queues() int

	// ReadQueue is ReadSuper of one queue, 0 to Queues()-1; ReadSuper is that
	// of the first. One goroutine may read each. The packets of a flow come
	// out of one queue, in order, and WriteSuper sees to it that it stays the
	// same; only among thousands of flows a few may move, once.
	ReadQueue(queue int, bufs [][]byte) (int, error)

	// OnQueueIdle is OnIdle for one queue.
	OnQueueIdle(queue int, f func())
}

// Headroom is the room before each packet that a Device may use for itself. The
// virtio-net header of Linux takes 10 bytes and the address family of the BSDs
// 4; 16 keeps the packet aligned.
const Headroom = 16

// Sizes of the largest packet. Below 1280 there is no IPv6 (RFC 8200 §5), and
// 65535 is what the length field of an IPv4 header can say (RFC 791 §3.1).
const (
	MinMTU     = 1280
	MaxMTU     = 65535
	DefaultMTU = 1500
)

// MaxQueues is the largest number of queues. Each wants a processor for itself,
// and all of them feed one consumer.
const MaxQueues = 16

// Config says what device to make.
type Config struct {
	// Name of the interface. Empty means that the system chooses; on Linux a
	// name such as "tun%d" has it choose the number. macOS takes "utun" and a
	// number only. [FromFD] does not use it: the device knows its name.
	Name string
	// MTU is the size of the largest packet; 0 means [DefaultMTU].
	MTU int
	// Queues is how many there are for packets from the kernel, each to be
	// read by a goroutine of its own with [OffloadDevice].ReadQueue: Read and
	// ReadSuper read the first only. 0 means 1. More are for [Open] on Linux;
	// elsewhere the error Is errors.ErrUnsupported.
	Queues int
}

func (c Config) withDefaults() (Config, error) {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return c, fmt.Errorf("mtu %d: must be %d to %d", c.MTU, MinMTU, MaxMTU)
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Queues < 1 || c.Queues > MaxQueues {
		return c, fmt.Errorf("%d queues: must be 1 to %d", c.Queues, MaxQueues)
	}
	return c, nil
}

// ofOneFile is withDefaults for what is one file, and so one queue.
func (c Config) ofOneFile() (Config, error) {
	c, err := c.withDefaults()
	if err == nil && c.Queues > 1 {
		err = fmt.Errorf("%d queues: a file is one; use Open", c.Queues)
	}
	return c, err
}

// Open makes a TUN interface and returns its device. On Linux a persistent
// interface of that name, which nobody holds, is taken; it must have been made
// for several queues if there are to be several, and else for one. The interface
// is not up yet and has no addresses.
//
// What forbids it is an [*Obstacle].
func Open(c Config) (Device, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	return open(c)
}

// FromFD returns the device of a file descriptor that somebody else has opened
// and attached to an interface: another process, another namespace. On Linux it
// must have been attached with IFF_TUN and IFF_NO_PI; IFF_VNET_HDR makes it
// faster. FromFD takes fd over, also when it returns an error.
//
// The MTU is what c says, not what the interface says: the interface may be in
// a namespace that this process cannot ask.
//
// Where the system cannot do this the error Is errors.ErrUnsupported.
func FromFD(fd int, c Config) (Device, error) {
	c, err := c.ofOneFile()
	if err != nil {
		os.NewFile(uintptr(fd), "").Close()
		return nil, err
	}
	return fromFD(fd, c)
}

// Create makes a TUN interface as [Open] does, and returns the open file that
// holds it, to be handed to another process, which makes a device of it with
// [FromFD]. The name of the file is the name of the interface.
//
// Where the system cannot do this the error Is errors.ErrUnsupported.
func Create(c Config) (*os.File, error) {
	c, err := c.ofOneFile()
	if err != nil {
		return nil, err
	}
	return create(c)
}

// Obstacle is something about the machine, or about who runs this, that stands
// in the way, and what to do about it.
type Obstacle struct {
	What   string // what is wrong, for example "/dev/net/tun does not exist"
	Remedy string // what to do about it, as a command where one does it
	Err    error  // what the kernel said; may be nil
}

// Error returns what is wrong and its remedy in one line.
func (o *Obstacle) Error() string { return o.What + ": " + o.Remedy }

func (o *Obstacle) Unwrap() error { return o.Err }
