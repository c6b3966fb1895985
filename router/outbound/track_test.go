package outbound_test

import (
	"context"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// heard is what a tracked connection tells.
type heard struct {
	to, local netip.AddrPort
	closes    int
}

func (h *heard) Opened(local netip.AddrPort) { h.local = local }
func (h *heard) Close()                      { h.closes++ }

func TestDirectTracksConnections(t *testing.T) {
	var all []*heard
	d := must(outbound.NewDirect(outbound.DirectOptions{Track: func(_ context.Context, to netip.AddrPort) outbound.Tracked {
		h := &heard{to: to}
		all = append(all, h)
		return h
	}}))(t)
	closed, open := outboundtest.ClosedPort(t, loopback), outboundtest.Serve(t, loopback, tellPeer)
	if _, err := d.DialTCP(t.Context(), flow.AddrTarget(closed)); err == nil {
		t.Fatal("connected to a closed port")
	}
	conn := must(d.DialTCP(t.Context(), flow.AddrTarget(open)))(t)
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 {
		t.Fatalf("told of %d connections, want 2", len(all))
	}
	if got, want := *all[0], (heard{to: closed, closes: 1}); got != want {
		t.Errorf("of the closed port: %+v, want %+v", got, want)
	}
	want := heard{to: open, local: netip.MustParseAddrPort(string(b))}
	if got := *all[1]; got != want {
		t.Errorf("of the open one: %+v, want %+v", got, want)
	}
	if got := conn.(outbound.Relayed).Socket().LocalAddr().String(); got != string(b) {
		t.Errorf("the socket below is %s, want %s", got, b)
	}
	conn.Close()
	if all[1].closes != 1 {
		t.Errorf("closed %d times, want once", all[1].closes)
	}
}

// changing is a resolver of a name whose address changes.
type changing struct{ addr atomic.Pointer[netip.Addr] }

func (c *changing) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{*c.addr.Load()}, nil
}

// A server that is known by name is where its name is now: the name is looked up for
// each connection, and how long an answer is good for is the resolver's affair.
func TestServerMovesWithItsName(t *testing.T) {
	first := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	port := first.Target().Port
	var names changing
	s := newSocks(t, outbound.SocksOptions{
		Name: "s", Version: socks.Version5, Server: flow.Target{Name: "server.test", Port: port}, Via: newDirect(t, &names),
	})
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, tellPeer))
	gone := netip.MustParseAddr("127.0.0.77") // nobody listens there
	for i, at := range []netip.Addr{gone, loopback, gone, loopback} {
		names.addr.Store(&at)
		conn, err := s.DialTCP(t.Context(), target)
		if (err == nil) != (at == loopback) {
			t.Errorf("dial %d to %v: error %v", i, at, err)
		}
		if conn != nil {
			conn.Close()
		}
	}
}
