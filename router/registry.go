package router

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"tunroute/router/flow"
	"tunroute/router/relay"
	"tunroute/router/rule"
)

var (
	errFlowLimit = errors.New("too many flows, and none of them idle")
	errEvicted   = errors.New("idle, and made room for another flow")
)

// evictable is how long a flow must have been silent before another one may
// have its place. Shorter silences are part of most conversations.
const evictable = time.Minute

// watchInterval is how exactly the silence of flows is known.
const watchInterval = 5 * time.Second

// registry keeps the TCP flows that are open, up to a limit.
type registry struct {
	limit int
	work  sync.WaitGroup // echoes

	mu               sync.Mutex
	flows            map[*entry]struct{}
	evicted, refused uint64
}

// entry is an open TCP flow.
type entry struct {
	flow     flow.Flow
	verdict  rule.Verdict
	outbound string
	start    time.Time
	cancel   context.CancelFunc
	counters relay.Counters
	evicted  atomic.Bool

	// guarded by registry.mu
	seen   int64     // bytes both ways when last looked at
	active time.Time // when they had changed
}

func (g *registry) init(limit int) {
	g.limit = limit
	g.flows = make(map[*entry]struct{})
}

// add takes a flow in. At the limit, an idle flow makes room; if there is none,
// ok is false.
func (g *registry) add(rec *Record, cancel context.CancelFunc) (_ *entry, ok bool) {
	e := &entry{flow: rec.Flow, verdict: rec.Verdict, outbound: rec.Outbound, start: rec.Start, active: rec.Start, cancel: cancel}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.flows) >= g.limit && !g.evictLocked(time.Now()) {
		g.refused++
		return nil, false
	}
	g.flows[e] = struct{}{}
	return e, true
}

func (g *registry) remove(e *entry) {
	g.mu.Lock()
	delete(g.flows, e)
	g.mu.Unlock()
}

// evictLocked ends the flow that has been silent for longest among some taken at
// random: map order gives them, and looking at all would cost the most when
// there is the least time.
func (g *registry) evictLocked(now time.Time) bool {
	const sample = 64
	var oldest *entry
	n := 0
	for e := range g.flows {
		if oldest == nil || e.active.Before(oldest.active) {
			oldest = e
		}
		if n++; n == sample {
			break
		}
	}
	if oldest == nil || now.Sub(oldest.active) < evictable {
		return false
	}
	delete(g.flows, oldest)
	oldest.evicted.Store(true)
	oldest.cancel()
	g.evicted++
	return true
}

// watch notes which flows are silent until ctx ends, then waits for the echoes.
func (g *registry) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			g.look(now)
		case <-ctx.Done():
			g.work.Wait()
			return
		}
	}
}

func (g *registry) look(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for e := range g.flows {
		if n := e.counters.Up.Load() + e.counters.Down.Load(); n != e.seen {
			e.seen, e.active = n, now
		}
	}
}

func (g *registry) stats() (open int, evicted, refused uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.flows), g.evicted, g.refused
}

// OpenFlow is a TCP flow that is open now.
type OpenFlow struct {
	Flow     flow.Flow
	Verdict  rule.Verdict
	Outbound string
	Start    time.Time
	Up, Down int64 // payload bytes so far
}

// Flows returns the TCP flows that are open, in no order.
func (r *Router) Flows() []OpenFlow {
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	list := make([]OpenFlow, 0, len(r.flows.flows))
	for e := range r.flows.flows {
		list = append(list, OpenFlow{
			Flow: e.flow, Verdict: e.verdict, Outbound: e.outbound, Start: e.start,
			Up: e.counters.Up.Load(), Down: e.counters.Down.Load(),
		})
	}
	return list
}
