package dnsfake

import (
	"net/netip"
	"sync"
)

const (
	// TCP connections at once, wherever they come in; one more is refused. Each
	// costs two goroutines and some kilobytes, also if nothing is asked.
	tcpConns = 1024

	// Those of one address. A stub resolver has one or two, a forwarder some tens.
	tcpConnsPerSource = 128
)

// conns counts the TCP connections.
type conns struct {
	mu  sync.Mutex // guards what follows
	all int
	of  map[netip.Addr]int // never 0
}

// AdmitTCP counts a TCP connection of a client, which is to be refused if ok is false:
// then there are too many, of it or of all. Else leave is to be called at its end, once.
func (s *Server) AdmitTCP(client netip.Addr) (leave func(), ok bool) {
	client = client.Unmap().WithZone("")
	c := &s.conns
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == tcpConns || c.of[client] == tcpConnsPerSource {
		s.warnCrowd(client)
		return nil, false
	}
	if c.of == nil {
		c.of = make(map[netip.Addr]int)
	}
	c.all++
	c.of[client]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.of[client]--; c.of[client] == 0 {
			delete(c.of, client)
		}
	}, true
}
