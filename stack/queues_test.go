package stack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// queueDevice is a rowDevice of several queues, of which each is one of its own;
// the packets of all go out by the first.
type queueDevice struct {
	*rowDevice
	all  []*rowDevice
	fail []chan error // ends the readers of a queue
}

func newQueueDevice(n int) *queueDevice {
	d := &queueDevice{}
	for range n {
		d.all = append(d.all, newRowDevice())
		d.fail = append(d.fail, make(chan error, 1))
	}
	d.rowDevice = d.all[0]
	return d
}

func (d *queueDevice) Queues() int                          { return len(d.all) }
func (d *queueDevice) OnQueueIdle(queue int, f func())      { d.all[queue].OnIdle(f) }
func (d *queueDevice) ReadSuper(bufs [][]byte) (int, error) { panic("one queue only") }
func (d *queueDevice) OnIdle(func())                        { panic("one queue only") }

func (d *queueDevice) ReadQueue(queue int, bufs [][]byte) (int, error) {
	n, err := d.all[queue].ReadSuper(bufs)
	if err != nil {
		select {
		case err = <-d.fail[queue]:
		default:
		}
	}
	return n, err
}

func (d *queueDevice) Close() error {
	for _, q := range d.all {
		q.Close()
	}
	return nil
}

// meetingUDP takes a datagram when as many others are being taken.
type meetingUDP struct {
	Handler
	meeting sync.WaitGroup
	flushed chan struct{}
}

func (h *meetingUDP) ServeUDP(src, dst netip.AddrPort, payload []byte) bool {
	h.meeting.Done()
	h.meeting.Wait()
	return true
}

func (h *meetingUDP) FlushUDP() { h.flushed <- struct{}{} }

// Each queue is read while the readers of the others are busy, and each reader
// has sent on what it has brought.
func TestEachQueueHasAReader(t *testing.T) {
	const queues = 3
	d := newQueueDevice(queues)
	h := &meetingUDP{flushed: make(chan struct{}, 100)}
	h.meeting.Add(queues)
	s := serve(t, d, h)
	rnd := rand.New(rand.NewPCG(9, 10))
	for _, q := range d.all {
		q.in <- append(make([]byte, superHeader), sumPacket(rnd, true, header.UDPProtocolNumber, 100)...)
	}
	for range queues {
		<-h.flushed
	}
	if st := s.Stats(); st.Datagrams != queues || st.PacketsIn != queues {
		t.Errorf("%d datagrams of %d packets, want %d of as many", st.Datagrams, st.PacketsIn, queues)
	}
}

// A read that fails, on whichever queue, is the end of all, and what Run tells.
func TestFailureOfAQueueEndsRun(t *testing.T) {
	const queues = 3
	for queue := range queues {
		d := newQueueDevice(queues)
		s, err := New(Options{Device: d, Handler: countUDP{}})
		if err != nil {
			t.Fatal(err)
		}
		gone := fmt.Errorf("queue %d is gone", queue)
		d.fail[queue] <- gone
		d.all[queue].Close()
		if err := s.Run(context.Background()); !errors.Is(err, gone) {
			t.Errorf("Run: %v, want %v", err, gone)
		}
	}
}

// A device that could have several queues and has one is read as ever.
func TestOneQueueIsReadAsEver(t *testing.T) {
	d := &soleQueue{rowDevice: newRowDevice()}
	h := &takenUDP{flushed: make(chan []string, 1)}
	serve(t, d, h)
	rnd := rand.New(rand.NewPCG(11, 12))
	d.in <- append(make([]byte, superHeader), sumPacket(rnd, true, header.UDPProtocolNumber, 100)...)
	if got := <-h.flushed; len(got) != 1 {
		t.Errorf("%d datagrams, want 1", len(got))
	}
}

// soleQueue is a QueueDevice of one queue.
type soleQueue struct{ *rowDevice }

func (*soleQueue) Queues() int                          { return 1 }
func (*soleQueue) OnQueueIdle(int, func())              { panic("a queue of several") }
func (*soleQueue) ReadQueue(int, [][]byte) (int, error) { panic("a queue of several") }
