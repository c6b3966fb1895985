package sink

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxWaiting is how many bytes of messages wait at the most: some 10,000 records of
// flows, what a busy gateway ends in a second or two.
const maxWaiting = 4 << 20

const (
	writeTimeout = time.Second            // then it is tried again
	firstPause   = 100 * time.Millisecond // before a receiver that has gone is looked for again
	longestPause = 5 * time.Second
	lastWords    = time.Second // for what waits when Run is to end
)

// Sender is the part of a sink that has its messages sent. It is safe for concurrent
// use.
type Sender struct {
	name     string // of the receiver, for errors
	dial     func(context.Context) (net.Conn, error)
	note     func(lost uint64) []byte // the message that so many were lost
	complain func(error)

	ready chan struct{} // holds one when something waits

	mu      sync.Mutex // guards what follows
	waiting [][]byte
	size    int    // of waiting
	lost    uint64 // not told yet
	total   uint64 // lost, in all
}

func newSender(name string, dial func(context.Context) (net.Conn, error), complain func(error)) *Sender {
	return &Sender{name: name, dial: dial, complain: rarely(complain), ready: make(chan struct{}, 1)}
}

// put queues a message, which becomes the Sender's. It does not block.
func (s *Sender) put(message []byte) {
	s.mu.Lock()
	full := s.size+len(message) > maxWaiting
	if full {
		s.lost++
		s.total++
	} else {
		s.waiting = append(s.waiting, message)
		s.size += len(message)
	}
	s.mu.Unlock()
	if full {
		s.complain(errors.New(s.name + ": messages are lost: it takes them too slowly, or not at all"))
		return
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Lost returns how many messages were lost.
func (s *Sender) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// next returns the message that has waited for longest, which goes on to count as
// waiting until done; nil where there is none. What was lost is told first.
func (s *Sender) next() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost > 0 && s.size < maxWaiting/2 {
		m := s.note(s.lost)
		s.waiting = append([][]byte{m}, s.waiting...)
		s.size += len(m)
		s.lost = 0
	}
	if len(s.waiting) == 0 {
		return nil
	}
	return s.waiting[0]
}

// done takes out the first message, which was sent or given up.
func (s *Sender) done(sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size -= len(s.waiting[0])
	s.waiting[0] = nil
	if s.waiting = s.waiting[1:]; len(s.waiting) == 0 {
		s.waiting = nil // a burst's worth of room is not kept
	}
	if !sent {
		s.lost++
		s.total++
	}
}

// Run sends what was logged until ctx ends, and for a little longer what waits then.
func (s *Sender) Run(ctx context.Context) {
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(lastWords):
			cancel()
		case <-end.Done():
		}
	})
	defer stop()
	w := wire{s: s}
	defer w.close()
	for end.Err() == nil {
		if m := s.next(); m != nil {
			sent, again := w.send(end, m)
			if !again {
				s.done(sent)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
		}
	}
}

// wire is a Sender's connection.
type wire struct {
	s     *Sender
	conn  net.Conn // nil: none
	pause time.Duration
}

func (w *wire) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

// send sends a message. again says that it may be tried again: it has waited already
// as long as it should before that.
func (w *wire) send(ctx context.Context, message []byte) (sent, again bool) {
	if w.conn == nil {
		conn, err := w.s.dial(ctx)
		if err != nil {
			w.wait(ctx, err)
			return false, true
		}
		w.conn = conn
	}
	_ = w.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := w.conn.Write(message)
	switch {
	case err == nil:
		w.pause = 0
		return true, false
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, true
	case errors.Is(err, syscall.EMSGSIZE):
		return false, false
	}
	w.close()
	w.wait(ctx, err)
	return false, true
}

// wait waits before the receiver is looked for again.
func (w *wire) wait(ctx context.Context, err error) {
	w.s.complain(errors.New(w.s.name + ": " + err.Error() + "; messages wait, and are lost if they become too many"))
	w.pause = min(max(2*w.pause, firstPause), longestPause)
	select {
	case <-time.After(w.pause):
	case <-ctx.Done():
	}
}
