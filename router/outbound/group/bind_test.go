package group_test

import (
	"errors"
	"io"
	"net"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/group"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// The address is opened by the member that carries the flow, whatever the policy would
// choose, and by no other if that one cannot.
func TestBindByTheMemberOfTheFlow(t *testing.T) {
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, func(c *net.TCPConn) { io.Copy(c, c) }))
	start := func(o outboundtest.ServerOptions) (*outboundtest.Server, func(string) group.Member) {
		o.User, o.Password = "ann", "nna"
		s := outboundtest.StartServer(t, o)
		return s, func(name string) group.Member {
			return group.Member{Name: name, Dialer: server(t, name, s.Target(), direct(t, nil))}
		}
	}
	a, memberA := start(outboundtest.ServerOptions{})
	b, memberB := start(outboundtest.ServerOptions{})
	no, memberNo := start(outboundtest.ServerOptions{NoBind: true})
	g := newGroup(t, group.Options{Name: "g", Policy: group.RoundRobin, Members: []group.Member{memberA("a"), memberB("b"), memberNo("no")}})
	binds := func(s *outboundtest.Server) (n int) {
		for _, r := range s.Requests() {
			if r.Command == socks.Bind {
				n++
			}
		}
		return n
	}
	for range 6 {
		f := &outbound.Flow{Flow: flow.Flow{Network: flow.TCP, Target: target}}
		ctx := outbound.WithFlow(t.Context(), f)
		conn, err := g.DialTCP(ctx, target)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		beforeA, beforeB, beforeNo := binds(a), binds(b), binds(no)
		bound, err := g.Bind(ctx, f.From())
		if err == nil {
			bound.Close()
		}
		was := f.Chosen("g")
		if errors.Is(err, outbound.ErrNoBind) != (was == "no") || (err != nil) != (was == "no") {
			t.Errorf("flow through %s: %v", was, err)
		}
		got := map[string]int{"a": binds(a) - beforeA, "b": binds(b) - beforeB, "no": binds(no) - beforeNo}
		if got[was] != 1 || got["a"]+got["b"]+got["no"] != 1 {
			t.Errorf("flow through %s: BINDs %v", was, got)
		}
	}
	// Without a flow any member will do that can.
	for range 3 {
		bound, err := g.Bind(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		bound.Close()
	}
	none := newGroup(t, group.Options{Name: "none", Members: []group.Member{memberNo("no"), {Name: "reject", Dialer: outbound.Reject{}}}})
	if _, err := none.Bind(t.Context(), target); !errors.Is(err, outbound.ErrNoBind) {
		t.Errorf("without a member that can: %v", err)
	}
	for _, s := range g.Status() {
		if s.Bad {
			t.Errorf("%s was blamed: %v", s.Member, s.Err)
		}
	}
}
