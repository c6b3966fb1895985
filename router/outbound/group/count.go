package group

import (
	"net/netip"
	"sync"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// count counts n flows more of a member, where anybody wants to know.
func (s *side) count(i int32, n int) {
	if s.load != nil {
		s.load.add(i, n)
	}
}

// hold returns what ends the count of a flow that was opened, once; nil where nobody
// counts.
func (s *side) hold(i int32) func() {
	if s.load == nil {
		return nil
	}
	return sync.OnceFunc(func() { s.count(i, -1) })
}

// countedConn is a connection that counts as a flow of its member.
type countedConn struct {
	outbound.Conn
	release func()
}

var _ outbound.Relayed = (*countedConn)(nil)

// Socket implements [outbound.Relayed].
func (c *countedConn) Socket() outbound.Conn {
	if r, ok := c.Conn.(outbound.Relayed); ok {
		return r.Socket()
	}
	return c.Conn
}

func (c *countedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// countedUDP is a conversation that counts as a flow of its member.
type countedUDP struct {
	outbound.PacketConn
	outbound.BatchReader
	queuer  outbound.Queuer
	release func()
}

var (
	_ outbound.Queuer      = (*countedUDP)(nil)
	_ outbound.BatchReader = (*countedUDP)(nil)
)

func newCountedUDP(c outbound.PacketConn, release func()) *countedUDP {
	return &countedUDP{c, outbound.Batches(c), outbound.Queue(c), release}
}

// Queue implements [outbound.Queuer]. Packet tempo.
func (c *countedUDP) Queue(payload []byte, t flow.Target) error { return c.queuer.Queue(payload, t) }

// Flush implements [outbound.Queuer].
func (c *countedUDP) Flush() { c.queuer.Flush() }

func (c *countedUDP) ReadFrom(b []byte) (int, netip.AddrPort, error) { return c.PacketConn.ReadFrom(b) }

func (c *countedUDP) Close() error {
	c.release()
	return c.PacketConn.Close()
}
