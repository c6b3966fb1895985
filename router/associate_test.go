package router

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/limit"
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
	if s := r.Stats(); s.Limited != 1 || !strings.Contains(log.String(), "end=limit") {
		t.Errorf("%d limited, want 1; log: %s", s.Limited, log)
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
