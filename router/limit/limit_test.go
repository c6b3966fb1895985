package limit

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/router/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func of(addr, user string) *flow.Flow {
	return &flow.Flow{Source: netip.AddrPortFrom(netip.MustParseAddr(addr), 4000), User: user}
}

func TestSessions(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		per   Per
		flows [][2]string // address and user, of which the second and the last are too many
		err   string
	}{
		{All, [][2]string{{"10.0.0.1", ""}, {"10.0.0.2", ""}}, "more than 1 flows, which x allows"},
		{Source, [][2]string{{"10.0.0.1", "a"}, {"::ffff:10.0.0.1", "b"}}, "more than 1 flows of one source, which x allows"},
		{User, [][2]string{{"10.0.0.1", "a"}, {"10.0.0.2", "a"}}, "more than 1 flows of one user, which x allows"},
		{User, [][2]string{{"10.0.0.1", ""}, {"10.0.0.1", ""}}, "more than 1 flows of one user, which x allows"},
	} {
		l := New(Options{Name: "x", Per: c.per, Sessions: 1})
		first, err := l.Take(of(c.flows[0][0], c.flows[0][1]), now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.Take(of(c.flows[1][0], c.flows[1][1]), now)
		if err == nil || err.Error() != c.err || !errors.Is(err, ErrLimit) {
			t.Errorf("per %d: %v, want %q", c.per, err, c.err)
		}
		if c.per != All {
			other, err := l.Take(of("10.0.0.9", "z"), now)
			if err != nil {
				t.Errorf("per %d: another is refused: %v", c.per, err)
			}
			other.Release()
		}
		first.Release()
		if n := l.Entries(); n != 0 {
			t.Errorf("per %d: %d entries without a flow", c.per, n)
		}
		if h, err := l.Take(of(c.flows[1][0], c.flows[1][1]), now); err != nil {
			t.Errorf("per %d: refused when the other had ended: %v", c.per, err)
		} else {
			h.Release()
		}
	}
	Held{}.Release() // is nothing
}

func TestRate(t *testing.T) {
	now := time.Now()
	l := New(Options{Name: "x", Rate: Rate{10, time.Second}})
	take := func(after time.Duration) error {
		now = now.Add(after)
		h, err := l.Take(of("10.0.0.1", ""), now)
		h.Release()
		return err
	}
	for i := range 10 {
		if err := take(0); err != nil {
			t.Errorf("number %d at once: %v", i, err)
		}
	}
	if err := take(0); err == nil || err.Error() != "more than 10/s new flows, which x allows" {
		t.Errorf("the eleventh: %v", err)
	}
	if err := take(99 * time.Millisecond); err == nil {
		t.Error("one is taken before a tenth of a second has passed")
	}
	if err := take(time.Millisecond); err != nil {
		t.Errorf("after a tenth of a second: %v", err)
	}
	if err := take(0); err == nil {
		t.Error("two are taken after a tenth of a second")
	}
	l.Expire(now)
	if n := l.Entries(); n != 1 {
		t.Errorf("%d entries while the rate recovers, want 1", n)
	}
	now = now.Add(time.Second)
	l.Expire(now)
	if n := l.Entries(); n != 0 {
		t.Errorf("%d entries after it has", n)
	}
}

// TestUndo: what was undone has not used up the rate, and is not open.
func TestUndo(t *testing.T) {
	now := time.Now()
	l := New(Options{Name: "x", Per: Source, Sessions: 2, Rate: Rate{2, time.Hour}})
	for range 10 {
		h, err := l.Take(of("10.0.0.1", ""), now)
		if err != nil {
			t.Fatal(err)
		}
		h.Undo()
	}
	for i := range 2 {
		if _, err := l.Take(of("10.0.0.1", ""), now); err != nil {
			t.Errorf("number %d: %v", i, err)
		}
	}
	if _, err := l.Take(of("10.0.0.1", ""), now); err == nil {
		t.Error("a third was taken")
	}
	Held{}.Undo() // is nothing
}

// TestRateAgainstACount: in no period does anybody get more than twice the number, nor in
// the long run more or less than the rate.
func TestRateAgainstACount(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	rate := Rate{7, time.Second}
	l := New(Options{Name: "x", Per: Source, Rate: rate})
	began := time.Now()
	taken := map[string][]time.Duration{}
	for at := time.Duration(0); at < time.Minute; at += time.Duration(random.IntN(int(20 * time.Millisecond))) {
		who := []string{"10.0.0.1", "10.0.0.2"}[random.IntN(2)]
		if _, err := l.Take(of(who, ""), began.Add(at)); err == nil {
			taken[who] = append(taken[who], at)
		}
	}
	for who, times := range taken {
		if n := len(times); n < 58*rate.N || n > 61*rate.N {
			t.Errorf("%s got %d in a minute of %s", who, n, rate)
		}
		for i, at := range times {
			if i >= 2*rate.N && at-times[i-2*rate.N] <= time.Second {
				t.Errorf("%s got more than %d within a second at %v", who, 2*rate.N, at)
			}
		}
	}
}

// TestEntriesAreBounded: those who are too many share one entry, and are limited.
func TestEntriesAreBounded(t *testing.T) {
	l := New(Options{Name: "x", Per: Source, Sessions: 2})
	now := time.Now()
	a := netip.MustParseAddr("10.0.0.0")
	var held []Held
	for i := range maxEntries + 3 {
		h, err := l.Take(&flow.Flow{Source: netip.AddrPortFrom(a, 1)}, now)
		if (err != nil) != (i >= maxEntries+2) {
			t.Fatalf("number %d: %v", i, err)
		}
		held = append(held, h)
		a = a.Next()
	}
	if n := l.Entries(); n != maxEntries+1 {
		t.Errorf("%d entries", n)
	}
	for _, h := range held {
		h.Release()
	}
	if n := l.Entries(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestWarnNowAndThen(t *testing.T) {
	now := time.Now()
	l := New(Options{Name: "x", Sessions: 1})
	if _, ok := l.Warn(now); ok {
		t.Error("a warning without a cause")
	}
	for range 4 {
		l.Take(of("10.0.0.1", ""), now)
	}
	if n, ok := l.Warn(now); !ok || n != 3 {
		t.Errorf("Warn = %d, %v, want 3", n, ok)
	}
	l.Take(of("10.0.0.1", ""), now)
	if _, ok := l.Warn(now.Add(warnEvery - 1)); ok {
		t.Error("two warnings within a minute")
	}
	if n, ok := l.Warn(now.Add(warnEvery)); !ok || n != 1 {
		t.Errorf("Warn after a minute = %d, %v, want 1", n, ok)
	}
}

func TestRateIsWrittenAsRead(t *testing.T) {
	for _, c := range []struct {
		r    Rate
		want string
	}{{Rate{10, time.Second}, "10/s"}, {Rate{600, time.Minute}, "600/m"}, {Rate{1, time.Hour}, "1/h"}, {Rate{5, 10 * time.Second}, "5/10s"}} {
		if got := c.r.String(); got != c.want {
			t.Errorf("%+v is %s, want %s", c.r, got, c.want)
		}
	}
}
