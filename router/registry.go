package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
	"tunroute/router/udpnat"
)

var (
	// ErrLimit is what a flow is refused with that is one too many.
	ErrLimit = limit.ErrLimit

	errFlowLimit = fmt.Errorf("%w: too many flows, and none of them idle", ErrLimit)
	errEvicted   = errors.New("idle, and made room for another flow")
	errIdle      = errors.New("nothing came from either side for as long as timeouts.tcp-idle says")
	errHalfClose = errors.New("one side had ended, and nothing came for as long as timeouts.half-close says")
)

// evictable is how long a flow must have been silent before another one may
// have its place. Shorter silences are part of most conversations.
const evictable = time.Minute

// watchInterval is how exactly the silence of flows is known.
const watchInterval = 5 * time.Second

// registry keeps the TCP flows that are open, up to a limit, and ends those that have
// been silent for too long.
type registry struct {
	limit           int
	idle, halfClose time.Duration   // how long is too long, and when one direction has ended; 0: never
	work            sync.WaitGroup  // echoes, and data connections of FTP
	tick            func(time.Time) // is called with each look; may be nil

	mu               sync.Mutex
	flows            map[*tcpFlow]struct{}
	evicted, refused uint64
}

// tcpFlow is a TCP flow and what has to be given back when it ends.
type tcpFlow struct {
	r        *Router
	rec      Record // up to its Outbound and Start it does not change once the flow is counted
	release  func()
	held     held
	pipe     *limit.Pipe // nil: none
	counters relay.Counters
	cut      atomic.Pointer[cut] // why we have ended it; nil if we have not
	relayed  atomic.Bool         // it is connected on both sides
	upstream outbound.Conn       // that is to be closed when the flow has ended; else nil
	data     atomic.Int32        // of FTP: its data connections, during which it is silent

	// guarded by registry.mu
	cancel  func(error)
	seen    int64     // bytes both ways when last looked at
	active  time.Time // when they had changed
	watched bool      // it was connected when last looked at
}

// cut is an end that a registry has made.
type cut struct {
	end End
	err error
}

// shares has f use a Pipe, nil for none, until it ends.
func (f *tcpFlow) shares(p *limit.Pipe) {
	if f.pipe = p; p != nil {
		f.counters.UpLimit, f.counters.DownLimit = p.Up, p.Down
	}
}

func (g *registry) init(limit int, idle, halfClose time.Duration) {
	g.limit, g.idle, g.halfClose = limit, idle, halfClose
	g.flows = make(map[*tcpFlow]struct{})
}

// add takes a flow in, which cancel ends. At the limit, an idle flow makes room;
// if there is none, ok is false.
func (g *registry) add(f *tcpFlow, cancel func(error)) (ok bool) {
	f.active, f.cancel = f.rec.Start, cancel
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.flows) >= g.limit && !g.evictLocked(time.Now()) {
		g.refused++
		return false
	}
	g.flows[f] = struct{}{}
	return true
}

// cancelBy changes what cancels a flow.
func (g *registry) cancelBy(f *tcpFlow, cancel func(error)) {
	g.mu.Lock()
	f.cancel = cancel
	c := f.cut.Load()
	g.mu.Unlock()
	if c != nil { // by what did so before
		cancel(c.err)
	}
}

// remove takes a flow out, if it is in.
func (g *registry) remove(f *tcpFlow) {
	g.mu.Lock()
	delete(g.flows, f)
	if len(g.flows) == 0 {
		g.flows = make(map[*tcpFlow]struct{}) // a map keeps its size for ever
	}
	g.mu.Unlock()
}

// evictLocked ends the flow that has been silent for longest among some taken at
// random: map order gives them, and looking at all would cost the most when
// there is the least time.
func (g *registry) evictLocked(now time.Time) bool {
	const sample = 64
	var oldest *tcpFlow
	n := 0
	for f := range g.flows {
		if oldest == nil || f.active.Before(oldest.active) {
			oldest = f
		}
		if n++; n == sample {
			break
		}
	}
	if oldest == nil || now.Sub(oldest.active) < evictable {
		return false
	}
	g.cutLocked(oldest, EndLimit, errEvicted)
	g.evicted++
	return true
}

// cutLocked ends a flow, which does not count any more.
func (g *registry) cutLocked(f *tcpFlow, end End, err error) {
	delete(g.flows, f)
	f.cut.Store(&cut{end, err})
	f.cancel(err)
}

// interval is how often flows are looked at.
func (g *registry) interval() time.Duration {
	d := watchInterval
	for _, limit := range []time.Duration{g.idle, g.halfClose} {
		if limit > 0 {
			d = min(d, max(limit/8, 10*time.Millisecond))
		}
	}
	return d
}

// watch notes which flows are silent until ctx ends, then waits for the work.
func (g *registry) watch(ctx context.Context) {
	tick := time.NewTicker(g.interval())
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			g.look(now)
			if g.tick != nil {
				g.tick(now)
			}
		case <-ctx.Done():
			g.work.Wait()
			return
		}
	}
}

// look takes note of which flows have moved bytes, and ends those that have been silent
// for too long. No flow has a timer, and bytes that move touch nothing but their counters;
// to look at 16,384 flows takes a few milliseconds (BenchmarkLook), in small parts, so that
// flows that come or end meanwhile need not wait.
func (g *registry) look(now time.Time) {
	const part = 256
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for f := range g.flows {
		if n++; n%part == 0 { // a range over a map may meet changes
			g.mu.Unlock()
			g.mu.Lock()
		}
		if n := f.counters.Up.Load() + f.counters.Down.Load(); n != f.seen || f.data.Load() > 0 {
			f.seen, f.active = n, now
			continue
		}
		if !f.watched {
			// How long its dial may take is for others to say.
			if f.relayed.Load() {
				f.watched, f.active = true, now
			}
			continue
		}
		silent := now.Sub(f.active)
		switch {
		case g.halfClose > 0 && silent >= g.halfClose && f.counters.OneWay.Load():
			g.cutLocked(f, EndHalf, errHalfClose)
		case g.idle > 0 && silent >= g.idle:
			g.cutLocked(f, EndIdle, errIdle)
		}
	}
}

func (g *registry) stats() (open int, evicted, refused uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.flows), g.evicted, g.refused
}

// OpenFlow is a flow that is open now.
type OpenFlow struct {
	Flow     flow.Flow
	Verdict  rule.Verdict
	Outbound string
	Start    time.Time
	Up, Down int64 // payload bytes so far
}

// Flows returns the flows that are open, in no order.
func (r *Router) Flows() []OpenFlow {
	var open []udpnat.Record
	for _, t := range r.tables() {
		open = append(open, t.Open()...)
	}
	list := make([]OpenFlow, 0, len(open))
	for _, u := range open {
		// What decided does not change while the flow is open.
		rec := u.Decision.Tag.(*Record)
		list = append(list, OpenFlow{Flow: rec.Flow, Verdict: rec.Verdict, Outbound: rec.Outbound, Start: u.Start, Up: u.Up, Down: u.Down})
	}
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	for f := range r.flows.flows {
		list = append(list, OpenFlow{
			Flow: f.rec.Flow, Verdict: f.rec.Verdict, Outbound: f.rec.Outbound, Start: f.rec.Start,
			Up: f.counters.Up.Load(), Down: f.counters.Down.Load(),
		})
	}
	return list
}
