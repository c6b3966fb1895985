package limit

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPipes are shared by who has them in common, kept for a while, and forgotten.
func TestPipes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBandwidth(BandwidthOptions{Per: Source, Up: 1000})
		one, other, same := b.Join(of("10.0.0.1", "")), b.Join(of("10.0.0.2", "")), b.Join(of("10.0.0.1", "x"))
		if one != same || one == other || one.Up == nil || one.Down != nil {
			t.Errorf("pipes %p %p %p: %+v", one, other, same, one)
		}
		for _, p := range []*Pipe{one, other, nil} {
			p.Leave()
		}
		time.Sleep(2 * pipeIdle)
		b.Expire(time.Now())
		if n := b.Pipes(); n != 1 {
			t.Errorf("%d pipes while a flow is open, want 1", n)
		}
		same.Leave()
		time.Sleep(pipeIdle / 2)
		b.Expire(time.Now())
		if again := b.Join(of("10.0.0.1", "")); again != one {
			t.Error("who comes again at once has a new pipe")
		} else {
			again.Leave()
		}
		time.Sleep(pipeIdle)
		b.Expire(time.Now())
		if n := b.Pipes(); n != 0 {
			t.Errorf("%d pipes without a flow", n)
		}
	})
}
