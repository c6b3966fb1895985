package router

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/rule"
)

// noClient is the client of an association that hears nothing.
type noClient struct{}

func (noClient) WriteUDP([]byte, netip.AddrPort, string) error { return nil }

// TestAssociationsCount: for the limits of all flows an association is one, until it ends;
// one too many is refused, counted and told of.
func TestAssociationsCount(t *testing.T) {
	r, _, log := newRouter(t, withUDP{newDialer()}, Options{})
	r.Swap(r.snap.Load().With(SnapshotOptions{Limits: []*limit.Limiter{
		limit.New(limit.Options{Name: "limits.per-source", Per: limit.Source, Sessions: 1}),
	}}))
	of := flow.Flow{Source: client, Inbound: "lan"}
	first, err := r.Associate(of, noClient{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Associate(of, noClient{}); !errors.Is(err, ErrLimit) {
		t.Errorf("the second of one: %v, want a limit", err)
	}
	const want = "msg=flow net=udp src=10.0.0.2:4000 in=lan up=0"
	if s := r.Stats(); s.Limited != 1 || !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "end=limit") {
		t.Errorf("%d limited, want 1; the log lacks %s:\n%s", s.Limited, want, log)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	first.Run(ended)
	again, err := r.Associate(of, noClient{})
	if err != nil {
		t.Fatalf("when the first had ended: %v", err)
	}
	again.Run(ended)
}

// TestAssociationNobodyServes: who could send no datagram anywhere is told so at once.
func TestAssociationNobodyServes(t *testing.T) {
	r, _, log := newRouter(t, withUDP{newDialer()}, Options{})
	table, err := rule.Compile([]rule.Rule{
		{Network: flow.TCP, Via: "p1"},
		{Users: []string{"alice"}, Commands: []flow.Command{flow.Associate}, Via: "p1"},
		{Groups: []string{"staff"}, Ports: []rule.PortRange{{First: 53, Last: 53}}, Via: "p1"},
		{Commands: []flow.Command{flow.Associate}, Via: "reject"},
		{Via: "p1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSnapshot(table, []*Outbound{{Name: "reject", Dialer: outbound.Reject{}}, {Name: "p1", Dialer: newDialer()}})
	if err != nil {
		t.Fatal(err)
	}
	r.Swap(s)
	ended, end := context.WithCancel(t.Context())
	end()
	for _, f := range []flow.Flow{{User: "alice"}, {User: "bob", Groups: []string{"staff"}}} {
		a, err := r.Associate(f, noClient{})
		if err != nil {
			t.Errorf("%s %s: %v", f.User, f.Groups, err)
			continue
		}
		a.Run(ended)
	}
	for _, f := range []flow.Flow{{}, {User: "bob"}} {
		if _, err := r.Associate(f, noClient{}); !errors.Is(err, outbound.ErrRejected) {
			t.Errorf("user %q: %v, want it rejected", f.User, err)
		}
	}
	if n := strings.Count(log.String(), "end=rejected"); n != 2 {
		t.Errorf("%d told of, want 2:\n%s", n, log)
	}
}
