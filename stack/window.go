package stack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// What a near client may have on its way is kept in two queues, the kernel's in
// front of the TUN and a receive queue, and waits there behind what the others have
// sent. So near clients share a number of bytes: whoever sends alone gets most of
// what its link can use, and many get what a window has at the least. More is only
// latency, and in the end loss, as the kernel's queue has a number of places.
//
// netstack would let each buffer grow with the bytes of a round trip, and round
// trips grow with what is queued.

// A client is near if a handshake with its address has taken less than farFrom, this
// one or one of the last minute: where hundreds connect at once, each takes long.
// What a far one may send follows the path, as on Linux: see
// [tcp.Endpoint.ModerateRecvBuf].
const (
	farFrom   = 5 * time.Millisecond
	staysNear = time.Minute
)

// neighbors are the addresses of near clients. It is safe for concurrent use.
type neighbors struct {
	mu   sync.Mutex
	seen map[netip.Addr]time.Time // when a handshake was short
}

// maxNeighbors bounds the memory for them, to some 400 KB. Beyond it all are
// forgotten: what is lost is a minute's better judgment.
const maxNeighbors = 4096

// near says whether a client is near whose handshake has just ended.
func (n *neighbors) near(client netip.Addr, handshake time.Duration) bool {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if handshake >= farFrom {
		seen, ok := n.seen[client]
		return ok && now.Sub(seen) < staysNear
	}
	if n.seen == nil || len(n.seen) == maxNeighbors {
		n.seen = make(map[netip.Addr]time.Time)
	}
	n.seen[client] = now
	return true
}

// Receive buffers of near clients, in bytes. A window is half of one.
const (
	nearLeast = 128 << 10 // a window of 64 KiB, with which Linux begins too
	nearMost  = 2 << 20   // an upload alone gains nothing beyond (bench, up1)
	nearTotal = 4 << 20   // of all that send at the same time
)

// bulk is the smallest read that tells of a sender that needs a window.
const bulk = 8 << 10

// moment is how long a near client counts as one that sends.
const moment = 100 * time.Millisecond

// senders counts the near clients that send in bulk.
type senders struct {
	start       time.Time
	moment      atomic.Int64 // since start
	now, before atomic.Int64 // how many sent in this moment, and in the one before
}

// count notes that a client sends, whose last moment is in last, and says how many
// do. Packet tempo.
func (s *senders) count(last *int64) int64 {
	m := int64(time.Since(s.start)/moment) + 1
	if was := s.moment.Load(); was < m && s.moment.CompareAndSwap(was, m) {
		n := s.now.Swap(0)
		if was != m-1 {
			n = 0
		}
		s.before.Store(n)
	}
	if *last != m {
		*last = m
		s.now.Add(1)
	}
	return max(s.now.Load(), s.before.Load(), 1)
}

// moderate has the receive buffer follow what the client sends, after n bytes of it
// were taken. It is not called at the same time as itself. Packet tempo.
func (c *Conn) moderate(n int) {
	if c.far {
		c.ep.ModerateRecvBuf(n)
		return
	}
	if n < bulk {
		return
	}
	limit := min(max(nearTotal/c.s.senders.count(&c.sent), nearLeast), nearMost)
	o := c.ep.SocketOptions()
	switch size := o.GetReceiveBufferSize(); {
	case size < limit && int64(n) >= size/8:
		o.SetReceiveBufferSize(min(2*size, limit), false)
	case size > limit:
		// By no more than was taken: what the client has been promised
		// remains.
		o.SetReceiveBufferSize(max(limit, size-int64(n)), false)
	}
}
