package outbound_test

import (
	"context"
	"slices"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

func TestFlowIsInTheContext(t *testing.T) {
	if f := outbound.FlowOf(t.Context()); f != nil {
		t.Errorf("FlowOf a context that has none: %+v", f)
	}
	f := &outbound.Flow{Flow: flow.Flow{Inbound: "tun"}, Rule: 3}
	ctx, cancel := context.WithCancel(outbound.WithFlow(t.Context(), f))
	defer cancel()
	if got := outbound.FlowOf(ctx); got != f {
		t.Errorf("FlowOf: %p, want %p", got, f)
	}
}

func TestWayHasTheMembersThatWereChosen(t *testing.T) {
	hops := []string{"outer", "p1"}
	var none *outbound.Flow
	none.Chose("outer", "a")
	if got := none.Way(hops); !slices.Equal(got, hops) || none.Chosen("outer") != "" {
		t.Errorf("without a flow: %q", got)
	}
	f := &outbound.Flow{}
	if got := f.Way(hops); !slices.Equal(got, hops) {
		t.Errorf("without a choice: %q", got)
	}
	f.Chose("outer", "lost")
	f.Chose("inner", "int1")
	f.Chose("elsewhere", "d1")
	f.Chose("outer", "inner")
	if got, want := f.Way(hops), []string{"outer/inner/int1", "p1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, none := f.Chosen("outer"), f.Chosen("p1"); got != "inner" || none != "" {
		t.Errorf("Chosen: %q and %q, want inner and nothing", got, none)
	}
	f.Chose("int1", "outer") // nobody can, and it must end
	f.Way(hops)
}

// What a dial costs to say which flow it is for.
func TestWithFlowAllocatesOnce(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	f := &outbound.Flow{}
	if n := testing.AllocsPerRun(100, func() { outbound.FlowOf(outbound.WithFlow(context.Background(), f)) }); n > 1 {
		t.Errorf("%v allocations, want 1", n)
	}
}
