package load

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/bench/mmsg"
	"tunroute/bench/pattern"
)

// batch is how many datagrams are received or sent at a time.
const batch = 64

// appendDatagram appends datagram n of a sender, of size bytes.
func appendDatagram(b []byte, source *pattern.Source, key, n uint64, size int) []byte {
	b = binary.BigEndian.AppendUint64(b, key)
	b = binary.BigEndian.AppendUint64(b, n)
	return append(b, source.Start(key^n, size-datagramHead)...)
}

// parseDatagram reads what appendDatagram has written, and says whether it is
// right.
func parseDatagram(p []byte, source *pattern.Source) (key, n uint64, right bool) {
	if len(p) < datagramHead || len(p) > datagramHead+pattern.ChunkSize {
		return 0, 0, false
	}
	key, n = binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
	return key, n, string(p[datagramHead:]) == string(source.Start(key^n, len(p)-datagramHead))
}

// counts are the datagrams of a sender that have come.
type counts struct {
	Received
	seen []uint64 // a bit for each number
	last time.Time
}

// maxDatagram is the highest number of a datagram that is counted: a sender of
// this package does not get as far.
const maxDatagram = 1 << 26

// add counts datagram n.
func (c *counts) add(n uint64, size int) {
	for uint64(len(c.seen)) <= n/64 {
		c.seen = append(c.seen, 0)
	}
	if bit := uint64(1) << (n % 64); c.seen[n/64]&bit == 0 {
		c.seen[n/64] |= bit
		c.Count++
		c.Bytes += int64(size)
	} else {
		c.Repeated++
	}
}

// sink counts the datagrams that come to a socket.
func (s *Server) sink(c *net.UDPConn) error {
	r, err := mmsg.NewReader(c, batch, mmsg.MaxSize, true)
	if err != nil {
		return err
	}
	for {
		n, err := r.Read()
		if err != nil {
			return nil // closed
		}
		s.mu.Lock()
		now := time.Now()
		for i := range n {
			for p := range r.Datagrams(i) {
				s.count(p, now)
			}
		}
		s.mu.Unlock()
	}
}

// count counts a datagram; s.mu is held.
func (s *Server) count(p []byte, now time.Time) {
	key, number, right := parseDatagram(p, s.source)
	got := s.counts[key]
	if got == nil {
		got = &counts{Received: Received{Key: key}}
		s.counts[key] = got
	}
	if !right || number > maxDatagram {
		got.Wrong = "a datagram is wrong"
		return
	}
	got.add(number, len(p))
	got.last = now
}

// quiet is how long no datagram must come until none is expected any more.
const quiet = 250 * time.Millisecond

// takeCounts waits until no datagram of a sender comes any more, returns what
// came and forgets it.
func (s *Server) takeCounts(key uint64) (Received, error) {
	begin := time.Now()
	for ; ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		last := begin
		if got := s.counts[key]; got != nil && got.last.After(begin) {
			last = got.last
		}
		if time.Since(last) > quiet || time.Since(begin) > patience {
			defer s.mu.Unlock()
			got := s.counts[key]
			delete(s.counts, key)
			if got == nil {
				return Received{Key: key}, nil
			}
			return got.Received, nil
		}
		s.mu.Unlock()
	}
}

// sendBack sends datagrams back to where they come from.
func (s *Server) sendBack(c *net.UDPConn) error {
	r, err := mmsg.NewReader(c, batch, mmsg.MaxSize, true)
	if err != nil {
		return err
	}
	w, err := mmsg.NewWriter(c, batch, true)
	if err != nil {
		return err
	}
	for {
		n, err := r.Read()
		if err != nil {
			return nil // closed
		}
		for i := range n {
			for p := range r.Datagrams(i) {
				if !w.Add(p, r.From(i)) && w.Flush() != nil {
					return nil
				}
			}
		}
		if w.Flush() != nil {
			return nil
		}
	}
}

// serveUDP serves a port on every address, since answers must come from the
// address that was asked.
func (s *Server) serveUDP(ctx context.Context, port uint16, serve func(*net.UDPConn) error) error {
	all, err := addrs()
	if err != nil {
		return err
	}
	for _, addr := range all {
		c, err := mmsg.Listen(netip.AddrPortFrom(addr, port))
		if err != nil {
			return err
		}
		s.conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			serve(c)
		})
	}
	return nil
}

// sender is a UDP socket of the client, through a SOCKS server or not.
type sender struct {
	*net.UDPConn
	prefix []byte   // of each datagram: the header of RFC 1928, section 7
	held   net.Conn // keeps the association
}

func (s *sender) Close() error {
	if s.held != nil {
		s.held.Close()
	}
	return s.UDPConn.Close()
}

func (c *Client) dialUDP(w Way, to netip.AddrPort) (*sender, error) {
	if !w.SOCKS.IsValid() {
		conn, err := mmsg.Dial(to)
		return &sender{UDPConn: conn}, err
	}
	held, err := net.DialTimeout("tcp", w.SOCKS.String(), timeout)
	if err != nil {
		return nil, err
	}
	held.SetDeadline(time.Now().Add(timeout))
	relay, err := socksRequest(held, socksAssociate, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err == nil {
		var conn *net.UDPConn
		if conn, err = mmsg.Dial(relay); err == nil {
			return &sender{conn, appendSocksAddr([]byte{0, 0, 0}, to), held}, nil
		}
	}
	held.Close()
	return nil, err
}

// SendArgs are those of [Client.Send].
type SendArgs struct {
	Way
	Size int // of a payload
	Rate int // datagrams a second
	For  time.Duration
	Key  uint64
}

// SendResult is that of [Client.Send].
type SendResult struct {
	Sent int64
	Took time.Duration
}

// pause is how long the sender sleeps between its bursts: at 100,000 datagrams a
// second a burst is then 25, far below the 500 that the queue of a TUN holds.
const pause = 250 * time.Microsecond

// Send sends datagrams from one socket at an even rate. It does not catch up on
// more than a few milliseconds, so what it sends may be less than was asked for.
func (c *Client) Send(a SendArgs) (SendResult, error) {
	s, err := c.dialUDP(a.Way, a.target(0, SinkPort))
	if err != nil {
		return SendResult{}, err
	}
	defer s.Close()
	w, err := mmsg.NewWriter(s.UDPConn, batch, false)
	if err != nil {
		return SendResult{}, err
	}
	// The timers of the runtime are too coarse.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	size := len(s.prefix) + a.Size
	b := make([]byte, batch*size)
	var sent, skipped int64
	maxBurst := max(int64(a.Rate)/250, 1) // 4 ms
	begin := time.Now()
	for {
		now := time.Since(begin)
		if now >= a.For {
			return SendResult{Sent: sent, Took: now}, nil
		}
		due := int64(now.Seconds()*float64(a.Rate)) - sent - skipped
		if due > maxBurst {
			skipped += due - maxBurst
			due = maxBurst
		}
		for ; due > 0; due-- {
			i := int(sent%batch) * size
			p := append(b[i:i:i+size], s.prefix...)
			if more := w.Add(appendDatagram(p, c.source, a.Key, uint64(sent), a.Size), netip.AddrPort{}); !more || due == 1 {
				if err := w.Flush(); err != nil {
					return SendResult{}, err
				}
			}
			sent++
		}
		unix.Nanosleep(&unix.Timespec{Nsec: int64(pause)}, nil)
	}
}
