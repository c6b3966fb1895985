package group

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tunroute/router/flow"
)

// proofs is how many targets in a row a member has to fail that another one reaches,
// to be bad for an answer that might have been about the target.
const proofs = 3

// side is a group for one network: a server may well serve TCP and not UDP.
type side struct {
	g       *Group
	network flow.Network
	view    atomic.Pointer[view]
	turn    atomic.Uint64 // of RoundRobin
	load    *loads        // of LeastFlows, else nil
	used    atomic.Bool   // somebody has asked for this network
	dirty   []atomic.Bool // by member: health is not that of a good member without failures

	mu     sync.Mutex // guards what follows
	health []health   // by member
	hash   *ring
}

// health is what is known of a member.
type health struct {
	fails  int    // in a row
	doubts int    // in a row, of different targets: see judgement.proof
	target uint64 // of the last doubt

	bad     bool
	cause   Cause
	err     error
	since   time.Time // when it became bad
	due     time.Time // when it is probed; the zero Time is never
	probing bool
	aside   bool          // it was slower than another, and nobody knows yet why: see side.suspect
	took    time.Duration // the last probe that succeeded
}

func newSide(g *Group, n flow.Network, hash *ring) *side {
	s := &side{g: g, network: n, hash: hash, dirty: make([]atomic.Bool, len(g.members)), health: make([]health, len(g.members))}
	if g.opts.Policy == LeastFlows {
		s.load = newLoads(g.weights)
	}
	now := time.Now()
	for i := range s.health {
		if n == flow.UDP && g.members[i].packets == nil {
			// Once and for all; there is nothing to probe.
			s.health[i] = health{bad: true, cause: NoUDP, since: now}
			s.dirty[i].Store(true)
		} else if g.opts.ProbeEvery > 0 {
			s.health[i].due = now
		}
	}
	s.publishLocked()
	return s
}

// publishLocked makes what is known the view to choose from.
func (s *side) publishLocked() {
	alive, first := make([]bool, len(s.health)), make([]bool, len(s.health))
	for i := range s.health {
		h := &s.health[i]
		alive[i], first[i] = !h.bad, !h.bad && !h.aside
	}
	if !slices.Contains(first, true) {
		first = alive
	}
	v := newView(s.g.opts.Policy, s.g.weights, first, s.hash)
	v.alive = alive
	for i := range alive {
		if alive[i] && !first[i] {
			v.aside = append(v.aside, int32(i))
		}
	}
	if s.g.opts.Policy == Fastest {
		now := int32(-1)
		if old := s.view.Load(); old != nil {
			now = old.best
		}
		v.best = fastest(v.good, now, s.tookLocked)
	}
	if s.load != nil {
		s.load.reset(v.good)
	}
	s.view.Store(v)
}

// unmeasured is longer than any probe takes.
const unmeasured = time.Hour

func (s *side) tookLocked(i int32) time.Duration {
	if t := s.health[i].took; t > 0 {
		return t
	}
	return unmeasured
}

func (s *side) took(i int32) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tookLocked(i)
}

// succeeded notes that a member has opened a flow, or answered a probe. It takes no
// lock where the member had been good before.
func (s *side) succeeded(i int32) {
	if !s.dirty[i].Load() {
		return
	}
	s.mu.Lock()
	h := &s.health[i]
	was := *h
	h.fails, h.doubts, h.aside = 0, 0, false
	h.bad, h.cause, h.err, h.since = false, None, nil, time.Time{}
	if was.bad {
		h.due = time.Time{}
		if s.g.opts.ProbeEvery > 0 {
			h.due = time.Now().Add(jitter(s.g.opts.ProbeEvery))
		}
	}
	if was.bad || was.aside {
		s.publishLocked()
	}
	s.dirty[i].Store(false)
	s.mu.Unlock()
	if was.bad && was.cause != NoUDP {
		s.tell("member of a group is good again", i, was.cause, slog.Duration("after", time.Since(was.since).Round(time.Millisecond)))
	}
}

// failed notes a failure of a member that is the member's.
func (s *side) failed(i int32, cause Cause, err error) {
	s.mu.Lock()
	h := &s.health[i]
	s.dirty[i].Store(true)
	h.fails++
	// A password does not become right by being tried again.
	if h.bad || h.fails >= s.g.opts.MaxFail || cause == Auth || cause == NoUDP {
		s.markLocked(i, cause, err)
		return
	}
	s.mu.Unlock()
}

// doubted notes an answer of a member that was not about the target: another member
// has reached it.
func (s *side) doubted(i int32, cause Cause, err error, target uint64) {
	s.mu.Lock()
	h := &s.health[i]
	s.dirty[i].Store(true)
	if h.doubts == 0 || h.target != target {
		h.doubts++
		h.target = target
	}
	if !h.bad && h.doubts >= max(proofs, s.g.opts.MaxFail) {
		s.markLocked(i, cause, err)
		return
	}
	s.mu.Unlock()
}

// markLocked makes a member bad, or keeps it so, and unlocks.
func (s *side) markLocked(i int32, cause Cause, err error) {
	h := &s.health[i]
	was := *h
	now := time.Now()
	h.cause, h.err = cause, err
	// Flows that try a bad member because there is no other do not put its probe off.
	if !was.bad || !was.due.After(now) {
		h.due = now.Add(jitter(s.g.opts.BadExpire))
	}
	if !was.bad {
		h.bad, h.since, h.aside = true, now, false
		s.publishLocked()
	}
	s.mu.Unlock()
	s.g.wakeRun()
	// Once for each time that it becomes bad; but a wrong password is something
	// that somebody has to do something about.
	if cause != NoUDP && (!was.bad || cause == Auth && was.cause != Auth) {
		text := "member of a group is bad"
		if cause == Auth {
			text = "member of a group refuses our user or password"
		}
		s.tell(text, i, cause, slog.Any("err", err))
	}
}

func (s *side) tell(text string, i int32, cause Cause, more slog.Attr) {
	s.g.log.Warn(text, "group", s.g.opts.Name, "member", s.g.members[i].name,
		"net", s.network.String(), "cause", cause.String(), more)
}

// suspect has a good member probed soon: it was slow, and nobody knows why. Until the
// probe has found out, which takes a member that is well a round trip or two, others
// are chosen before it, so that not every other flow waits as long as this one did. But
// where the place of a flow is its own, by hash, it does not move for that.
func (s *side) suspect(i int32) {
	s.mu.Lock()
	h := &s.health[i]
	if !h.bad && !h.probing && (h.due.IsZero() || h.due.After(time.Now())) {
		h.due = time.Now()
		if p := s.g.opts.Policy; p != HashSource && p != HashTarget {
			h.aside = true
			s.dirty[i].Store(true)
			s.publishLocked()
		}
	}
	s.mu.Unlock()
	s.g.wakeRun()
}

// jitter keeps what began together from staying together: it returns d, more or less
// by a fifth.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.4*float64(d))
}

// leastBad returns the bad members, the least bad first: those that may have been so
// by chance, and of these the one that is probed next. One that says that it has no UDP
// comes last, and one that never can have it not at all.
func (s *side) leastBad() []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bad []int32
	for i := range s.health {
		if s.health[i].bad && (s.network == flow.TCP || s.g.members[i].packets != nil) {
			bad = append(bad, int32(i))
		}
	}
	rank := func(i int32) float64 {
		switch s.health[i].cause {
		case Protocol:
			return 1
		case Auth:
			return 2
		case NoUDP:
			return 3
		}
		return 0
	}
	sortBy(bad, func(i int32) float64 { return float64(s.health[i].due.UnixNano()) })
	sortBy(bad, rank)
	return bad
}

func (s *side) status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, 0, len(s.health))
	for i, h := range s.health {
		list = append(list, Status{Member: s.g.members[i].name, Network: s.network, Bad: h.bad, Cause: h.cause, Err: h.err, Since: h.since, Took: h.took})
	}
	return list
}

func (s *side) inherit(from *side, same func(string) bool) {
	from.mu.Lock()
	known := make(map[string]health)
	for i, h := range from.health {
		known[from.g.members[i].name] = h
	}
	from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.g.members {
		h, ok := known[m.name]
		if !ok || !same(m.name) || s.network == flow.UDP && m.packets == nil {
			continue
		}
		h.probing, h.aside = false, false
		switch {
		case h.bad && h.due.IsZero():
			h.due = time.Now()
		case !h.bad:
			h.due = s.health[i].due
		}
		s.health[i] = h
		s.dirty[i].Store(h.bad || h.fails+h.doubts > 0)
	}
	s.used.Store(from.used.Load())
	s.publishLocked()
}
