package group

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// closed is a member that opens nothing, for tests that only choose.
type closed struct{}

func (closed) DialTCP(context.Context, flow.Target) (outbound.Conn, error) {
	return nil, outbound.ErrRejected
}

// choosers returns a group of n members with the given weights, in turn.
func choosers(t testing.TB, n int, p Policy, weights ...int) *Group {
	t.Helper()
	o := Options{Name: "g", Policy: p}
	for i := range n {
		m := Member{Name: fmt.Sprint("member", i), Dialer: closed{}}
		if len(weights) > 0 {
			m.Weight = weights[i%len(weights)]
		}
		o.Members = append(o.Members, m)
	}
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// lose makes members bad.
func lose(g *Group, members ...int) {
	for _, i := range members {
		g.tcp.failed(int32(i), Connect, outbound.ErrRejected)
	}
}

var everyPolicy = map[string]Policy{
	"fallback": Fallback, "random": Random, "round-robin": RoundRobin, "least-flows": LeastFlows,
	"hash": HashSource, "fastest": Fastest,
}

func TestChoosingDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	for name, p := range everyPolicy {
		g := choosers(t, 1000, p, 1, 3)
		lose(g, 0, 7, 900)
		key := uint64(0)
		if n := testing.AllocsPerRun(1000, func() { key++; g.tcp.choose(key) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for name, p := range everyPolicy {
		for _, weights := range [][]int{{1}, {1, 2, 3}} {
			b.Run(fmt.Sprintf("%s/members=1000/weights=%d", name, len(weights)), func(b *testing.B) {
				g := choosers(b, 1000, p, weights...)
				lose(g, 5)
				b.ReportAllocs()
				key := uint64(0)
				for b.Loop() {
					key++
					i := g.tcp.choose(mix(key))
					if p == LeastFlows {
						g.tcp.count(i, 1)
					}
				}
			})
		}
	}
}

// No policy chooses a bad member, and each tries every good one once if it has to.
func TestOnlyGoodMembers(t *testing.T) {
	for name, p := range everyPolicy {
		for _, n := range []int{1, 2, 3, 64, 65, 300} {
			g := choosers(t, n, p, 1, 2)
			bad := rand.Perm(n)[:n/2]
			lose(g, bad...)
			for range 200 {
				key := rand.Uint64()
				first := g.tcp.choose(key)
				order := append([]int32{first}, g.tcp.rest([]int32{first}, key)...)
				for _, i := range order {
					if slices.Contains(bad, int(i)) {
						t.Fatalf("%s: of %d members, bad one %d is tried", name, n, i)
					}
				}
				slices.Sort(order)
				if got := len(slices.Compact(order)); got != n-n/2 {
					t.Fatalf("%s: %d of %d good members are tried", name, got, n-n/2)
				}
			}
			lose(g, rand.Perm(n)...)
			if i := g.tcp.choose(1); i != -1 {
				t.Errorf("%s: member %d is chosen where all are bad", name, i)
			}
			if got := len(g.tcp.leastBad()); got != n {
				t.Errorf("%s: %d of %d bad members are left to be tried", name, got, n)
			}
		}
	}
}

func TestRandomIsWithinThreeSigma(t *testing.T) {
	tests := []struct{ weights []int }{{[]int{1, 1}}, {[]int{1, 3}}, {[]int{1, 2, 0, 10}}}
	const flows = 20000
	for _, tt := range tests {
		// One run in 370 is outside for each member; three in a row are no
		// accident.
		for try := range 3 {
			g := choosers(t, len(tt.weights), Random, tt.weights...)
			got := make([]int, len(tt.weights))
			for range flows {
				got[g.tcp.choose(0)]++
			}
			bad := outside(got, g.weights, flows)
			if bad == "" {
				break
			}
			if try == 2 {
				t.Errorf("weights %v: %s", tt.weights, bad)
			}
		}
	}
}

// outside says which member has flows that are more than three sigma off its share.
func outside(got []int, weights []uint64, flows int) string {
	var total uint64
	for _, w := range weights {
		total += w
	}
	for i, n := range got {
		share := float64(weights[i]) / float64(total)
		want, sigma := share*float64(flows), math.Sqrt(share*(1-share)*float64(flows))
		if math.Abs(float64(n)-want) > 3*sigma {
			return fmt.Sprintf("member %d has %d of %d flows, want %.0f ± %.0f", i, n, flows, want, 3*sigma)
		}
	}
	return ""
}

func TestRoundRobinIsExact(t *testing.T) {
	for _, weights := range [][]int{{1, 1}, {1, 1, 1, 1, 1, 1, 1}, {1, 3}, {5, 1, 1, 7}, {1000, 1}} {
		g := choosers(t, len(weights), RoundRobin, weights...)
		total := 0
		for _, w := range weights {
			total += w
		}
		got := make([]int, len(weights))
		for range 100 * total {
			got[g.tcp.choose(0)]++
		}
		for i, w := range weights {
			if got[i] != 100*w {
				t.Errorf("weights %v: member %d has %d flows, want %d", weights, i, got[i], 100*w)
			}
		}
	}
	// The turns of a heavy member are not all at once.
	g := choosers(t, 2, RoundRobin, 5, 5)
	row := 0
	for range 100 {
		if g.tcp.choose(0) != 0 {
			row = 0
		} else if row++; row > 2 {
			t.Fatal("of two members that weigh the same, one has three flows in a row")
		}
	}
}

// The heap of loads against a scan of all, with flows that come and go.
func TestLeastFlowsHasTheLeast(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	g := choosers(t, 20, LeastFlows, 1, 2, 5)
	count := make([]uint64, 20)
	var open []int32
	good := func(i int32) bool { return g.tcp.view.Load().alive[i] }
	for step := range 5000 {
		switch {
		case step%500 == 0:
			lose(g, r.IntN(20))
		case step%700 == 0:
			g.tcp.succeeded(int32(r.IntN(20)))
		case len(open) > 0 && r.IntN(3) == 0:
			n := r.IntN(len(open))
			count[open[n]]--
			g.tcp.count(open[n], -1)
			open = slices.Delete(open, n, n+1)
		default:
			i := g.tcp.choose(0)
			if !good(i) {
				t.Fatalf("step %d: bad member %d is chosen", step, i)
			}
			for other := range int32(20) {
				if good(other) && count[other]*g.weights[i] < count[i]*g.weights[other] {
					t.Fatalf("step %d: member %d with %d flows (weight %d) is chosen, %d has %d (weight %d)", step, i, count[i], g.weights[i], other, count[other], g.weights[other])
				}
			}
			count[i]++
			g.tcp.count(i, 1)
			open = append(open, i)
		}
	}
}

func TestFastestDoesNotFlap(t *testing.T) {
	g := choosers(t, 3, Fastest)
	ms := func(i int32, n int) { // as if it had always been so
		g.tcp.mu.Lock()
		g.tcp.health[i].took = 0
		g.tcp.mu.Unlock()
		g.tcp.measured(i, time.Duration(n)*time.Millisecond)
	}
	steps := []struct {
		member int32
		ms     int
		want   int32
		why    string
	}{
		{1, 50, 1, "the only one that is measured"},
		{0, 46, 1, "faster, but not by 5 ms"},
		{0, 40, 1, "faster, but not by a quarter"},
		{0, 30, 0, "clearly faster"},
		{1, 24, 0, "faster, but not by a quarter"},
		{0, 80, 1, "the one in use has become slow"},
		{2, 2, 2, "clearly faster"},
		{1, 1, 2, "twice as fast, but only 1 ms"},
	}
	for _, s := range steps {
		ms(s.member, s.ms)
		if got := g.tcp.choose(0); got != s.want {
			t.Fatalf("after %d ms of member %d: %d is chosen, want %d: %s", s.ms, s.member, got, s.want, s.why)
		}
	}
	lose(g, 2)
	if got := g.tcp.choose(0); got != 1 {
		t.Errorf("the fastest is lost: %d is chosen, want 1", got)
	}
	if got, want := g.tcp.rest([]int32{1}, 0), []int32{0}; !slices.Equal(got, want) {
		t.Errorf("behind it come %v, want %v", got, want)
	}
}

// A lost member moves its own keys and no other, and gets them back: also where there
// are clusters, and where whole clusters are lost.
func TestHashMovesOnlyWhatIsLost(t *testing.T) {
	for _, n := range []int{1, 2, 3, 10, 64, 65, 200, 1000} {
		for _, weights := range [][]int{{1}, {1, 2, 7}} {
			checkRing(t, n, weights, rand.Uint64())
		}
	}
}

func FuzzHashMovesOnlyWhatIsLost(f *testing.F) {
	f.Add(uint16(10), uint8(1), uint8(1), uint64(1))
	f.Add(uint16(100), uint8(1), uint8(9), uint64(2))
	f.Fuzz(func(t *testing.T, n uint16, w1, w2 uint8, seed uint64) {
		checkRing(t, int(n%300)+1, []int{int(w1) + 1, int(w2) + 1}, seed)
	})
}

func checkRing(t *testing.T, n int, weights []int, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	names, ws := make([]string, n), make([]uint64, n)
	alive := make([]bool, n)
	for i := range names {
		names[i], ws[i], alive[i] = fmt.Sprint("m", i), uint64(weights[i%len(weights)]), true
	}
	ring := newRing(names, ws)
	keys := make([]uint64, 500)
	was := make([]int32, len(keys))
	for k := range keys {
		keys[k] = r.Uint64()
		was[k] = ring.choose(keys[k], alive)
	}
	first := slices.Clone(was)
	// One after the other is lost, until none is left.
	for count, lost := range r.Perm(n) {
		alive[lost] = false
		for k, key := range keys {
			is := ring.choose(key, alive)
			switch {
			case count == n-1:
				if is != -1 {
					t.Fatalf("%d members, seed %d: key goes to %d where all are lost", n, seed, is)
				}
			case is < 0 || !alive[is]:
				t.Fatalf("%d members, seed %d: key goes to %d, which is lost", n, seed, is)
			case was[k] != int32(lost) && is != was[k]:
				t.Fatalf("%d members, seed %d: %d is lost, and a key of %d goes to %d", n, seed, lost, was[k], is)
			}
			was[k] = is
		}
		if n > 100 && count == n/2 {
			break // time
		}
	}
	for i := range alive {
		alive[i] = true
	}
	for k, key := range keys {
		if is := ring.choose(key, alive); is != first[k] {
			t.Fatalf("%d members, seed %d: all are back, and a key of %d goes to %d", n, seed, first[k], is)
		}
	}
}

func TestLogTable(t *testing.T) {
	table := newLogTable()
	for range 10000 {
		h := rand.Uint64() >> rand.IntN(60) // near 0 and near 1
		if rand.IntN(2) == 0 {
			h = ^h
		}
		got, want := table.of(h), -math.Log2((float64(h|1))/(1<<64))
		if math.Abs(got-want) > want/1000+1e-15 {
			t.Fatalf("of(%#x) = %v, want %v", h, got, want)
		}
	}
}

// Keys are shared out by weight, with and without clusters.
func TestHashKeepsToWeights(t *testing.T) {
	for _, tt := range []struct {
		n       int
		weights []int
	}{{2, []int{1}}, {3, []int{1, 2, 5}}, {60, []int{1}}, {200, []int{1}}, {1000, []int{1, 3}}} {
		g := choosers(t, tt.n, HashTarget, tt.weights...)
		const flows = 200000
		got := make([]int, tt.n)
		for k := range flows {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], uint64(k))
			got[g.tcp.choose(hashString(string(b[:])))]++
		}
		// Chi-squared: its mean is n-1, its variance twice that; the keys are
		// fixed, so that this passes always or never.
		var total uint64
		for _, w := range g.weights {
			total += w
		}
		chi := 0.0
		for i, n := range got {
			want := float64(flows) * float64(g.weights[i]) / float64(total)
			chi += (float64(n) - want) * (float64(n) - want) / want
		}
		if mean := float64(tt.n - 1); chi > mean+4*math.Sqrt(2*mean) {
			t.Errorf("%d members, weights %v: chi-squared is %.0f, want about %.0f", tt.n, tt.weights, chi, mean)
		}
	}
}

// The same source goes to the same member whatever its port, the order of the members
// and the process; this is what tells a change of the hash, which would move all.
func TestHashIsTheSameEverywhere(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	turned := []string{"d", "c", "b", "a"}
	ws, alive := []uint64{1, 1, 1, 1}, []bool{true, true, true, true}
	r1, r2 := newRing(names, ws), newRing(turned, ws)
	got := ""
	for i := range byte(16) {
		key := hashAddr(netip.AddrFrom4([4]byte{10, 0, 0, i}))
		a, b := names[r1.choose(key, alive)], turned[r2.choose(key, alive)]
		if a != b {
			t.Errorf("10.0.0.%d goes to %s, and to %s where they are listed the other way round", i, a, b)
		}
		got += a
	}
	if want := "aaddcaccbacacdcb"; got != want {
		t.Errorf("10.0.0.0 to 10.0.0.15 go to %s, want %s", got, want)
	}
}
