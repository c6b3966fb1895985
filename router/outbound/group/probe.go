package group

import (
	"context"
	"sync"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// probeTries is how long a probe may take before it has failed, in Options.Try: to
// connect and to negotiate may take a flow as long, each, before another member is tried
// beside it.
const probeTries = 2

// maxProbes at a time: they should not be noticed.
const maxProbes = 16

// wakeRun has Run look again.
func (g *Group) wakeRun() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Run probes members until ctx ends, and returns when all probes have: those that are
// bad, when they have been so for [Options.BadExpire], those that were slow, and all of
// them each [Options.ProbeEvery]. It is called once at a time.
func (g *Group) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, maxProbes)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := time.Now().Add(time.Hour)
		for _, s := range []*side{g.tcp, g.udp} {
			list, at := s.due(time.Now())
			for _, i := range list {
				running.Go(func() {
					select {
					case slots <- struct{}{}:
						s.probe(ctx, i)
						<-slots
					case <-ctx.Done():
						s.probed(i)
					}
				})
			}
			if !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		timer.Reset(time.Until(next))
		select {
		case <-timer.C:
		case <-g.wake:
		case <-ctx.Done():
			return
		}
	}
}

// due returns the members that are to be probed now, which are being probed from now
// on, and when the next one is; the zero Time where there is none.
func (s *side) due(now time.Time) (list []int32, next time.Time) {
	if s.network == flow.UDP && !s.used.Load() {
		return nil, time.Time{} // nobody has asked for UDP, so nobody has to know
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.health {
		h := &s.health[i]
		switch {
		case h.due.IsZero() || h.probing:
		case !h.due.After(now):
			h.probing = true
			list = append(list, int32(i))
		case next.IsZero() || h.due.Before(next):
			next = h.due
		}
	}
	return list, next
}

// probe finds out how a member is.
func (s *side) probe(ctx context.Context, i int32) {
	defer s.g.wakeRun()
	defer s.probed(i)
	limited, cancel := context.WithTimeout(ctx, probeTries*s.g.opts.Try)
	defer cancel()
	begun := time.Now()
	err := s.ask(limited, s.g.members[i])
	took := time.Since(begun)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		j := judge(s.network, err)
		if j.cause == None {
			j.cause = Unreached
		}
		s.failed(i, j.cause, err)
		return
	}
	s.measured(i, took)
	s.succeeded(i)
}

// ask is what a probe does.
func (s *side) ask(ctx context.Context, m *member) error {
	p := s.g.opts.Probe
	switch {
	case s.network == flow.UDP:
		conn, err := m.packets.OpenUDP(ctx)
		if err == nil {
			conn.Close()
		}
		return err
	case p.Target != flow.Target{}:
		conn, err := m.dialer.DialTCP(ctx, p.Target)
		switch {
		case err == nil:
			conn.Close()
		case outbound.Refused(err): // it was reached
			return nil
		}
		return err
	case m.prober != nil:
		return m.prober.Probe(ctx, !p.ConnectOnly)
	}
	return nil
}

// probed notes that a probe has ended, and when the next one is.
func (s *side) probed(i int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.health[i]
	h.probing = false
	if h.aside {
		h.aside = false
		s.publishLocked()
	}
	if !h.bad {
		h.due = time.Time{}
		if s.g.opts.ProbeEvery > 0 {
			h.due = time.Now().Add(jitter(s.g.opts.ProbeEvery))
		}
	}
}

// measured notes how long a probe took: the new one counts a quarter, so that one slow
// probe does not make a slow member.
func (s *side) measured(i int32, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.health[i]
	if h.took == 0 {
		h.took = took
	} else {
		h.took += (took - h.took) / 4
	}
	h.took = max(h.took, 1)
	if s.g.opts.Policy == Fastest {
		s.publishLocked()
	}
}
