package inbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/gssapi"
	"tunroute/router/socks"
)

// association is the UDP of one client: a socket of its own, at the address of its
// connection, which lives as long as that does.
type association struct {
	socket *net.UDPConn
	owner  netip.Addr // who may send

	end  context.CancelFunc
	used atomic.Int64 // of the last datagram either way, by the clock in nanoseconds

	protect *gssapi.Datagrams // nil where datagrams are as they are

	// Where the client has said that it sends from, or else the source of its first
	// datagram. All others have to have it: a port of the same machine may be
	// somebody else's.
	client atomic.Pointer[netip.AddrPort]
}

// maxDatagram is the longest payload of IP.
const maxDatagram = 65535

// associate serves a client of UDP ASSOCIATE, which says that it will send from there,
// until it closes its connection.
func (c *client) associate(ctx context.Context, f flow.Flow, from netip.AddrPort, q *call) {
	local, ok := c.raw.LocalAddr().(*net.TCPAddr)
	if !ok || c.listener.TLS != nil || c.server.opts.Associate == nil {
		// Datagrams would go beside the TLS, and a unix socket has no address.
		q.Refuse(fmt.Errorf("%w: no UDP by this listener", socks.ReplyCommand))
		return
	}
	socket, err := c.server.relay(ctx, local.AddrPort().Addr().Unmap(), c.listener.Relays)
	if err != nil {
		if c.server.told.due(c.source.Addr(), time.Now()) {
			c.server.log.Warn("no socket for an association", "inbound", c.listener.Name, "src", c.source, "err", err)
		}
		q.Refuse(err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &association{socket: socket, owner: c.source.Addr(), end: cancel}
	// RFC 1928 §6. Any other address is one that a NAT has changed, or none.
	if from.Port() != 0 && from.Addr().Unmap() == a.owner.WithZone("") {
		from = netip.AddrPortFrom(a.owner, from.Port())
		a.client.Store(&from)
	}
	if secured, ok := q.stream.Conn.(*gssapi.Conn); ok {
		a.protect = secured.Datagrams()
	}
	routed, err := c.server.opts.Associate(f, a)
	if err != nil {
		socket.Close()
		q.Refuse(err)
		return
	}
	c.server.open(a)
	defer c.server.gone(a)
	at := socket.LocalAddr().(*net.UDPAddr).AddrPort()
	if told := c.listener.Relays.Announce; told.IsValid() {
		at = netip.AddrPortFrom(told, at.Port())
	}
	if err := q.answer(q.connected(at)); err != nil {
		cancel()
	}
	waiting, stop := q.watch(ctx, io.Discard)
	var work sync.WaitGroup
	work.Go(func() { routed.Run(waiting) })
	work.Go(func() { a.read(routed) })
	<-waiting.Done()
	stop()
	socket.Close()
	work.Wait()
	q.close()
}

// relay opens a socket for an association, at one of the ports that it may have: the
// first that is free, from any of them on.
func (s *Server) relay(ctx context.Context, at netip.Addr, r Relays) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: s.opts.Control}
	n := int(r.Last) - int(r.First) + 1
	from := rand.IntN(n)
	var err error
	for i := range n {
		port := r.First + uint16((from+i)%n)
		var socket net.PacketConn
		if socket, err = lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(at, port).String()); err == nil {
			return socket.(*net.UDPConn), nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

// open takes an association in. At the limit the one that has been silent for longest of
// some makes room (map order takes them at random: looking at all would cost the most when
// there is the least time).
func (s *Server) open(a *association) {
	const sample = 64
	a.touch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.associations) >= s.opts.MaxAssociations {
		var oldest *association
		n := 0
		for o := range s.associations {
			if oldest == nil || o.used.Load() < oldest.used.Load() {
				oldest = o
			}
			if n++; n == sample {
				break
			}
		}
		delete(s.associations, oldest)
		oldest.end()
		s.stats.Evicted++
	}
	s.associations[a] = struct{}{}
}

// gone takes an association out.
func (s *Server) gone(a *association) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.associations, a)
	if len(s.associations) == 0 {
		s.associations = make(map[*association]struct{}) // a map keeps its size for ever
	}
}

func (a *association) touch() { a.used.Store(time.Now().UnixNano()) }

// read takes the client's datagrams until the socket is closed. Packet tempo.
func (a *association) read(to Association) {
	for await(a.socket) == nil {
		if !a.readOne(to) {
			return
		}
	}
}

var longDatagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// readOne takes what there is, and says whether there may be more.
func (a *association) readOne(to Association) bool {
	b := longDatagrams.Get().(*[maxDatagram]byte)
	defer longDatagrams.Put(b)
	n, from, err := a.socket.ReadFromUDPAddrPort(b[:])
	if err != nil {
		return false
	}
	a.take(b[:n], from, to)
	return true
}

// take takes one datagram.
func (a *association) take(b []byte, from netip.AddrPort, to Association) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if from.Addr().WithZone("") != a.owner.WithZone("") {
		return
	}
	if a.protect != nil {
		var err error
		if b, err = a.protect.Open(b); err != nil {
			return // not the client's, whatever it says
		}
	}
	client := a.client.Load()
	if client != nil && *client != from {
		return
	}
	// RFC 1928 §7: who does not put fragments together drops them.
	h, payload, err := socks.ParseUDP(b)
	if err != nil || h.Frag != 0 {
		return
	}
	if client == nil {
		first := from
		a.client.Store(&first)
	}
	a.touch()
	to.Send(h.Name, h.Addr, payload)
	to.Flush()
}

var datagrams = sync.Pool{New: func() any {
	b := make([]byte, 0, 2048)
	return &b
}}

// WriteUDP implements PacketClient.
func (a *association) WriteUDP(payload []byte, from netip.AddrPort, name string) error {
	client := a.client.Load()
	if client == nil {
		return net.ErrClosed // cannot be: nobody has been asked
	}
	a.touch()
	buf := datagrams.Get().(*[]byte)
	defer datagrams.Put(buf)
	b, err := socks.AppendUDPHeader((*buf)[:0], socks.Addr{Name: name, IP: from.Addr().WithZone(""), Port: from.Port()})
	if err != nil {
		return err
	}
	b = append(b, payload...)
	if cap(b) <= maxDatagram {
		*buf = b
	}
	if a.protect != nil {
		if b, err = a.protect.Seal(nil, b); err != nil {
			return err
		}
	}
	_, err = a.socket.WriteToUDPAddrPort(b, *client)
	return err
}
