package outbound

import (
	"context"
	"net/netip"
	"sync"

	"tunroute/router/flow"
)

// Flow is what an outbound may want to know of the flow that it is asked to open,
// besides the target: a group where it is from, a server whose it is. What is on
// the way tells nobody else.
//
// It comes in the context of [Dialer] and [PacketDialer], so that what stands in
// between, a chain for example, has nothing to hand on: [FlowOf] has it. In a
// chain all outbounds see the same Flow, whose Target is the flow's and not the
// one that they are asked for. It does not change but for its notes, which are
// safe for concurrent use.
type Flow struct {
	flow.Flow
	Rule int // the index of the rule that sent it here; -1 where none did

	// Rejects says of an address that was found for the flow's name whether a
	// rule about addresses keeps the flow from it. Nil means that none does. It
	// does not block.
	Rejects func(netip.Addr) bool

	mu      sync.Mutex // guards what follows
	choices []choice
	reached netip.Addr
}

// rejects says whether a flow is kept from an address that was found for t; f may be
// nil. Of other targets, the servers on the way, the flow's rules say nothing.
func (f *Flow) rejects(t flow.Target, a netip.Addr) bool {
	return f != nil && f.Rejects != nil && t == f.Target && f.Rejects(a)
}

type choice struct{ group, member string }

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

// Chose notes that a group opened the flow by one of its members. Of what a group
// notes, the last counts. f may be nil.
func (f *Flow) Chose(group, member string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.choices {
		if f.choices[i].group == group {
			f.choices[i].member = member
			return
		}
	}
	f.choices = append(f.choices, choice{group, member})
}

// Chosen returns the member that a group has noted, "" where it has none. f may be nil.
func (f *Flow) Chosen(group string) string {
	if f == nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.chosenLocked(group)
}

func (f *Flow) chosenLocked(group string) string {
	for _, c := range f.choices {
		if c.group == group {
			return c.member
		}
	}
	return ""
}

// Reached notes at which address of t a connection was opened, where it was an
// outbound here that chose it. It counts only if t is the flow's own target and not
// that of a hop on the way. f may be nil.
func (f *Flow) Reached(t flow.Target, a netip.Addr) {
	if f == nil || t != f.Target || !a.IsValid() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reached = a.Unmap()
}

// From returns the target as it is to be given to [Binder]: with the address at which
// it was reached, where that is known.
func (f *Flow) From() flow.Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.Target
	if f.reached.IsValid() {
		t.Addr = f.reached
	}
	return t
}

// Way returns hops with the members that groups among them have chosen:
// "internet/int1". It returns hops itself where nothing was noted. f may be nil.
func (f *Flow) Way(hops []string) []string {
	if f == nil {
		return hops
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.choices) == 0 {
		return hops
	}
	way := make([]string, len(hops))
	for i, hop := range hops {
		way[i] = hop
		for range f.choices { // a group may have chosen a group
			member := f.chosenLocked(hop)
			if member == "" {
				break
			}
			way[i] += "/" + member
			hop = member
		}
	}
	return way
}

// Relayed is what a [Conn] also is that counts for something as long as it is
// open, and that has no hand in what passes through it.
type Relayed interface {
	Conn
	// Socket returns what is below: whoever wants to may read and write it
	// instead. Close is still called when the flow has ended.
	Socket() Conn
}
