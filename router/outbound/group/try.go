package group

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"tunroute/router/outbound"
)

// attempt is a try that has ended.
type attempt[T io.Closer] struct {
	member int32
	conn   T
	err    error
	took   time.Duration
}

// walk is the order in which the members are tried for one flow.
type walk struct {
	s                *side
	flow             *outbound.Flow // nil where nobody knows
	key              uint64
	tried            []int32
	rest             []int32 // to be tried next
	begun, good, bad bool    // rest has been the first, the good ones, the bad ones
}

// next returns a member that has not been tried, -1 where there is none. The good come
// first. The bad ones are for when no good one is left, and only if bad is true.
func (w *walk) next(bad bool) int32 {
	if !w.begun {
		w.begun = true
		if first := w.begin(); first >= 0 {
			w.tried = append(w.tried, first)
			return first
		}
	}
	for {
		for len(w.rest) > 0 {
			i := w.rest[0]
			w.rest = w.rest[1:]
			if !slices.Contains(w.tried, i) { // it may have become bad after it was tried
				w.tried = append(w.tried, i)
				return i
			}
		}
		switch {
		case !w.good:
			w.rest, w.good = w.s.rest(w.tried, w.key), true
		case bad && !w.bad:
			// And those that have become good since rest was made.
			w.rest, w.bad = append(w.s.rest(w.tried, w.key), w.s.leastBad()...), true
		default:
			return -1
		}
	}
}

// begin returns the first member. A flow that has gone through one before goes through
// it again: the connection and the datagrams of an association behind us have to come
// from the same address.
func (w *walk) begin() int32 {
	if was := w.flow.Chosen(w.s.g.opts.Name); was != "" {
		for i, m := range w.s.g.members {
			if m.name == was && w.s.view.Load().alive[i] {
				return int32(i)
			}
		}
	}
	return w.s.choose(w.key)
}

// maxAnswers is how many members may say that a target cannot be reached before they
// are believed. More would take the client's time: danted takes 3 s for a host that is
// down, and microsocks says "general failure" of every name that does not exist.
const maxAnswers = 3

// try opens a flow through one member after the other. When it returns, all attempts
// but the one that succeeded have ended, and what they had opened is closed.
func try[T io.Closer](client context.Context, s *side, key, target uint64, open func(context.Context, *member) (T, error)) (T, int32, error) {
	s.used.Store(true)
	ctx, cancel := context.WithTimeout(client, s.g.opts.Deadline)
	defer cancel()
	var (
		w       = walk{s: s, flow: outbound.FlowOf(client), key: key}
		results = make(chan attempt[T])
		running int
		won     *attempt[T]
		final   bool // another member would hear the same
		answers int  // of members that work, and do not reach the target
		doubts  []attempt[T]
		failure = &Error{Group: s.g.opts.Name}
	)
	start := func(bad bool) {
		i := w.next(bad)
		if i < 0 {
			return
		}
		running++
		s.count(i, 1)
		go func() {
			begun := time.Now()
			conn, err := open(ctx, s.g.members[i])
			results <- attempt[T]{i, conn, err, time.Since(begun)}
		}()
	}
	patience := s.g.opts.Try
	if h := s.g.opts.Hedge; h > 0 && h < patience {
		patience = h
	}
	start(true)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for running > 0 {
		select {
		case <-timer.C:
			if won == nil && !final && answers < maxAnswers && ctx.Err() == nil {
				start(false)
				timer.Reset(patience)
			}
		case a := <-results:
			running--
			switch {
			case a.err == nil && won == nil:
				won = &a
				s.succeeded(a.member)
				cancel()
				continue
			case a.err == nil: // two answered at once
				s.count(a.member, -1)
				a.conn.Close()
				continue
			}
			s.count(a.member, -1)
			if won != nil || final || ctx.Err() != nil {
				if s.cutShort(a.member, a.err, a.took) {
					doubts = append(doubts, a)
				}
				if !final {
					failure.add(s, a.member, a.err)
				}
				continue
			}
			failure.add(s, a.member, a.err)
			j := judge(s.network, a.err)
			switch {
			case !j.next:
				final = true
				failure.told = a.err
				cancel()
				continue
			case j.cause == None:
				answers++
			case j.proof:
				answers++
				doubts = append(doubts, a)
			default:
				s.failed(a.member, j.cause, a.err)
			}
			if answers < maxAnswers {
				// What a good member says of the target, a bad one need not
				// be asked.
				start(answers == 0 && running == 0)
				timer.Reset(patience)
			}
		}
	}
	if won != nil {
		for _, a := range doubts {
			s.doubted(a.member, judge(s.network, a.err).cause, a.err, target)
		}
		w.flow.Chose(s.g.opts.Name, s.g.members[won.member].name)
		return won.conn, won.member, nil
	}
	var none T
	failure.settle(client, s)
	return none, -1, failure
}

// cutShort judges a try that was ended because another one had won, or because of the
// end of the flow. It says whether there is doubt about the member. Its error may well
// be its own all the same, which is lost then; it will come again.
func (s *side) cutShort(i int32, err error, took time.Duration) (doubt bool) {
	if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	j := judge(s.network, err)
	switch {
	case took < s.g.opts.Try:
		// Slow, or going to be silent for ever: a probe finds out.
		if !j.proof && (s.g.opts.Hedge > 0 && took >= s.g.opts.Hedge || took >= suspicious) {
			s.suspect(i)
		}
	case j.proof:
		return true
	case j.cause == Silence, j.cause == Connect:
		s.failed(i, j.cause, fmt.Errorf("no answer within %v: %w", took.Round(time.Millisecond), os.ErrDeadlineExceeded))
	}
	return false
}

// suspicious is how long a server takes at the most that is well, to connect and to
// negotiate: longer than round trips are.
const suspicious = time.Second

// add notes a try that has failed.
func (e *Error) add(s *side, i int32, err error) {
	e.Tries = append(e.Tries, Try{s.g.members[i].name, err})
}

// settle finds what says most of the errors.
func (e *Error) settle(client context.Context, s *side) {
	if client.Err() != nil {
		e.told = context.Cause(client) // a client that gave up, and hears nothing
		return
	}
	if e.told != nil {
		return
	}
	rank := -1
	for _, t := range e.Tries {
		if r := telling(s, t.Err); r > rank {
			rank, e.told = r, t.Err
		}
	}
	if len(e.Tries) == 0 { // there is always one to try but for UDP
		e.told = outbound.ErrNoUDP
	}
}

// telling is how much an error says about the target: what a member has found out
// about it says more than that a member failed, and that more than that it has no UDP,
// which is so only if all say it.
func telling(s *side, err error) int {
	switch j := judge(s.network, err); {
	case !j.next:
		return 5
	case j.cause == None:
		return 4
	case j.proof:
		return 3
	case j.cause != NoUDP:
		return 2
	case outbound.HungUp(err): // not surely so
		return 1
	}
	return 0
}
