package udpnat

import "time"

// wheel says which sessions and paths may have expired, without a look at all the
// others and without a timer for each. A datagram does not touch it: an entry that
// has been used meanwhile is put off when its time has come. It has no lock of its
// own.
type wheel struct {
	tick  int64 // nanoseconds
	now   int64 // ticks
	slots []due // heads of rings; an entry that is due at tick n is in slot n modulo len
}

// due is an entry of a wheel, one of session and path. It is in a ring or in none.
type due struct {
	prev, next *due
	session    *session
	path       *path
}

// newWheel returns a wheel for entries that are due within horizon from now, in
// nanoseconds of a clock that never goes back.
func newWheel(tick, horizon time.Duration, now int64) *wheel {
	w := &wheel{tick: int64(tick), now: now / int64(tick)}
	w.slots = make([]due, horizon/tick+3) // a part of a tick at both ends, and the slot at hand
	for i := range w.slots {
		s := &w.slots[i]
		s.prev, s.next = s, s
	}
	return w
}

func (d *due) linked() bool { return d.next != nil }

func (d *due) unlink() {
	if d.next != nil {
		d.prev.next, d.next.prev = d.next, d.prev
		d.prev, d.next = nil, nil
	}
}

// add puts d where it will be met in the first tick that begins at or after at, in
// nanoseconds. What is beyond the horizon is met there, too early.
func (w *wheel) add(d *due, at int64) {
	d.unlink()
	tick := (at + w.tick - 1) / w.tick
	tick = min(max(tick, w.now+1), w.now+int64(len(w.slots))-1)
	s := &w.slots[tick%int64(len(w.slots))]
	d.prev, d.next = s.prev, s
	d.prev.next, s.prev = d, d
}

// advance takes out all that was due until now, in nanoseconds, and perhaps some
// that is not, and asks of each when it is due again: 0 is never.
func (w *wheel) advance(now int64, again func(*due) int64) {
	to := now / w.tick
	w.now = max(w.now, to-int64(len(w.slots))) // after a sleep of the machine once around is enough
	for w.now < to {
		w.now++
		s := &w.slots[w.now%int64(len(w.slots))]
		for s.next != s {
			d := s.next
			d.unlink()
			if at := again(d); at != 0 {
				w.add(d, at)
			}
		}
	}
}
