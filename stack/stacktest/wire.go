package stacktest

import (
	"context"
	"net"
	"sync"
)

// depth is how many packets a Wire holds in each direction. Small enough that
// tests with a slow reader see it full.
const depth = 256

// Wire is a packet device in memory. Read, Write, BatchSize, MTU and Close are
// its device side (see stack.Device), Send and Recv the other. Its methods are
// safe for concurrent use.
type Wire struct {
	mtu       int
	in, out   chan []byte // as the device side sees it
	free      chan []byte // buffers that can be used again
	closed    chan struct{}
	closeOnce sync.Once
}

// NewWire returns a Wire for packets of up to mtu bytes; 0 is 1500.
func NewWire(mtu int) *Wire {
	if mtu == 0 {
		mtu = 1500
	}
	return &Wire{
		mtu:    mtu,
		in:     make(chan []byte, depth),
		out:    make(chan []byte, depth),
		free:   make(chan []byte, 2*depth),
		closed: make(chan struct{}),
	}
}

// Read blocks until there are packets. After Close it returns net.ErrClosed.
func (w *Wire) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	var p []byte
	select {
	case <-w.closed:
		return 0, net.ErrClosed
	case p = <-w.in:
	}
	for n := 0; ; {
		sizes[n] = copy(bufs[n][offset:], p)
		w.put(p)
		if n++; n == len(bufs) {
			return n, nil
		}
		select {
		case p = <-w.in:
		default:
			return n, nil
		}
	}
}

// Write copies the packets, and blocks while the other side does not take them.
// After Close it returns net.ErrClosed.
func (w *Wire) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		if err := w.push(w.out, b[offset:]); err != nil {
			return i, err
		}
	}
	return len(bufs), nil
}

// BatchSize returns how many packets a Read can return.
func (w *Wire) BatchSize() int { return 64 }

// MTU returns the largest packet, in bytes.
func (w *Wire) MTU() int { return w.mtu }

// Close ends what blocks on either side. What was written before can still be
// received.
func (w *Wire) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	return nil
}

// Send gives a packet to the device side. It copies it, and blocks while the
// device side does not read. After Close it returns net.ErrClosed.
func (w *Wire) Send(packet []byte) error { return w.push(w.in, packet) }

// Recv returns the next packet that the device side has written; it is the
// caller's. After Close and the last packet it returns net.ErrClosed.
func (w *Wire) Recv(ctx context.Context) ([]byte, error) {
	select {
	case p := <-w.out:
		return p, nil
	default:
	}
	select {
	case p := <-w.out:
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-w.closed:
	}
	select {
	case p := <-w.out:
		return p, nil
	default:
		return nil, net.ErrClosed
	}
}

func (w *Wire) push(to chan<- []byte, packet []byte) error {
	var p []byte
	select {
	case p = <-w.free:
	default:
		p = make([]byte, 0, w.mtu)
	}
	p = append(p[:0], packet...)
	select {
	case <-w.closed:
		return net.ErrClosed
	default:
	}
	select {
	case to <- p:
		return nil
	case <-w.closed:
		return net.ErrClosed
	}
}

// put takes back a buffer that came out of in or out.
func (w *Wire) put(p []byte) {
	select {
	case w.free <- p:
	default:
	}
}
