//go:build !portable

package relay

import (
	"io"
	"syscall"
	"testing"

	"tunroute/router/pace"
)

// echoing is a Stream whose client says the same again and again and takes all.
type echoing struct {
	Stream
	says  [][]byte
	ready bool // it has something to say
	room  []byte
	got   int
	wake  func(readable, writable, stop bool)
}

func (e *echoing) Wake(f func(readable, writable, stop bool)) { e.wake = f }

func (e *echoing) Forward(write func([][]byte) (int, error)) (int, error) {
	if !e.ready {
		return 0, syscall.EAGAIN
	}
	e.ready = false
	return write(e.says)
}

func (e *echoing) Fill(n int, read func([]byte) (int, error)) (int, error) {
	n, err := read(e.room[:n])
	e.got += n
	return n, err
}

// TestLoopAllocatesNothing: bytes there and back, from the event to the end of the
// turns.
func TestLoopAllocatesNothing(t *testing.T) {
	t.Run("without limits", func(t *testing.T) { testLoopAllocations(t, new(Counters)) })
	t.Run("within limits", func(t *testing.T) {
		testLoopAllocations(t, &Counters{UpLimit: pace.New(1 << 40), DownLimit: pace.New(1 << 40)})
	})
}

func testLoopAllocations(t *testing.T, counters *Counters) {
	l, err := NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer l.epoll.Close()
	l.ready.most = 0 // turns are given here
	peer, upstream := pair(t)
	e := &echoing{says: [][]byte{make([]byte, 700), make([]byte, 300)}, room: make([]byte, budget)}
	f, err := l.Relay(e, upstream, counters, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(int(f.fd))
	w := newWorker(&l.ready)
	turns := func() {
		for f := l.ready.next(); f != nil; f = l.ready.next() {
			for w.turn(f) {
			}
		}
	}
	b := make([]byte, 1000)
	once := func() {
		e.ready = true
		e.wake(true, false, false)
		turns()
		if _, err := io.ReadFull(peer, b); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Write(b); err != nil {
			t.Fatal(err)
		}
		for was := e.got; e.got < was+len(b); { // the loopback interface has it at once, or soon
			f.wake(down)
			turns()
		}
	}
	once()
	if n := testing.AllocsPerRun(100, once); n != 0 && !raceDetector {
		t.Errorf("%v allocations for a message there and back", n)
	}
	if f.n.Up.Load() != f.n.Down.Load() || f.n.Up.Load() == 0 {
		t.Errorf("%d bytes up, %d down", f.n.Up.Load(), f.n.Down.Load())
	}
}
