package resolve

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

const (
	// How long a connection is kept that nobody uses. Servers close theirs after
	// some seconds (RFC 7766 §6.2.3), and one that was closed costs a write.
	streamIdle = 15 * time.Second

	// Questions on one connection at once; beyond them one fails.
	maxPipeline = 256

	// Connections of their own that questions have at once, where they do by
	// exception and where all do; the next one waits.
	maxAlone    = 8
	maxAllAlone = 64
)

// streams is the connection to a server that speaks TCP or TLS: there is one at a
// time, on which any number of questions wait for their answers (RFC 7766 §6.2.1.1).
//
// A question that has been disappointed by it, for the connection ended or nothing
// came, gets one of its own: the next question may be the one at which the server
// fails, and would take others with it.
type streams struct {
	open    func(ctx context.Context) (net.Conn, error)
	patient time.Duration // for one connection to open, and for one write
	alone   chan struct{} // holds a token for each that a question has for itself

	mu      sync.Mutex // guards what follows
	current *stream    // takes questions; nil for none
	opening *opening   // nil where nobody opens one
	closed  bool
	running sync.WaitGroup
	stop    context.CancelFunc // of what opens
	ctx     context.Context
}

// opening is a connection that is being opened, for all who wait for it.
type opening struct {
	done   chan struct{} // closed when what follows is there
	stream *stream
	err    error
}

func newStreams(patient time.Duration, alone int, open func(ctx context.Context) (net.Conn, error)) *streams {
	s := &streams{open: open, patient: patient, alone: make(chan struct{}, alone)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// ErrClosed says that a [Resolver] or [Cache] has been closed.
var ErrClosed = fmt.Errorf("the resolver is closed: %w", net.ErrClosed)

// close ends the connection, and returns when all has ended that was started.
func (s *streams) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.running.Wait()
}

// exchange asks, on a connection of its own if the question is to be alone. What message
// makes is what is sent.
func (s *streams) exchange(ctx context.Context, alone bool, question []byte, message func(id uint16) []byte) ([]byte, error) {
	if !alone {
		c, err := s.get(ctx)
		if err != nil {
			return nil, &dialError{err}
		}
		answer, err := c.exchange(ctx, question, message)
		if err == nil || ctx.Err() != nil || errors.Is(err, errOtherQuestion) && c.blames(question) {
			return answer, err
		}
	}
	select {
	case s.alone <- struct{}{}:
		defer func() { <-s.alone }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	o := &opening{done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	s.running.Go(func() { s.openOne(o, ctx) })
	s.mu.Unlock()
	<-o.done
	if o.err != nil {
		return nil, &dialError{o.err}
	}
	defer o.stream.end(errIdle)
	return o.stream.exchange(ctx, question, message)
}

// get returns the connection.
func (s *streams) get(ctx context.Context) (*stream, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if c := s.current; c != nil && c.ended() == nil {
		s.mu.Unlock()
		return c, nil
	}
	s.current = nil
	o := s.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		s.opening = o
		// Whoever still waits for it: the next question does.
		s.running.Go(func() { s.openOne(o, s.ctx) })
	}
	s.mu.Unlock()
	select {
	case <-o.done:
		return o.stream, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// openOne opens a connection.
func (s *streams) openOne(o *opening, ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.patient, errTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	conn, err := s.open(ctx)
	switch {
	case err != nil && s.ctx.Err() != nil:
		err = ErrClosed
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(o.done)
	shared := s.opening == o
	if shared {
		s.opening = nil
	}
	switch {
	case err != nil:
		o.err = err
		return
	case s.closed:
		conn.Close()
		o.err = ErrClosed
		return
	}
	c := &stream{conn: conn, patient: s.patient, waiting: make(map[uint16]*waiter), writing: make(chan struct{}, 1)}
	c.mu.Lock()
	c.idle = time.AfterFunc(streamIdle, c.endIdle)
	c.closed = context.AfterFunc(s.ctx, func() { c.end(ErrClosed) })
	c.mu.Unlock()
	s.running.Go(c.read)
	o.stream = c
	if shared {
		s.current = c
	}
}

// stream is one connection.
type stream struct {
	conn    net.Conn
	patient time.Duration
	writing chan struct{} // holds a token while somebody writes
	closed  func() bool   // forgets that it is to end with all

	mu      sync.Mutex // guards what follows
	waiting map[uint16]*waiter
	idle    *time.Timer // ends the connection while nobody waits
	heard   uint64      // messages
	err     error       // why it has ended; nil while it has not
	blamed  []byte      // the question that it has ended for
}

// waiter is who waits for an answer.
type waiter struct {
	question []byte
	answer   chan []byte // has room for it; closed if the connection ends
}

var (
	errOtherQuestion = errors.New("the answer is to another question")
	errBusy          = errors.New("too many questions on one connection")
	errIdle          = errors.New("nobody used the connection")
)

// end ends the connection, for err.
func (c *stream) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.idle.Stop()
	c.closed()
	c.hangUp()
	for _, w := range c.waiting {
		close(w.answer)
	}
	clear(c.waiting)
}

// hangUp closes the connection without a word, for which there may be no time: TLS
// would wait up to five seconds for a server that does not read.
func (c *stream) hangUp() {
	if t, ok := c.conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	c.conn.Close()
}

func (c *stream) endIdle() {
	c.mu.Lock()
	waiting := len(c.waiting)
	c.mu.Unlock()
	if waiting == 0 {
		c.end(errIdle)
	}
}

// exchange asks on the connection.
func (c *stream) exchange(ctx context.Context, question []byte, message func(id uint16) []byte) ([]byte, error) {
	w := &waiter{question, make(chan []byte, 1)}
	id, heard, err := c.join(w)
	if err != nil {
		return nil, err
	}
	defer c.leave(id, w)
	if err := c.write(ctx, message(id)); err != nil {
		select {
		case answer, ok := <-w.answer: // it took less time than to hear that it was sent
			if ok {
				return answer, nil
			}
		default:
		}
		return nil, err
	}
	silent := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.heard == heard
	}
	var doubt <-chan time.Time
	if heard > 0 { // it may have died since, without a word
		timer := time.NewTimer(c.patient / 2)
		defer timer.Stop()
		doubt = timer.C
	}
	for {
		select {
		case answer, ok := <-w.answer:
			if !ok {
				return nil, c.ended()
			}
			return answer, nil
		case <-doubt:
			if silent() {
				c.end(errTimeout) // there is time for another
			}
		case <-ctx.Done():
			if silent() && timedOut(ctx) {
				// Nothing came at all: a new connection may do better.
				c.end(context.Cause(ctx))
			}
			return nil, context.Cause(ctx)
		}
	}
}

// blames tells whether it is for the answer to this question that the connection has
// ended.
func (c *stream) blames(question []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(question) > 0 && len(c.blamed) > 0 && &question[0] == &c.blamed[0]
}

// timedOut tells whether ctx ended because there was no answer, and not because nobody
// wants one any more.
func timedOut(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errTimeout) }

// ended says why the connection has ended; nil while it has not.
func (c *stream) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// join gives the waiter an id.
func (c *stream) join(w *waiter) (id uint16, heard uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return 0, 0, c.err
	case len(c.waiting) >= maxPipeline:
		return 0, 0, errBusy
	}
	for {
		id = uint16(rand.Uint32()) // ChaCha8, seeded by the system
		if _, taken := c.waiting[id]; !taken {
			break
		}
	}
	c.waiting[id] = w
	c.idle.Stop()
	return id, c.heard, nil
}

func (c *stream) leave(id uint16, w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting[id] == w {
		delete(c.waiting, id)
	}
	if c.err == nil && len(c.waiting) == 0 {
		c.idle.Reset(streamIdle)
	}
}

// write writes one message. That it cannot ends the connection: what is half written
// cannot be taken back.
func (c *stream) write(ctx context.Context, msg []byte) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := c.conn.SetWriteDeadline(time.Now().Add(c.patient))
	if err == nil {
		// A write that is done when ctx ends does no harm to the connection.
		ended := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
			close(ended)
		})
		frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
		_, err = c.conn.Write(append(frame, msg...))
		if !stop() {
			<-ended // before the next one sets a deadline
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		c.end(err)
	}
	return err
}

// read hands out answers until the connection ends.
func (c *stream) read() {
	for {
		msg, err := readMessage(c.conn)
		if err == nil {
			err = c.deliver(msg)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

func readMessage(conn net.Conn) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(conn, prefix[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint16(prefix[:])
	if size < headerSize {
		return nil, errors.New("a message that is too short")
	}
	msg := make([]byte, size)
	_, err := io.ReadFull(conn, msg)
	return msg, err
}

// deliver gives a message to who waits for it. It may come after he has left.
func (c *stream) deliver(msg []byte) error {
	id := binary.BigEndian.Uint16(msg)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[id]
	if w == nil {
		return nil
	}
	if !isAnswer(msg, id, w.question) {
		c.blamed = w.question
		return errOtherQuestion
	}
	c.heard++
	delete(c.waiting, id)
	w.answer <- msg
	return nil
}

// overTLS returns what opens a connection and makes it one of TLS.
func overTLS(open func(ctx context.Context) (net.Conn, error), config *tls.Config) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := open(ctx)
		if err != nil {
			return nil, err
		}
		c := tls.Client(conn, config)
		if err := c.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return c, nil
	}
}
