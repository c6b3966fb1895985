package router

import (
	"errors"
	"time"

	"tunroute/router/flow"
	"tunroute/router/limit"
)

// held are the limits that a flow counts for.
type held []limit.Held

func (h held) release() {
	for _, l := range h {
		l.Release()
	}
}

// admit counts a flow for the limits of its rule and of all flows, until it is released.
// What is rejected does not count: it costs nothing. It does not block; without limits it
// does not allocate.
func (s *Snapshot) admit(f *flow.Flow, index int, out *Outbound, now time.Time) (held, error) {
	if out.rejects() {
		return nil, nil
	}
	return s.count(f, s.options(index).Limit, now)
}

// count counts a flow for a limit of its own, which may be nil, and for those of all
// flows: for each of them or, where one refuses it, for none.
func (s *Snapshot) count(f *flow.Flow, own *limit.Limiter, now time.Time) (held, error) {
	if own == nil && len(s.more.Limits) == 0 {
		return nil, nil
	}
	taken := make(held, 0, len(s.more.Limits)+1)
	take := func(l *limit.Limiter) error {
		h, err := l.Take(f, now)
		if err != nil {
			for _, h := range taken {
				h.Undo()
			}
			return err
		}
		taken = append(taken, h)
		return nil
	}
	if own != nil {
		if err := take(own); err != nil {
			return nil, err
		}
	}
	for _, l := range s.more.Limits {
		if err := take(l); err != nil {
			return nil, err
		}
	}
	return taken, nil
}

// expire has the limits forget who has no flow any more.
func (s *Snapshot) expire(now time.Time) {
	for _, l := range s.more.Limits {
		l.Expire(now)
	}
	for _, o := range s.more.Rules {
		if o.Limit != nil {
			o.Limit.Expire(now)
		}
		if o.Bandwidth != nil {
			o.Bandwidth.Expire(now)
		}
	}
}

// warnOfLimit tells that a limit refuses flows, where rec is of one: not of each.
func (r *Router) warnOfLimit(rec *Record) {
	var met *limit.Error
	if rec.End != EndLimit || !errors.As(rec.Err, &met) {
		return
	}
	if refused, ok := met.Limiter.Warn(time.Now()); ok {
		args := []any{"limit", met.Limiter.Name(), "src", source(rec.Flow.Source)}
		if rec.Flow.User != "" {
			args = append(args, "user", rec.Flow.User)
		}
		if rec.Verdict.Line > 0 {
			args = append(args, "line", rec.Verdict.Line)
		}
		r.log.Warn("a limit refuses flows", append(args, "refused", refused)...)
	}
}
