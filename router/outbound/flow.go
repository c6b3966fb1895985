package outbound

import (
	"context"

	"tunroute/router/flow"
)

// Flow is what an outbound may want to know of the flow that it is asked to open,
// besides the target: a group where it is from, a server whose it is. What is on
// the way tells nobody else.
//
// It comes in the context of [Dialer] and [PacketDialer], so that what stands in
// between, a chain for example, has nothing to hand on: [FlowOf] has it. In a
// chain all outbounds see the same Flow, whose Target is the flow's and not the
// one that they are asked for. It does not change.
type Flow struct {
	flow.Flow
	Rule int // the index of the rule that sent it here; -1 where none did
}

type flowKey struct{}

// WithFlow returns a ctx that says which flow a dial is for.
func WithFlow(ctx context.Context, f *Flow) context.Context {
	return context.WithValue(ctx, flowKey{}, f)
}

// FlowOf returns the flow that ctx is for, or nil where nobody has said.
func FlowOf(ctx context.Context) *Flow {
	f, _ := ctx.Value(flowKey{}).(*Flow)
	return f
}
