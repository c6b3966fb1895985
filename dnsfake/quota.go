package dnsfake

import (
	"context"
	"net/netip"
	"sync"
)

const (
	// TCP connections at once, wherever they come in; one more is refused. Each
	// costs two goroutines and some kilobytes, also if nothing is asked.
	tcpConns = 1024

	// Those of one client. A stub resolver has one or two, a forwarder some tens.
	tcpConnsEach = 128

	// Questions of one client that wait for resolvers at once: more than a forwarder
	// has on the way (dnsmasq 150), and less than one resolver is asked (256 by
	// package resolve), so that somebody else is still heard.
	forwardsEach = 192
)

// quota bounds what there is of something at once, in all and of each client.
type quota struct {
	most, each int

	mu  sync.Mutex // guards what follows
	all int
	of  map[netip.Addr]int // never 0
}

// take takes one for a client, unless there are too many. Else leave gives it back and is
// to be called once. A client that is not valid is nobody in particular.
func (q *quota) take(client netip.Addr) (leave func(), ok bool) {
	client = client.Unmap().WithZone("")
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all >= q.most || client.IsValid() && q.of[client] >= q.each {
		return nil, false
	}
	q.all++
	if client.IsValid() {
		if q.of == nil {
			q.of = make(map[netip.Addr]int)
		}
		q.of[client]++
	}
	return func() { q.leave(client) }, true
}

func (q *quota) leave(client netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if !client.IsValid() {
		return
	}
	if q.of[client]--; q.of[client] == 0 {
		delete(q.of, client)
	}
	if len(q.of) == 0 {
		q.of = nil // a map keeps its size for ever
	}
}

func (q *quota) taken() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

// AdmitTCP counts a TCP connection of a client, which is to be refused if ok is false:
// then there are too many, of it or of all. Else leave is to be called at its end, once.
func (s *Server) AdmitTCP(client netip.Addr) (leave func(), ok bool) {
	if leave, ok = s.conns.take(client); !ok {
		s.warnCrowd(client, "too many TCP connections of this client, or of all")
	}
	return leave, ok
}

type clientKey struct{}

// WithClient returns a context for [Server.Answer] that says who asks: a client has no
// more than its share of the questions that wait. Without it, it is nobody in particular.
func WithClient(ctx context.Context, client netip.Addr) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// admitForward counts a question that is to wait for a resolver, as AdmitTCP does.
func (s *Server) admitForward(ctx context.Context) (leave func(), ok bool) {
	client, _ := ctx.Value(clientKey{}).(netip.Addr)
	if leave, ok = s.waiting.take(client); !ok {
		s.warnCrowd(client, "too many questions of this client, or of all, wait for resolvers")
	}
	return leave, ok
}
