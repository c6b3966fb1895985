package engine

import (
	"context"
	"sync"

	"tunroute/router/outbound/group"
)

// runners run the groups of the config that is current, while the engine runs. They
// are not safe for concurrent use.
type runners struct {
	all map[string]*group.Group

	ctx  context.Context // nil where the engine does not run
	stop func()          // ends those that run, and waits for them
}

// start runs the groups until ctx ends.
func (r *runners) start(ctx context.Context) {
	r.ctx = ctx
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, g := range r.all {
		running.Go(func() { g.Run(ctx) })
	}
	r.stop = func() { cancel(); running.Wait() }
}

// replace runs other groups instead. Those from before still serve the flows that are
// about to be opened, and that is all that is left of them.
func (r *runners) replace(all map[string]*group.Group) {
	r.all = all
	if r.ctx != nil {
		r.stop()
		r.start(r.ctx)
	}
}

// end returns when none runs any more.
func (r *runners) end() {
	if r.ctx != nil {
		r.stop()
		r.ctx = nil
	}
}
