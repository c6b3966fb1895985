package udpnat

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestWheelAgreesWithAList: random entries come when they are due, or within a
// tick, none is lost, and none comes after it was taken out.
func TestWheelAgreesWithAList(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tick := time.Duration(1+rnd.IntN(1000)) * time.Millisecond
		horizon := time.Duration(1+rnd.IntN(50))*tick + time.Duration(rnd.IntN(int(tick)))
		now := time.Unix(1_700_000_000, rnd.Int64N(1e9))
		w := newWheel(tick, horizon, now.UnixNano())
		dues := map[*due]time.Time{}
		early, came := 0, 0
		random := func() *due {
			for d := range dues {
				return d
			}
			return nil
		}
		for range 5000 {
			switch rnd.IntN(6) {
			case 0, 1: // a new one
				d := new(due)
				dues[d] = now.Add(time.Duration(rnd.Int64N(int64(horizon) + 1)))
				w.add(d, dues[d].UnixNano())
			case 2: // another time
				if d := random(); d != nil {
					dues[d] = now.Add(time.Duration(rnd.Int64N(int64(horizon) + 1)))
					w.add(d, dues[d].UnixNano())
				}
			case 3: // taken out
				if d := random(); d != nil {
					d.unlink()
					delete(dues, d)
				}
			default:
				step := time.Duration(rnd.Int64N(int64(2 * tick)))
				if rnd.IntN(100) == 0 {
					step = 3 * horizon // the machine has slept
				}
				now = now.Add(step)
				w.advance(now.UnixNano(), func(d *due) int64 {
					at, ok := dues[d]
					if !ok {
						t.Fatalf("seed %d: an entry came that is not in", seed)
					}
					if at.After(now) {
						early++
						return at.UnixNano()
					}
					came++
					if rnd.IntN(3) == 0 { // used meanwhile
						dues[d] = now.Add(1 + time.Duration(rnd.Int64N(int64(horizon))))
						return dues[d].UnixNano()
					}
					delete(dues, d)
					return 0
				})
				for d, at := range dues {
					if now.Sub(at) > tick {
						t.Fatalf("seed %d: an entry is %v late, tick %v", seed, now.Sub(at), tick)
					}
					if !d.linked() {
						t.Fatalf("seed %d: an entry is lost", seed)
					}
				}
			}
		}
		if early > came/2 {
			t.Errorf("seed %d: %d entries came too early, %d in time: a list would do as well", seed, early, came)
		}
	}
}

// TestUnlinkedEntriesAreForgotten: the wheel holds nothing of what has ended.
func TestUnlinkedEntriesAreForgotten(t *testing.T) {
	w := newWheel(time.Second, time.Minute, time.Now().UnixNano())
	var all [100]due
	for i := range all {
		w.add(&all[i], time.Now().Add(time.Minute/2).UnixNano())
	}
	for i := range all {
		all[i].unlink()
		all[i].unlink() // again is nothing
	}
	if i := slices.IndexFunc(w.slots, func(d due) bool { return d.next.session != nil || d.next.path != nil || d.next != d.prev }); i >= 0 {
		t.Errorf("slot %d is not empty", i)
	}
}
