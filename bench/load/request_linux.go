package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// RequestArgs are those of operations with requests.
type RequestArgs struct {
	Way
	Workers int
	For     time.Duration
	Count   int64 // where it is not 0, so many in all instead of For
	Key     uint64
}

// more hands out what there is to do: it returns a function that says whether
// there is another.
func (a RequestArgs) more() func() bool {
	if a.Count > 0 {
		var n atomic.Int64
		return func() bool { return n.Add(1) <= a.Count }
	}
	end := time.Now().Add(a.For)
	return func() bool { return time.Now().Before(end) }
}

// run has workers do something until there is no more.
func (a RequestArgs) run(f func(i int, w *worker, more func() bool)) Times {
	workers := make([]worker, a.Workers)
	more := a.more()
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() { f(i, &workers[i], more) })
	}
	wg.Wait()
	return timesOf(workers, time.Since(begin))
}

// fail counts an error; bytes that are wrong are more than that.
func (w *worker) fail(err error) {
	w.errors++
	if w.err == nil {
		w.err = err
	}
	if errors.Is(err, errWrong) {
		w.wrong = err.Error()
	}
}

var errWrong = errors.New("wrong bytes")

// maxLost is after how many attempts that were lost one after the other a worker
// gives up: a router that has come to a halt would take hours for a count.
const maxLost = 3

// Connect opens a connection, sends a request, reads the answer until the server
// closes, and closes; and so on.
func (c *Client) Connect(a RequestArgs) (Times, error) {
	return a.run(func(i int, w *worker, more func() bool) {
		key := a.Key + uint64(i)<<32
		var b [AnswerSize]byte
		lost := 0
		for n := i; lost < maxLost && more(); n += a.Workers {
			begin := time.Now()
			key++
			if err := c.connect(a.Way, n, key, b[:]); err != nil {
				w.fail(err)
				lost++
				continue
			}
			lost = 0
			w.times = append(w.times, time.Since(begin))
		}
	}), nil
}

func (c *Client) connect(way Way, n int, key uint64, b []byte) error {
	conn, err := c.dial(way, way.target(n, RequestPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := c.request(conn, kindClose, key, b); err != nil {
		return err
	}
	if n, err := conn.Read(b[:1]); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the answer: %d bytes, %w", n, err)
	}
	return nil
}

// request sends a request and checks the answer; b has room for it.
func (c *Client) request(conn net.Conn, kind byte, key uint64, b []byte) error {
	p := b[:RequestSize]
	binary.BigEndian.PutUint64(p, key)
	p[8] = kind
	copy(p[requestHead:], c.source.Start(key, RequestSize-requestHead))
	if _, err := conn.Write(p); err != nil {
		return err
	}
	if kind == kindEcho {
		clear(p[requestHead:])
		if _, err := io.ReadFull(conn, p); err != nil {
			return err
		}
		if binary.BigEndian.Uint64(p) != key || string(p[requestHead:]) != string(c.source.Start(key, RequestSize-requestHead)) {
			return fmt.Errorf("%w: an echo", errWrong)
		}
		return nil
	}
	p = b[:AnswerSize]
	if _, err := io.ReadFull(conn, p); err != nil {
		return err
	}
	if string(p) != string(c.source.Start(^key, AnswerSize)) {
		return fmt.Errorf("%w: an answer", errWrong)
	}
	return nil
}

// Keep opens a connection for each worker and sends requests on it, each when the
// one before is answered.
func (c *Client) Keep(a RequestArgs) (Times, error) { return c.repeat(a, kindKeep) }

// Echo is as Keep, with answers that are the requests.
func (c *Client) Echo(a RequestArgs) (Times, error) { return c.repeat(a, kindEcho) }

func (c *Client) repeat(a RequestArgs, kind byte) (Times, error) {
	conns := make([]*net.TCPConn, a.Workers)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = c.dial(a.Way, a.target(i, RequestPort)); err != nil {
			return Times{}, fmt.Errorf("open connection %d: %w", i, err)
		}
	}
	return a.run(func(i int, w *worker, more func() bool) {
		key := a.Key + uint64(i)<<32
		var b [AnswerSize]byte
		conns[i].SetDeadline(time.Now().Add(a.For + timeout))
		for more() {
			begin := time.Now()
			key++
			if err := c.request(conns[i], kind, key, b[:]); err != nil {
				w.fail(err)
				return
			}
			w.times = append(w.times, time.Since(begin))
		}
	}), nil
}

// IdleArgs are those of [Client.Idle].
type IdleArgs struct {
	Way
	Count int // connections that are to be open
	Key   uint64
}

// IdleResult is that of [Client.Idle].
type IdleResult struct {
	Open  int
	Error string // why there are not as many as asked for
}

// Idle opens connections until there are so many, has each one repeat a message,
// and leaves them open. With a count of 0 it closes all.
func (c *Client) Idle(a IdleArgs) (IdleResult, error) {
	if a.Count == 0 {
		for _, conn := range c.idle {
			conn.Close()
		}
		c.idle = nil
		return IdleResult{}, nil
	}
	var mu sync.Mutex // for c.idle and first
	var first error
	var next atomic.Int64
	next.Store(int64(len(c.idle)))
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			var b [AnswerSize]byte
			for n := int(next.Add(1)); n <= a.Count; n = int(next.Add(1)) {
				conn, err := c.dial(a.Way, a.target(n, RequestPort))
				if err == nil {
					if err = c.request(conn, kindEcho, a.Key+uint64(n), b[:]); err != nil {
						conn.Close()
					}
				}
				mu.Lock()
				if err == nil {
					conn.SetDeadline(time.Time{})
					c.idle = append(c.idle, conn)
				} else if first == nil {
					first = err
				}
				stop := first != nil
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	res := IdleResult{Open: len(c.idle)}
	if first != nil {
		res.Error = first.Error()
	}
	return res, nil
}
