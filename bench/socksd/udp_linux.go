package socksd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tunroute/bench/mmsg"
)

const (
	// batch is how many datagrams are taken at a time.
	batch = 64
	// maxHeader is the longest header of RFC 1928, section 7, with an address.
	maxHeader = 3 + 1 + 16 + 2
)

// associate carries datagrams until the client closes c.
func (s *Server) associate(ctx context.Context, c *net.TCPConn) {
	// Where the client has found the server, it finds the relay.
	here := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	inside, err := mmsg.Listen(netip.AddrPortFrom(here, 0))
	if err != nil {
		c.Write(reply(failure, netip.AddrPort{}))
		return
	}
	defer inside.Close()
	outside, err := mmsg.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
	if err != nil {
		c.Write(reply(failure, netip.AddrPort{}))
		return
	}
	defer outside.Close()
	bound := inside.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := c.Write(reply(granted, bound)); err != nil {
		return
	}
	c.SetDeadline(time.Time{})

	var client atomic.Pointer[netip.AddrPort] // where its datagrams come from
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { up(inside, outside, &client) })
	wg.Go(func() { down(outside, inside, &client) })
	defer outside.Close()
	defer inside.Close()
	io.Copy(io.Discard, c) // until the client goes
}

// up takes datagrams of the client out of their headers and sends them.
func up(inside, outside *net.UDPConn, client *atomic.Pointer[netip.AddrPort]) {
	r, err := mmsg.NewReader(inside, batch, mmsg.MaxSize, true)
	if err != nil {
		return
	}
	// Targets are on this host: merged, they cost next to nothing.
	w, err := mmsg.NewWriter(outside, batch, true)
	if err != nil {
		return
	}
	for {
		n, err := r.Read()
		if err != nil {
			return
		}
		if from := r.From(n - 1); client.Load() == nil || *client.Load() != from {
			client.Store(&from)
		}
		for i := range n {
			for p := range r.Datagrams(i) {
				to, payload, ok := parseDatagram(p)
				if ok && !w.Add(payload, to) && w.Flush() != nil {
					return
				}
			}
		}
		if w.Flush() != nil {
			return
		}
	}
}

// down puts answers behind headers and sends them to the client, one by one as
// any server does: a router is not to be helped.
func down(outside, inside *net.UDPConn, client *atomic.Pointer[netip.AddrPort]) {
	r, err := mmsg.NewReader(outside, batch, mmsg.MaxSize, true)
	if err != nil {
		return
	}
	w, err := mmsg.NewWriter(inside, batch, false)
	if err != nil {
		return
	}
	const room = maxHeader + mmsg.MaxSize
	buffers := make([]byte, batch*room)
	slot := 0
	flush := func() error {
		slot = 0
		return w.Flush()
	}
	for {
		n, err := r.Read()
		if err != nil {
			return
		}
		to := client.Load()
		if to == nil {
			continue
		}
		for i := range n {
			from := r.From(i)
			for p := range r.Datagrams(i) {
				b := append(buffers[slot*room:slot*room], 0, 0, 0)
				b = append(appendAddr(b, from), p...)
				slot++
				if !w.Add(b, *to) && flush() != nil {
					return
				}
			}
		}
		if flush() != nil {
			return
		}
	}
}

// parseDatagram reads the header of RFC 1928, section 7. Fragments and names are
// not carried.
func parseDatagram(p []byte) (to netip.AddrPort, payload []byte, ok bool) {
	if len(p) < 4 || p[2] != 0 {
		return to, nil, false
	}
	size := 4
	switch p[3] {
	case typeIPv4:
	case typeIPv6:
		size = 16
	default:
		return to, nil, false
	}
	if len(p) < 4+size+2 {
		return to, nil, false
	}
	addr, _ := netip.AddrFromSlice(p[4 : 4+size])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(p[4+size:])), p[4+size+2:], true
}
