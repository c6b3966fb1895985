package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"tunroute/bench/mmsg"
)

// PingPongArgs are those of operations with datagrams that are answered.
type PingPongArgs struct {
	Way
	Sockets int
	Window  int // unanswered datagrams of a socket, a power of two
	Size    int // of a payload
	For     time.Duration
	Key     uint64

	// For DNS:
	Server netip.AddrPort // who is asked
	Names  int            // how many there are; each socket has its share
	Once   bool           // each name is asked for once; it ends when there are no more
}

// PingPongResult is that of such operations.
type PingPongResult struct {
	Answers int64
	Lost    int64
	Refused int64  // answers of a DNS server that are errors
	Wrong   string // an answer that is not right
	Took    time.Duration
}

// lostAfter is when a datagram without an answer counts as lost.
const lostAfter = 500 * time.Millisecond

// question makes datagrams and knows their answers.
type question interface {
	// next appends datagram n, or says that there is none.
	next(b []byte, n uint64) ([]byte, bool)
	// check returns the number of the datagram that p answers, of which 16
	// bits count; refused, if the answer is an error.
	check(p []byte) (n uint16, refused bool, err error)
}

// EchoUDP sends datagrams and waits for each to come back, with a window of them
// on the way from each socket.
func (c *Client) EchoUDP(a PingPongArgs) (PingPongResult, error) {
	return c.pingPong(a, func(i int) (*sender, question, error) {
		s, err := c.dialUDP(a.Way, a.target(i, EchoPort))
		if err != nil {
			return nil, nil, err
		}
		return s, &echoQuestion{c, s.prefix, a.Key + uint64(i), a.Size}, nil
	})
}

type echoQuestion struct {
	c      *Client
	prefix []byte
	key    uint64
	size   int
}

func (q *echoQuestion) next(b []byte, n uint64) ([]byte, bool) {
	return appendDatagram(append(b, q.prefix...), q.c.source, q.key, n, q.size), true
}

func (q *echoQuestion) check(p []byte) (uint16, bool, error) {
	if len(p) != len(q.prefix)+q.size {
		return 0, false, fmt.Errorf("a datagram of %d bytes came back, want %d", len(p), len(q.prefix)+q.size)
	}
	key, n, right := parseDatagram(p[len(q.prefix):], q.c.source)
	if !right || key != q.key {
		return 0, false, errors.New("a datagram is wrong")
	}
	return uint16(n), false, nil
}

// DNS asks a resolver for addresses of names.
func (c *Client) DNS(a PingPongArgs) (PingPongResult, error) {
	return c.pingPong(a, func(i int) (*sender, question, error) {
		conn, err := mmsg.Dial(a.Server)
		if err != nil {
			return nil, nil, err
		}
		share := uint64(a.Names / a.Sockets)
		return &sender{UDPConn: conn}, &dnsQuestion{first: uint64(i) * share, names: share, once: a.Once, key: a.Key}, nil
	})
}

// pingPong has so many sockets, each with questions of its own.
func (c *Client) pingPong(a PingPongArgs, open func(i int) (*sender, question, error)) (PingPongResult, error) {
	results := make([]PingPongResult, a.Sockets)
	errs := make([]error, a.Sockets)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range a.Sockets {
		wg.Go(func() {
			s, q, err := open(i)
			if err != nil {
				errs[i] = err
				return
			}
			defer s.Close()
			results[i], errs[i] = pingPong(s.UDPConn, q, a.Window, begin.Add(a.For))
		})
	}
	wg.Wait()
	sum := PingPongResult{Took: time.Since(begin)}
	for _, r := range results {
		sum.Answers += r.Answers
		sum.Lost += r.Lost
		sum.Refused += r.Refused
		if sum.Wrong == "" {
			sum.Wrong = r.Wrong
		}
	}
	return sum, errors.Join(errs...)
}

// slot is a place in the window. Its datagrams are those whose numbers are its
// own modulo the size of the window, which is a power of two: so the 16 bits of a
// number that an answer has tell the slot.
type slot struct {
	n        uint64 // of the datagram on the way, or of the next
	sent     time.Time
	underway bool
}

// pinger is a socket with its window.
type pinger struct {
	q     question
	w     *mmsg.Writer
	slots []slot
	// used is how many slots are: one until the first answer, since some
	// routers keep only a few datagrams while they set up a session.
	used   int
	buffer []byte
	end    time.Time
	res    PingPongResult
}

const maxPing = 2048 // bytes of a datagram

func pingPong(conn *net.UDPConn, q question, window int, end time.Time) (PingPongResult, error) {
	r, err := mmsg.NewReader(conn, window, maxPing, false)
	if err != nil {
		return PingPongResult{}, err
	}
	w, err := mmsg.NewWriter(conn, window, false)
	if err != nil {
		return PingPongResult{}, err
	}
	p := &pinger{q: q, w: w, slots: make([]slot, window), used: 1, buffer: make([]byte, 0, window*maxPing), end: end}
	for i := range p.slots {
		p.slots[i].n = uint64(i)
	}
	for {
		underway, err := p.fill(time.Now())
		if err != nil || underway == 0 {
			return p.res, err
		}
		conn.SetReadDeadline(time.Now().Add(lostAfter))
		n, err := r.Read()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return p.res, err
		}
		for i := range n {
			for b := range r.Datagrams(i) {
				if err := p.answer(b); err != nil {
					p.res.Wrong = err.Error()
					return p.res, nil
				}
			}
		}
	}
}

// fill sends a datagram from each slot that has none on the way, or one that is
// lost, and returns how many are on the way.
func (p *pinger) fill(now time.Time) (underway int, err error) {
	b := p.buffer
	for i := range p.slots[:p.used] {
		s := &p.slots[i]
		if s.underway && now.Sub(s.sent) > lostAfter {
			p.res.Lost++
			s.free(len(p.slots))
		}
		if !s.underway && now.Before(p.end) {
			if next, ok := p.q.next(b, s.n); ok {
				p.w.Add(next[len(b):], netip.AddrPort{})
				b = next
				s.sent, s.underway = now, true
			}
		}
		if s.underway {
			underway++
		}
	}
	return underway, p.w.Flush()
}

func (s *slot) free(window int) {
	s.n += uint64(window)
	s.underway = false
}

// answer takes an answer; one that is late is left out.
func (p *pinger) answer(b []byte) error {
	n, refused, err := p.q.check(b)
	if err != nil {
		return err
	}
	s := &p.slots[int(n)%len(p.slots)]
	if !s.underway || uint16(s.n) != n {
		return nil
	}
	s.free(len(p.slots))
	p.used = len(p.slots)
	if refused {
		p.res.Refused++
	} else {
		p.res.Answers++
	}
	return nil
}

// dnsQuestion asks for IPv4 addresses of names (RFC 1035).
type dnsQuestion struct {
	first, names uint64 // numbers of the names
	once         bool
	key          uint64 // makes names those of this run
}

const (
	dnsHeader   = 12
	dnsResponse = 0x80 // of the third byte
	dnsRcode    = 0x0f // of the fourth
)

func (q *dnsQuestion) next(b []byte, n uint64) ([]byte, bool) {
	if q.once && n >= q.names {
		return b, false
	}
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired, one question
	b = append(b, 16)
	const hex = "0123456789abcdef"
	number := q.first + n%q.names
	for i := range 16 {
		from := number
		if i < 8 {
			from = q.key
		}
		b = append(b, hex[from>>(4*(7-i%8))&0xf])
	}
	b = append(b, "\x05bench\x04test\x00"...)
	return append(b, 0, 1, 0, 1), true // A, IN
}

func (q *dnsQuestion) check(p []byte) (n uint16, refused bool, err error) {
	if len(p) < dnsHeader || p[2]&dnsResponse == 0 {
		return 0, false, fmt.Errorf("not an answer of DNS: % x", p[:min(len(p), dnsHeader)])
	}
	return binary.BigEndian.Uint16(p), p[3]&dnsRcode != 0 || binary.BigEndian.Uint16(p[6:]) == 0, nil
}
