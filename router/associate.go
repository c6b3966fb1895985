package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/rule"
	"tunroute/router/udpnat"
)

// PacketClient is the client of an [Association].
type PacketClient interface {
	// WriteUDP sends payload to the client. It is from that address or, where
	// only a name is known of the sender, from the name and the port of the
	// address. It is called concurrently and does not keep payload.
	WriteUDP(payload []byte, from netip.AddrPort, name string) error
}

// Association exchanges datagrams for one client that names its targets itself. Each
// datagram goes by the rules. Its methods are safe for concurrent use, but for Run.
type Association struct {
	router *Router
	flow   flow.Flow
	held   held // until Run has ended
	client PacketClient
	table  *udpnat.Table

	mu    sync.Mutex // guards what follows
	fakes map[string]netip.Addr
	names map[netip.Addr]string
	next  uint64
}

// maxNames that an association knows at a time: what is beyond begins anew, and
// replies of those before are lost.
const maxNames = udpnat.DefaultMaxPaths

// nameZone marks an address that stands for a name in the table of an association. No
// address from a wire has a zone.
const nameZone = "name"

// Associate returns an Association for a client, whose flow f lacks a target. Its
// [Association.Run] must run. For the limits of all flows it is a flow besides those of
// its datagrams. The error, where there is one, is an [ErrLimit] or, where no datagram
// could go anywhere by the rules of now, an [outbound.ErrRejected].
func (r *Router) Associate(f flow.Flow, c PacketClient) (*Association, error) {
	f.Network, f.Command = flow.UDP, flow.Associate
	rec := Record{Flow: f, Verdict: rule.Verdict{Index: -1}, Start: time.Now()}
	refuse := func(e End, err error) (*Association, error) {
		rec.end(e, err)
		r.finish(&rec)
		return nil, err
	}
	snap := r.snap.Load()
	if !snap.table.Admits(f, snap.rejects) {
		return refuse(EndRejected, outbound.ErrRejected)
	}
	held, err := snap.count(&f, nil, rec.Start)
	if err != nil {
		return refuse(EndLimit, err)
	}
	a := &Association{router: r, flow: f, held: held, client: c, fakes: make(map[string]netip.Addr), names: make(map[netip.Addr]string)}
	a.table = udpnat.New(udpnat.Options{
		Decide:      a.decide,
		Writer:      associationWriter{a},
		Done:        r.doneUDP,
		RealSenders: true,
		Idle:        r.opts.UDPIdle,
		MaxSessions: maxAssociationSessions,
		QueueBytes:  associationQueue,
	})
	return a, nil
}

// maxAssociationSessions is how many outbounds one client may use at a time.
const maxAssociationSessions = 16

// associationQueue is what one client may have wait for answers of servers: 16 paths' full
// queues of long datagrams, or the first flights of 80 QUIC connections.
const associationQueue = 1 << 20

// Run serves the association until ctx ends, and returns when all of it has ended.
func (a *Association) Run(ctx context.Context) {
	a.router.assocs.add(a)
	defer a.router.assocs.remove(a)
	defer a.held.release()
	a.table.Run(ctx)
}

// Send takes a datagram to a name or, where there is none, to an address; of a name,
// to has the port. It waits for Flush. It does not block, and does not keep what it is
// given.
func (a *Association) Send(name []byte, to netip.AddrPort, payload []byte) {
	if name != nil {
		to = netip.AddrPortFrom(a.fake(name), to.Port())
	}
	a.table.Send(a.flow.Source, to, payload)
}

// Flush sends what waits.
func (a *Association) Flush() { a.table.Flush() }

// fake returns the address that stands for a name here.
func (a *Association) fake(name []byte) netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addr, ok := a.fakes[string(name)]; ok {
		return addr
	}
	if len(a.fakes) >= maxNames {
		clear(a.fakes)
		clear(a.names)
	}
	a.next++
	var b [16]byte
	for i := range 8 {
		b[15-i] = byte(a.next >> (8 * i))
	}
	addr := netip.AddrFrom16(b).WithZone(nameZone)
	a.fakes[string(name)], a.names[addr] = addr, string(name)
	return addr
}

func (a *Association) name(addr netip.Addr) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ok := a.names[addr]
	return name, ok
}

// decide is udpnat's Decide.
func (a *Association) decide(_, dst netip.AddrPort) udpnat.Decision {
	rec := &Record{Flow: a.flow, Verdict: rule.Verdict{Index: -1}}
	if dst.Addr().Zone() != nameZone {
		return a.router.decide(rec, dst)
	}
	name, _ := a.name(dst.Addr())
	t, err := flow.NewTarget(name, dst.Port())
	if err != nil {
		rec.Flow.Target.Port = dst.Port()
		rec.end(EndFailed, fmt.Errorf("a datagram to %q: %w", name, err))
		return udpnat.Decision{Tag: rec}
	}
	if t.Name == "" { // an address in the clothes of a name
		return a.router.decide(rec, t.AddrPort())
	}
	rec.Flow.Target = t
	return a.router.decide(rec, netip.AddrPort{})
}

// associationWriter is udpnat's way back to the client.
type associationWriter struct{ a *Association }

var errNobody = errors.New("a reply from nobody who was asked")

func (w associationWriter) WriteUDP(payload []byte, from, _ netip.AddrPort) error {
	if from.Addr().Zone() != nameZone {
		return w.a.client.WriteUDP(payload, from, "")
	}
	name, ok := w.a.name(from.Addr())
	if !ok {
		return errNobody
	}
	return w.a.client.WriteUDP(payload, netip.AddrPortFrom(netip.Addr{}, from.Port()), name)
}

// RefuseUDP does nothing: SOCKS has no way to tell.
func (associationWriter) RefuseUDP(_, _ netip.AddrPort, _ int, _ syscall.Errno) {}

// associations are those that are open.
type associations struct {
	mu  sync.Mutex
	all map[*Association]struct{}
}

func (s *associations) add(a *Association) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*Association]struct{})
	}
	s.all[a] = struct{}{}
}

func (s *associations) remove(a *Association) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, a)
	if len(s.all) == 0 {
		s.all = nil // a map keeps its size for ever
	}
}

// tables returns the router's tables of UDP: its own and those of associations.
func (r *Router) tables() []*udpnat.Table {
	r.assocs.mu.Lock()
	defer r.assocs.mu.Unlock()
	list := []*udpnat.Table{r.udp}
	for a := range r.assocs.all {
		list = append(list, a.table)
	}
	return list
}
