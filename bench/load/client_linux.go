package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tunroute/bench/pattern"
)

// Client opens connections to servers. Its methods are for one goroutine: each
// does all that it is about before it returns.
type Client struct {
	source *pattern.Source
	dialer net.Dialer
	idle   []net.Conn
}

// NewClient returns a client of the pattern's streams.
func NewClient(source *pattern.Source) *Client {
	c := &Client{source: source, dialer: net.Dialer{KeepAlive: -1}}
	c.dialer.SetMultipathTCP(false)
	return c
}

// Way is how targets are reached.
type Way struct {
	// SOCKS is a SOCKS5 server to which the client speaks itself; without
	// one it connects to the target.
	SOCKS netip.AddrPort
	// Targets are the addresses of the servers. What opens several
	// connections goes around among them.
	Targets []netip.Addr
}

// target returns the address for connection i.
func (w Way) target(i int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(w.Targets[i%len(w.Targets)], port)
}

// timeout is when a connection attempt, or a request, counts as lost.
const timeout = 10 * time.Second

// dial opens a connection; its deadline is that of the attempt.
func (c *Client) dial(w Way, to netip.AddrPort) (*net.TCPConn, error) {
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	next := to
	if w.SOCKS.IsValid() {
		next = w.SOCKS
	}
	conn, err := c.dialer.DialContext(ctx, "tcp", next.String())
	if err != nil {
		return nil, err
	}
	tcp := conn.(*net.TCPConn)
	tcp.SetDeadline(deadline)
	if w.SOCKS.IsValid() {
		if _, err := socksRequest(tcp, socksConnect, to); err != nil {
			tcp.Close()
			return nil, err
		}
	}
	return tcp, nil
}

const (
	socksConnect   = 1
	socksAssociate = 3
)

// socksRequest asks a SOCKS5 server (RFC 1928) for something, and returns the
// address that it answers with.
func socksRequest(c net.Conn, command byte, to netip.AddrPort) (bound netip.AddrPort, err error) {
	var b [4 + 16 + 2]byte
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return bound, err
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return bound, err
	}
	if b[0] != 5 || b[1] != 0 {
		return bound, fmt.Errorf("the SOCKS server answers % x", b[:2])
	}
	if _, err := c.Write(appendSocksAddr([]byte{5, command, 0}, to)); err != nil {
		return bound, err
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return bound, err
	}
	size := 4
	if b[3] == 4 {
		size = 16
	}
	if b[1] != 0 {
		return bound, fmt.Errorf("the SOCKS server answers with code %d", b[1])
	}
	if _, err := io.ReadFull(c, b[:size+2]); err != nil {
		return bound, err
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[size:])), nil
}

// appendSocksAddr appends an address with its type and port.
func appendSocksAddr(b []byte, a netip.AddrPort) []byte {
	kind := byte(1)
	if a.Addr().Is6() {
		kind = 4
	}
	b = append(append(b, kind), a.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// BulkArgs are those of [Client.Bulk].
type BulkArgs struct {
	Way
	Streams  int
	Up, Down bool
	For      time.Duration
	Bytes    int64 // of each stream in each direction; 0 for as long as For says
	// Apart has each stream go one way only, every second one down, where
	// both are asked for.
	Apart bool
	// HalfClosed has the client close its half at once, where it does not send.
	HalfClosed bool
	Key        uint64 // of the first stream; the others are the numbers after it
}

// BulkResult is that of [Client.Bulk].
type BulkResult struct {
	Took    time.Duration // from the first byte to the last end
	Streams []Received    // in the order of their keys
}

// Bulk opens streams, and when all are open sends or receives on all of them. It
// returns when every one has ended at both ends.
func (c *Client) Bulk(a BulkArgs) (BulkResult, error) {
	conns := make([]*net.TCPConn, a.Streams)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	for i := range conns {
		var err error
		if conns[i], err = c.dial(a.Way, a.target(i, BulkPort)); err != nil {
			return BulkResult{}, fmt.Errorf("open stream %d: %w", i, err)
		}
	}
	res := BulkResult{Streams: make([]Received, a.Streams)}
	var wg sync.WaitGroup
	begin := time.Now()
	for i, conn := range conns {
		one := a
		if a.Apart {
			one.Up, one.Down = i%2 == 0, i%2 == 1
		}
		wg.Go(func() { res.Streams[i] = c.bulk(conn, one, a.Key+uint64(i), begin) })
	}
	wg.Wait()
	res.Took = time.Since(begin)
	return res, nil
}

// bulk is one stream.
func (c *Client) bulk(conn *net.TCPConn, a BulkArgs, key uint64, begin time.Time) (r Received) {
	r.Key = key
	end := begin.Add(a.For)
	conn.SetDeadline(end.Add(patience))
	h := bulkHeader{Key: key, Up: a.Up, Down: a.Down, For: a.For, Bytes: a.Bytes}
	if _, err := conn.Write(h.append(nil)); err != nil {
		r.Failed = err.Error()
		return r
	}
	var sent int64
	var sendErr error
	var wg sync.WaitGroup
	if a.Up || a.HalfClosed {
		wg.Go(func() {
			if a.Up {
				sent, sendErr = send(conn, c.source.Stream(key), end, a.Bytes)
			}
			if sendErr == nil {
				sendErr = conn.CloseWrite()
			}
		})
	}
	got := receive(conn, c.source.Stream(^key))
	if got.err != nil || got.wrong != "" {
		conn.Close() // what is being sent is of no use any more
	}
	wg.Wait()
	r.Bytes, r.Longest, r.Wrong, r.Sent = got.bytes, got.longest, got.wrong, sent
	if err := errors.Join(got.err, sendErr); err != nil {
		r.Failed = err.Error()
	}
	return r
}

// Times are those of something that was done many times.
type Times struct {
	Count    int64
	Errors   int64  // what did not succeed in time
	Error    string // the first
	Wrong    string // bytes that were not right
	Took     time.Duration
	P50, P99 time.Duration
	Max      time.Duration
}

// timesOf sums up what workers have done.
func timesOf(workers []worker, took time.Duration) Times {
	t := Times{Took: took}
	var all []time.Duration
	for _, w := range workers {
		all = append(all, w.times...)
		t.Errors += w.errors
		if t.Error == "" && w.err != nil {
			t.Error = w.err.Error()
		}
		if t.Wrong == "" {
			t.Wrong = w.wrong
		}
	}
	slices.Sort(all)
	t.Count = int64(len(all))
	if len(all) > 0 {
		t.P50, t.P99, t.Max = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	}
	return t
}

// worker is what one of several goroutines has done.
type worker struct {
	times  []time.Duration
	errors int64
	err    error
	wrong  string
}
