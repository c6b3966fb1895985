package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunroute/bench/pattern"
)

// Received is what a server says of a stream, or of the datagrams of a sender.
type Received struct {
	Key      uint64
	Bytes    int64         // that came and were right
	Sent     int64         // the other way
	Longest  time.Duration // without a byte, until the end
	Wrong    string        // bytes that were not those that were sent
	Failed   string        // another error
	Count    int64         // datagrams
	Repeated int64         // datagrams that came more than once
}

// Server has the servers of a role.
type Server struct {
	source *pattern.Source
	conns  sync.WaitGroup

	mu      sync.Mutex
	streams []Received         // that have ended; guarded by mu
	counts  map[uint64]*counts // of datagrams, by key; guarded by mu
}

// NewServer returns a server of the pattern's streams.
func NewServer(source *pattern.Source) *Server {
	return &Server{source: source, counts: make(map[uint64]*counts)}
}

// serveTCP serves all connections to a port.
func (s *Server) serveTCP(ctx context.Context, port uint16, serve func(*net.TCPConn)) error {
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	s.conns.Go(func() {
		defer l.Close()
		defer context.AfterFunc(ctx, func() { l.Close() })()
		for {
			c, err := l.Accept()
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				time.Sleep(10 * time.Millisecond) // no more files: the client waits in the backlog
				continue
			}
			s.conns.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				serve(c.(*net.TCPConn))
			})
		}
	})
	return nil
}

// patience is how long a server waits beyond the time that a stream should take.
const patience = 30 * time.Second

// bulk serves a connection to BulkPort.
func (s *Server) bulk(c *net.TCPConn) {
	var b [bulkHeaderSize]byte
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return // a client that has changed its mind
	}
	h, err := parseBulkHeader(b[:])
	if err != nil {
		s.record(Received{Wrong: err.Error()})
		return
	}
	end := time.Now().Add(h.For)
	if h.Bytes == 0 {
		c.SetDeadline(end.Add(patience))
	} else {
		c.SetDeadline(time.Time{}) // the client has one
	}
	r := Received{Key: h.Key}
	var sent int64
	var sendErr error
	var wg sync.WaitGroup
	if h.Down {
		wg.Go(func() {
			sent, sendErr = send(c, s.source.Stream(^h.Key), end, h.Bytes)
			if sendErr == nil {
				sendErr = c.CloseWrite()
			}
		})
	}
	got := receive(c, s.source.Stream(h.Key))
	wg.Wait()
	r.Bytes, r.Longest, r.Wrong, r.Sent = got.bytes, got.longest, got.wrong, sent
	if err := errors.Join(got.err, sendErr); err != nil {
		r.Failed = err.Error()
	}
	// First the record, then the end by which the client knows of it.
	s.record(r)
}

func (s *Server) record(r Received) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams = append(s.streams, r)
}

// takeStreams returns the records of so many streams, for which it waits for a
// while, and forgets them.
func (s *Server) takeStreams(count int) ([]Received, error) {
	for end := time.Now().Add(2 * patience); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		if len(s.streams) >= count || time.Now().After(end) {
			defer s.mu.Unlock()
			all := s.streams
			s.streams = nil
			return all, nil
		}
		s.mu.Unlock()
	}
}

// writeSize is how much is sent by a call: a chunk of the pattern.
const writeSize = pattern.ChunkSize

// send sends a stream for as long as end says, or where limit is not 0 so many
// bytes, and returns how many.
func send(w io.Writer, stream *pattern.Stream, end time.Time, limit int64) (int64, error) {
	for {
		size := writeSize
		if limit > 0 {
			size = int(min(int64(size), limit-stream.Offset()))
		}
		if size == 0 || limit == 0 && !time.Now().Before(end) {
			return stream.Offset(), nil
		}
		if _, err := w.Write(stream.Next(size)); err != nil {
			return stream.Offset(), fmt.Errorf("send: %w", err)
		}
	}
}

// received is what receive returns.
type received struct {
	bytes   int64
	longest time.Duration
	wrong   string
	err     error
}

// readSize is how much is read by a call at most.
const readSize = 128 << 10

var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// receive reads a stream to its end and checks it. Bytes that are wrong end it.
func receive(r io.Reader, stream *pattern.Stream) (got received) {
	b := buffers.Get().(*[readSize]byte)
	defer buffers.Put(b)
	last := time.Now()
	for {
		n, err := r.Read(b[:])
		now := time.Now()
		got.longest = max(got.longest, now.Sub(last))
		last = now
		if wrong := stream.Check(b[:n]); wrong != nil {
			got.wrong = wrong.Error()
			return got
		}
		got.bytes += int64(n)
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			got.err = fmt.Errorf("receive: %w", err)
			return got
		}
	}
}

// requests serves a connection to RequestPort until the client closes it.
func (s *Server) requests(c *net.TCPConn) {
	var b [RequestSize]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		key := binary.BigEndian.Uint64(b[:])
		if string(b[requestHead:]) != string(s.source.Start(key, RequestSize-requestHead)) {
			s.record(Received{Key: key, Wrong: "a request is wrong"})
			return
		}
		out := b[:]
		if b[8] != kindEcho {
			out = s.source.Start(^key, AnswerSize)
		}
		if _, err := c.Write(out); err != nil || b[8] == kindClose {
			return
		}
	}
}

// addrs returns the addresses of the host.
func addrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, err
		}
		if !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Addr())
		}
	}
	return all, nil
}
