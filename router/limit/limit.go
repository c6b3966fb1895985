package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"tunroute/router/flow"
)

// Per is whose flows count together.
type Per uint8

// What flows can have in common.
const (
	All    Per = iota
	Source     // the address of the client
	User       // who it is; where nobody is asked, the address
)

var ofOne = [...]string{All: "", Source: " of one source", User: " of one user"}

// Rate is how many in how long.
type Rate struct {
	N   int
	Per time.Duration
}

// String returns the rate as the config has it: 10/s, 600/m, 5/10s.
func (r Rate) String() string {
	unit := r.Per.String()
	switch r.Per {
	case time.Second:
		unit = "s"
	case time.Minute:
		unit = "m"
	case time.Hour:
		unit = "h"
	}
	return strconv.Itoa(r.N) + "/" + unit
}

// step is how long one takes to recover.
func (r Rate) step() int64 { return int64(r.Per) / int64(r.N) }

// Options configure a [Limiter]. Name is required, and one of the limits.
type Options struct {
	Name     string // what sets the limits, for messages
	Per      Per
	Sessions int  // at once; 0: no limit
	Rate     Rate // of new ones; the zero Rate: no limit
}

// maxEntries bounds what a client with many addresses costs: some 10 MB.
const maxEntries = 1 << 16

// warnEvery is how often a Limiter asks to be told of.
const warnEvery = time.Minute

// Limiter counts flows. Its methods are safe for concurrent use.
type Limiter struct {
	o     Options
	epoch time.Time

	mu      sync.Mutex // guards what follows
	entries map[who]*entry
	refused uint64
	told    uint64 // of refused, by Warn
	warned  time.Time
}

// who is whose flows are counted.
type who struct {
	addr netip.Addr
	user string
	rest bool // all who came when there were too many
}

type entry struct {
	who  who
	open int
	tat  int64 // nanoseconds from epoch: when the rate has recovered
}

// New returns a Limiter without a flow.
func New(o Options) *Limiter {
	// From long ago on, so that what has no entry has recovered.
	return &Limiter{o: o, epoch: time.Now().Add(-time.Hour), entries: make(map[who]*entry)}
}

// ErrLimit is what an [Error] unwraps to.
var ErrLimit = errors.New("a limit is reached")

// Error says which limit a flow has met.
type Error struct {
	Limiter *Limiter
	rate    bool
}

// Error returns the limit, and what sets it.
func (e *Error) Error() string {
	o := e.Limiter.o
	if e.rate {
		return fmt.Sprintf("more than %s new flows%s, which %s allows", o.Rate, ofOne[o.Per], o.Name)
	}
	return fmt.Sprintf("more than %d flows%s, which %s allows", o.Sessions, ofOne[o.Per], o.Name)
}

// Unwrap returns [ErrLimit].
func (e *Error) Unwrap() error { return ErrLimit }

// Name returns what sets the limits.
func (l *Limiter) Name() string { return l.o.Name }

// whose returns who f counts for.
func whose(per Per, f *flow.Flow) who {
	switch {
	case per == User && f.User != "":
		return who{user: f.User}
	case per != All:
		return who{addr: f.Source.Addr().Unmap().WithZone("")}
	}
	return who{}
}

// Held is a flow that counts. The zero Held is none.
type Held struct {
	l *Limiter
	e *entry
}

// Take counts a flow until it is released. The error is an [*Error]. It does not block.
func (l *Limiter) Take(f *flow.Flow, now time.Time) (Held, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entryLocked(whose(l.o.Per, f))
	if l.o.Sessions > 0 && e.open >= l.o.Sessions {
		l.refused++
		return Held{}, &Error{Limiter: l}
	}
	if r := l.o.Rate; r.N > 0 {
		at := int64(now.Sub(l.epoch))
		next := max(e.tat, at) + r.step()
		if next > at+int64(r.Per) {
			l.refused++
			return Held{}, &Error{Limiter: l, rate: true}
		}
		e.tat = next
	}
	e.open++
	return Held{l, e}, nil
}

func (l *Limiter) entryLocked(w who) *entry {
	e := l.entries[w]
	if e == nil && len(l.entries) >= maxEntries {
		w = who{rest: true}
		e = l.entries[w]
	}
	if e == nil {
		e = &entry{who: w}
		l.entries[w] = e
	}
	return e
}

// Undo makes as if the flow had never been taken.
func (h Held) Undo() {
	if h.l == nil {
		return
	}
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.l.o.Rate.N > 0 {
		h.e.tat -= h.l.o.Rate.step()
	}
	h.releaseLocked()
}

// Release ends a flow.
func (h Held) Release() {
	if h.l == nil {
		return
	}
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	h.releaseLocked()
}

func (h Held) releaseLocked() {
	h.e.open--
	if h.e.open == 0 && h.l.o.Rate.N == 0 {
		h.l.forgetLocked(h.e)
	}
}

func (l *Limiter) forgetLocked(e *entry) {
	delete(l.entries, e.who)
	if len(l.entries) == 0 {
		l.entries = make(map[who]*entry) // a map keeps its size for ever
	}
}

// Expire forgets those whose rate has recovered and who have no flow.
func (l *Limiter) Expire(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := int64(now.Sub(l.epoch))
	for _, e := range l.entries {
		if e.open == 0 && e.tat <= at {
			l.forgetLocked(e)
		}
	}
}

// Entries returns how many sources or users are known.
func (l *Limiter) Entries() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// Warn says whether it is time to tell somebody that flows are refused, and how many were
// since it last was. It is time at most once a minute.
func (l *Limiter) Warn(now time.Time) (refused uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	refused = l.refused - l.told
	if refused == 0 || !l.warned.IsZero() && now.Sub(l.warned) < warnEvery {
		return 0, false
	}
	l.told, l.warned = l.refused, now
	return refused, true
}
