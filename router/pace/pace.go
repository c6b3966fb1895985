package pace

import (
	"sync"
	"time"
)

// A quantum is what a bucket fills with in about five milliseconds: so long flows in line
// wait for each other. It is not less than a full packet, nor more than a relay moves at
// once.
const (
	quantaPerSecond = 200
	minQuantum      = 1500
	maxQuantum      = 64 << 10

	// Of what has not been used, a tenth of a second's worth can be used later: timers
	// may be that late on a busy machine, and nothing of the bandwidth is lost.
	burstsPerSecond = 10
	minBurst        = 16 << 10
)

// Bucket is a bandwidth that flows share. Its methods are safe for concurrent use.
type Bucket struct {
	rate, burst, quantum float64 // bytes per second, and bytes

	mu          sync.Mutex // guards what follows, and the Shares
	filled      float64
	at          time.Time // when it was filled so
	first, last *Share    // that wait
	timer       *time.Timer
}

// New returns a full Bucket of so many bytes per second, at least one.
func New(rate int64) *Bucket {
	r := float64(max(rate, 1))
	b := &Bucket{
		rate:    r,
		burst:   max(r/burstsPerSecond, minBurst),
		quantum: min(max(r/quantaPerSecond, minQuantum), maxQuantum),
		at:      time.Now(),
	}
	b.filled = b.burst
	return b
}

// Share is a flow's place at a Bucket, in one direction.
type Share struct {
	b    *Bucket
	wake func()

	// guarded by b.mu
	want    float64 // while it waits
	given   float64 // and not used yet
	waiting bool
	left    bool
	next    *Share
}

// Join returns a Share. When Take has returned 0, wake is called once it is worth to call
// it again: from another goroutine, with no lock of this package held; it must not block.
// It may be nil for who calls Allow only.
func (b *Bucket) Join(wake func()) *Share { return &Share{b: b, wake: wake} }

// Take returns how many bytes, up to want, may be moved now; 0 says to wait for wake. It
// does not block.
func (s *Share) Take(want int) int {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	w := min(float64(want), b.quantum)
	if s.given > 0 {
		// What it asked for before, it may not need now.
		n := min(w, s.given)
		b.filled += s.given - n
		s.given = 0
		return int(n)
	}
	if b.takeLocked(w) {
		return int(w)
	}
	b.waitLocked(s, w)
	return 0
}

// Allow says whether a datagram of n bytes may be sent now. It does not block.
func (s *Share) Allow(n int) bool {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case s.given >= float64(n):
		s.given -= float64(n)
		return true
	case !s.waiting && b.takeLocked(float64(n)-s.given):
		s.given = 0
		return true
	}
	b.waitLocked(s, b.quantum)
	return false
}

// Return gives back n bytes that were taken and could not be moved.
func (s *Share) Return(n int) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.filled += float64(n)
	s.b.armLocked()
}

// Leave gives up the Share: wake is not called any more, but may be running.
func (s *Share) Leave() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.left = true
	s.b.filled += s.given
	s.given = 0
}

// takeLocked takes n bytes, unless somebody waits or there are not so many.
func (b *Bucket) takeLocked(n float64) bool {
	if b.first != nil {
		return false
	}
	b.fillLocked()
	if b.filled < n {
		return false
	}
	b.filled -= n
	return true
}

func (b *Bucket) fillLocked() {
	now := time.Now()
	b.filled = min(b.burst, b.filled+b.rate*now.Sub(b.at).Seconds())
	b.at = now
}

// waitLocked puts s in line for n bytes, if it is not.
func (b *Bucket) waitLocked(s *Share, n float64) {
	if s.waiting {
		return
	}
	s.waiting, s.want = true, n
	if b.first == nil {
		b.first = s
	} else {
		b.last.next = s
	}
	b.last = s
	if b.first == s {
		b.armLocked()
	}
}

// armLocked has the timer fire when there is enough for whoever is first.
func (b *Bucket) armLocked() {
	if b.first == nil {
		return
	}
	d := time.Duration((b.first.want - b.filled) / b.rate * float64(time.Second))
	d = max(d-time.Since(b.at), 0) + time.Microsecond // or a rounding would have it fire twice
	if b.timer == nil {
		b.timer = time.AfterFunc(d, b.serve)
	} else {
		b.timer.Reset(d)
	}
}

// serve gives to those in line as long as there is enough, and wakes them.
func (b *Bucket) serve() {
	b.mu.Lock()
	b.fillLocked()
	var woken *Share
	tail := &woken
	for s := b.first; s != nil && (s.left || s.want <= b.filled); s = b.first {
		b.first, s.next, s.waiting = s.next, nil, false
		if s.left {
			continue
		}
		b.filled -= s.want
		s.given += s.want
		if s.wake != nil {
			*tail, tail = s, &s.next
		}
	}
	b.armLocked()
	// The list is ours while the shares do not wait; who is woken may wait again.
	var wakes []func()
	for s := woken; s != nil; {
		next := s.next
		s.next = nil
		wakes = append(wakes, s.wake)
		s = next
	}
	b.mu.Unlock()
	for _, wake := range wakes {
		wake()
	}
}
