package tun

import (
	"io"
	"os"
	"sync"
	"syscall"
)

const (
	// pipeBatch is what wireguard/tun wants on Linux, so that tests in memory
	// see the batches that the real thing makes.
	pipeBatch = 128
	// pipeSlots is the room in one direction: two batches, so that one can be
	// filled while the other is emptied.
	pipeSlots = 2 * pipeBatch
)

// Pipe returns the two ends of a link in memory: what is written to one is read
// from the other. It has room for some hundred packets in each direction;
// Write blocks when there is none and never drops. A packet longer than mtu is
// refused with EMSGSIZE, an empty one with EINVAL. Close of either end ends
// both, and what was not read yet is lost.
//
// It starts no goroutine and does not allocate once every slot has held a
// packet of the largest size. Reads may also run beside reads and writes beside
// writes.
func Pipe(mtu int) (a, b Device) {
	ab, ba := newPipeQueue(), newPipeQueue()
	return &pipeEnd{name: "pipe0", mtu: mtu, in: ba, out: ab},
		&pipeEnd{name: "pipe1", mtu: mtu, in: ab, out: ba}
}

type pipeEnd struct {
	name    string
	mtu     int
	in, out *pipeQueue
}

var _ Device = (*pipeEnd)(nil)

func (p *pipeEnd) BatchSize() int { return pipeBatch }
func (p *pipeEnd) MTU() int       { return p.mtu }
func (p *pipeEnd) Name() string   { return p.name }

func (p *pipeEnd) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return p.in.read(bufs, sizes, offset)
}

func (p *pipeEnd) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		var err error
		switch size := len(b) - offset; {
		case size <= 0:
			err = syscall.EINVAL
		case size > p.mtu:
			err = syscall.EMSGSIZE
		default:
			continue
		}
		n, werr := p.out.write(bufs[:i], offset)
		if werr != nil {
			err = werr
		}
		return n, err
	}
	return p.out.write(bufs, offset)
}

func (p *pipeEnd) Close() error {
	p.in.close()
	p.out.close()
	return nil
}

// pipeQueue is one direction: a ring of packets.
type pipeQueue struct {
	mu      sync.Mutex // guards all below
	arrived sync.Cond  // n grew, or closed
	freed   sync.Cond  // n shrank, or closed
	slots   [pipeSlots][]byte
	head    int // the oldest packet
	n       int // how many there are
	closed  bool
}

func newPipeQueue() *pipeQueue {
	q := new(pipeQueue)
	q.arrived.L = &q.mu
	q.freed.L = &q.mu
	return q
}

func (q *pipeQueue) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.n == 0 && !q.closed {
		q.arrived.Wait()
	}
	if q.closed {
		return 0, os.ErrClosed
	}
	n := min(q.n, len(bufs))
	for i := range n {
		packet := q.slots[(q.head+i)%pipeSlots]
		if len(bufs[i]) < offset+len(packet) {
			return 0, io.ErrShortBuffer
		}
		sizes[i] = copy(bufs[i][offset:], packet)
	}
	q.head = (q.head + n) % pipeSlots
	q.n -= n
	q.freed.Broadcast()
	if q.n > 0 {
		q.arrived.Signal() // for the next reader: write signals only the first packet
	}
	return n, nil
}

func (q *pipeQueue) write(bufs [][]byte, offset int) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, b := range bufs {
		for q.n == pipeSlots && !q.closed {
			q.freed.Wait()
		}
		if q.closed {
			return i, os.ErrClosed
		}
		slot := &q.slots[(q.head+q.n)%pipeSlots]
		*slot = append((*slot)[:0], b[offset:]...)
		q.n++
		if q.n == 1 {
			q.arrived.Signal()
		}
	}
	return len(bufs), nil
}

func (q *pipeQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.arrived.Broadcast()
	q.freed.Broadcast()
}
