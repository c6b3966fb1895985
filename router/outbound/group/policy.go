package group

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"time"
)

// Policy is how a group chooses among the members that are good.
type Policy uint8

// The policies. Weights mean something to those that share flows out: Random,
// RoundRobin, LeastFlows and Hash.
const (
	// Fallback takes the first in the order of the config.
	Fallback Policy = iota
	// Random takes any.
	Random
	// RoundRobin takes one after the other: each as often as its weight says,
	// exactly, in as many flows as all weights add up to.
	RoundRobin
	// LeastFlows takes the one with the fewest open flows for its weight, of
	// several the one that has waited for longest.
	LeastFlows
	// HashSource takes the same member for the same source address, and
	// another only while that one is bad; it moves no other flows then.
	HashSource
	// HashTarget does so for the same target host, port aside. A UDP
	// conversation has many targets and goes by its source.
	HashTarget
	// Fastest takes the one whose probe took the least time, and leaves it only
	// for one that is clearly faster.
	Fastest
)

// Another member is clearly faster if it is so by a quarter and by 5 ms: round trips
// of a loaded line differ by as much from one probe to the next.
const (
	fasterShare = 4
	fasterBy    = 5 * time.Millisecond
)

// view is what there is to choose from: a picture of the members that are good. It
// is immutable, so that choosing takes no lock.
type view struct {
	good  []int32  // positions, in the order of the config
	sums  []uint64 // of the weights of good, up to and with each
	total uint64   // of all
	step  uint64   // of RoundRobin; has no divisor in common with total
	best  int32    // of Fastest; -1 for none
	aside []int32  // good too, but to be tried after those
	hash  *ring    // of all members, and which are good
	alive []bool   // by position: it is in good or in aside
}

// newView makes the view of the members for which good is true.
func newView(p Policy, weights []uint64, good []bool, hash *ring) *view {
	v := &view{best: -1, hash: hash, alive: good}
	for i, ok := range good {
		if ok {
			v.total += weights[i]
			v.good = append(v.good, int32(i))
			v.sums = append(v.sums, v.total)
		}
	}
	if p == RoundRobin {
		v.step = stride(v.total)
	}
	return v
}

// stride returns a step that leads through all of n, in leaps of about the golden
// section: what comes next is far from what came before, so that the turns of a
// member of great weight lie apart.
func stride(n uint64) uint64 {
	s := uint64(float64(n) / math.Phi)
	for s = max(s, 1); gcd(s, n) > 1; {
		s++
	}
	return s
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// at returns the member that has the nth part of all weights.
func (v *view) at(n uint64) int32 {
	if v.total == uint64(len(v.good)) { // all weigh the same
		return v.good[n]
	}
	i := sort.Search(len(v.sums), func(i int) bool { return v.sums[i] > n })
	return v.good[i]
}

// choose returns the member for a flow, -1 where none is good. It takes no lock but
// for LeastFlows, does not allocate, and looks at no more than some 64 members.
func (s *side) choose(key uint64) int32 {
	v := s.view.Load()
	if len(v.good) == 0 {
		return -1
	}
	switch s.g.opts.Policy {
	case Random:
		return v.at(rand.Uint64N(v.total))
	case RoundRobin:
		return v.at((s.turn.Add(1) - 1) % v.total * v.step % v.total)
	case LeastFlows:
		if i := s.load.least(); i >= 0 {
			return i
		}
	case HashSource, HashTarget:
		return v.hash.choose(key, v.alive)
	case Fastest:
		if v.best >= 0 {
			return v.best
		}
	}
	return v.good[0]
}

// rest returns the good members that were not tried, in the order in which to try them
// after those have failed.
func (s *side) rest(tried []int32, key uint64) []int32 {
	v := s.view.Load()
	untried := func(list []int32) []int32 {
		return slices.DeleteFunc(slices.Clone(list), func(i int32) bool { return slices.Contains(tried, i) })
	}
	rest := untried(v.good)
	switch s.g.opts.Policy {
	case Random:
		// Weighted, without putting back (Efraimidis and Spirakis, 2006).
		by := make(map[int32]float64, len(rest))
		for _, i := range rest {
			by[i] = rand.ExpFloat64() / float64(s.g.weights[i])
		}
		sortBy(rest, func(i int32) float64 { return by[i] })
	case RoundRobin: // on from where we are
		if len(tried) > 0 {
			after, _ := slices.BinarySearch(rest, tried[len(tried)-1])
			rest = append(slices.Clone(rest[after:]), rest[:after]...)
		}
	case LeastFlows:
		flows := s.load.flows()
		sortBy(rest, func(i int32) float64 { return float64(flows[i]) / float64(s.g.weights[i]) })
	case HashSource, HashTarget:
		alive := slices.Clone(v.alive)
		for _, i := range tried {
			alive[i] = false
		}
		for n := range rest {
			rest[n] = v.hash.choose(key, alive)
			alive[rest[n]] = false
		}
	case Fastest:
		sortBy(rest, func(i int32) float64 { return float64(s.took(i)) })
	}
	return append(rest, untried(v.aside)...)
}

// sortBy sorts by what by returns, the least first.
func sortBy(list []int32, by func(int32) float64) {
	slices.SortStableFunc(list, func(a, b int32) int { return cmp.Compare(by(a), by(b)) })
}

// fastest returns the best of the good members: now, unless another is clearly faster.
// What has not been measured comes last.
func fastest(good []int32, now int32, took func(int32) time.Duration) int32 {
	best := int32(-1)
	for _, i := range good {
		if best < 0 || took(i) < took(best) {
			best = i
		}
	}
	if now < 0 || best < 0 || !slices.Contains(good, now) {
		return best
	}
	if gain := took(now) - took(best); gain > fasterBy && gain > took(now)/fasterShare {
		return best
	}
	return now
}

// loads are the numbers of open flows of the members, with the least of those that
// are good at hand: a heap, because with 1,000 members a scan for each flow would cost
// more than the lock.
type loads struct {
	weights []uint64

	mu    sync.Mutex // guards what follows
	count []uint64   // by position
	used  []uint64   // when chosen last, in turns
	turn  uint64
	heap  []int32 // of the good ones
	place []int   // in the heap; -1 for those that are not good
}

func newLoads(weights []uint64) *loads {
	l := &loads{weights: weights, count: make([]uint64, len(weights)), used: make([]uint64, len(weights)), place: make([]int, len(weights))}
	return l
}

// reset has only the good members chosen from now on.
func (l *loads) reset(good []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.place {
		l.place[i] = -1
	}
	l.heap = append(l.heap[:0], good...)
	slices.SortFunc(l.heap, func(a, b int32) int { // a sorted list is a heap
		switch {
		case l.less(a, b):
			return -1
		case l.less(b, a):
			return 1
		}
		return 0
	})
	for n, i := range l.heap {
		l.place[i] = n
	}
}

// less says that a comes before b.
func (l *loads) less(a, b int32) bool {
	x, y := l.count[a]*l.weights[b], l.count[b]*l.weights[a]
	if x != y {
		return x < y
	}
	return l.used[a] < l.used[b]
}

// least returns the member with the fewest flows, -1 where none is good. It is behind
// its equals from now on, so that flows that come at once are shared out.
func (l *loads) least() int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.heap) == 0 {
		return -1
	}
	i := l.heap[0]
	l.turn++
	l.used[i] = l.turn
	l.fix(0)
	return i
}

// add counts n flows more.
func (l *loads) add(i int32, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[i] += uint64(n) // -1 too: it wraps around
	if l.place[i] >= 0 {
		l.fix(l.place[i])
	}
}

// flows returns the numbers of flows.
func (l *loads) flows() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.count)
}

// fix brings the nth of the heap to its place.
func (l *loads) fix(n int) {
	for n > 0 && l.less(l.heap[n], l.heap[(n-1)/2]) {
		n = l.swap(n, (n-1)/2)
	}
	for {
		least := n
		for _, child := range [2]int{2*n + 1, 2*n + 2} {
			if child < len(l.heap) && l.less(l.heap[child], l.heap[least]) {
				least = child
			}
		}
		if least == n {
			return
		}
		n = l.swap(n, least)
	}
}

// swap swaps two of the heap and returns the second place.
func (l *loads) swap(a, b int) int {
	l.heap[a], l.heap[b] = l.heap[b], l.heap[a]
	l.place[l.heap[a]], l.place[l.heap[b]] = a, b
	return b
}
