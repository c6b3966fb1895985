package pace

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stream takes as much as it gets until the time is over, in pieces of a size, and says
// how much that was.
func stream(b *Bucket, size int, until time.Time) int {
	woken := make(chan struct{}, 1)
	s := b.Join(func() { woken <- struct{}{} })
	defer s.Leave()
	got := 0
	for time.Now().Before(until) {
		n := s.Take(size)
		if n == 0 {
			select {
			case <-woken:
			case <-time.After(time.Until(until)):
			}
			continue
		}
		got += n
	}
	return got
}

// TestFair: flows that want all get the same, whatever they move at once; one that wants
// less than its part gets what it wants, and nothing is lost.
func TestFair(t *testing.T) {
	const seconds = 3
	for _, rate := range []int64{100_000, 1_000_000, 100_000_000} {
		synctest.Test(t, func(t *testing.T) {
			b := New(rate)
			until := time.Now().Add(seconds * time.Second)
			sizes := []int{256 << 10, 64 << 10, 1500, 256 << 10}
			got := make([]int, len(sizes))
			done := make(chan struct{})
			for i, size := range sizes {
				go func() { got[i] = stream(b, size, until); done <- struct{}{} }()
			}
			small := 0 // a tenth of its part, every 50 ms
			go func() {
				woken := make(chan struct{}, 1)
				s := b.Join(func() { woken <- struct{}{} })
				each := min(int(rate)/5/10/20, 1500)
				for time.Now().Before(until) {
					for left := each; left > 0; {
						n := s.Take(left)
						if n == 0 {
							<-woken
						}
						left -= n
					}
					small += each
					time.Sleep(50 * time.Millisecond)
				}
				s.Leave()
				done <- struct{}{}
			}()
			for range len(sizes) + 1 {
				<-done
			}
			total := small
			for _, n := range got {
				total += n
			}
			most := float64(rate)*seconds + b.burst + b.quantum
			if float64(total) > most || float64(total) < 0.98*float64(rate)*seconds {
				t.Errorf("%d B/s: %d bytes in %d s, want %d and not more than %.0f", rate, total, seconds, rate*seconds, most)
			}
			for i, n := range got {
				part := float64(total-small) / float64(len(got))
				if sizes[i] < int(b.quantum) {
					continue // it asks for less than its turn gives
				}
				if float64(n) < 0.9*part {
					t.Errorf("%d B/s: flow %d got %d bytes, its part is %.0f", rate, i, n, part)
				}
			}
		})
	}
}

// TestDatagrams of a flow that sends ten times too much get its part beside a stream, and
// the stream gets the rest.
func TestDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, seconds = 1_000_000, 10
		b := New(rate)
		until := time.Now().Add(seconds * time.Second)
		var streamed int
		done := make(chan struct{})
		go func() { streamed = stream(b, 64<<10, until); close(done) }()
		s, sent := b.Join(nil), 0
		for time.Now().Before(until) {
			if s.Allow(1200) {
				sent += 1200
			}
			time.Sleep(1200 * time.Second / (10 * rate))
		}
		<-done
		for what, n := range map[string]int{"datagrams": sent, "stream": streamed} {
			if part := rate * seconds / 2; n < part*9/10 {
				t.Errorf("the %s got %d bytes of %d", what, n, rate*seconds)
			}
		}
		if total := sent + streamed; total > rate*seconds+int(b.burst+b.quantum) || total < rate*seconds*98/100 {
			t.Errorf("%d bytes in all", total)
		}
	})
}

// TestLeave: who has left is passed over, and what he was given is the others'.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(1000)
		b.Join(nil).Allow(minBurst)
		a := b.Join(func() { t.Error("who has left was woken") })
		woken := make(chan struct{}, 1)
		c := b.Join(func() { woken <- struct{}{} })
		if a.Take(1000) != 0 || c.Take(500) != 0 {
			t.Fatal("bytes from an empty bucket")
		}
		a.Leave()
		began := time.Now()
		<-woken
		if took := time.Since(began); took > 1100*time.Millisecond {
			t.Errorf("the next waited %v", took)
		}
		if n := c.Take(500); n != 500 {
			t.Errorf("Take = %d after wake, want 500", n)
		}
		c.Leave()
	})
}

// TestNothingIsAllocated while there is enough.
func TestNothingIsAllocated(t *testing.T) {
	s := New(1 << 40).Join(nil)
	if n := testing.AllocsPerRun(1000, func() { s.Return(s.Take(1500)); s.Allow(100) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
