package group

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"

	"tunroute/router/flow"
)

// clusterSize is how many members a cluster has, more or less. A group of 1,000 is
// 32 clusters of 32: 64 lots for a flow instead of 1,000.
const clusterSize = 32

// ring is rendezvous hashing (Thaler and Ravishankar, 1998): each member draws a lot
// for a key, and the least wins. What is lost with a member is only what it had won,
// and all that comes back with it. Weights are as in Schindelhauer and Schomaker (2005):
// the lot is -log(u)/weight, u being a hash in (0, 1).
//
// Above 64 members it has two levels: first a cluster wins, by the weight of all its
// members, good or not, and then a good member of it; so that a lost member moves its
// own keys there too, to others of its cluster. Who is in which cluster depends on
// the names alone, not on the order or on who else is there.
//
// It is immutable, and the same in every process that has the same members.
type ring struct {
	clusters []cluster
	hashes   []uint64  // of the names, by position
	shares   []float64 // 1/weight
	log      logTable
}

type cluster struct {
	hash    uint64
	share   float64 // 1/weight of all members
	equal   bool    // all members weigh the same: no logarithm is needed
	members []int32
}

func newRing(names []string, weights []uint64) *ring {
	r := &ring{hashes: make([]uint64, len(names)), shares: make([]float64, len(names)), log: newLogTable()}
	n := 1
	for len(names) > 2*clusterSize && n*clusterSize < len(names) {
		n *= 2
	}
	clusters := make([]cluster, n)
	sums := make([]uint64, n)
	for i, name := range names {
		r.hashes[i], r.shares[i] = hashString(name), 1/float64(weights[i])
		at := mix(r.hashes[i]) % uint64(n)
		c := &clusters[at]
		c.hash = mix(at + 1)
		c.equal = len(c.members) == 0 || c.equal && weights[c.members[0]] == weights[i]
		c.members = append(c.members, int32(i))
		sums[at] += weights[i]
		c.share = 1 / float64(sums[at])
	}
	for _, c := range clusters {
		if len(c.members) > 0 {
			r.clusters = append(r.clusters, c)
		}
	}
	return r
}

// choose returns the member of a key, -1 if none is alive.
func (r *ring) choose(key uint64, alive []bool) int32 {
	if len(r.clusters) == 1 {
		return r.within(&r.clusters[0], key, alive)
	}
	// Where all of a cluster are lost, the next one wins, and so on: rare and slow.
	after := -1.0
	for {
		won, least := -1, math.Inf(1)
		for i := range r.clusters {
			c := &r.clusters[i]
			if l := r.log.of(mix(key^c.hash)) * c.share; l < least && l > after {
				won, least = i, l
			}
		}
		if won < 0 {
			return -1
		}
		if i := r.within(&r.clusters[won], key, alive); i >= 0 {
			return i
		}
		after = least
	}
}

// within returns the member of a key in a cluster.
func (r *ring) within(c *cluster, key uint64, alive []bool) int32 {
	won := int32(-1)
	if c.equal {
		var most uint64
		for _, i := range c.members {
			if h := mix(key ^ r.hashes[i]); alive[i] && (won < 0 || h > most) {
				won, most = i, h
			}
		}
		return won
	}
	least := math.Inf(1)
	for _, i := range c.members {
		if !alive[i] {
			continue
		}
		if l := r.log.of(mix(key^r.hashes[i])) * r.shares[i]; l < least {
			won, least = i, l
		}
	}
	return won
}

// logTable is a logarithm that is exact to 0.1 %, which moves weights by less, in a
// quarter of the time of math.Log: with that one, a choice among 1,000 members of
// different weights took 1.3 µs (BenchmarkChoose/hash).
type logTable [257]float64

func newLogTable() (t logTable) {
	for i := range t {
		t[i] = -math.Log2(0.5 + float64(i)/512)
	}
	return t
}

// of returns -log2 of h/2⁶⁴.
func (t *logTable) of(h uint64) float64 {
	h |= 1 // 0 has no logarithm
	zeros := bits.LeadingZeros64(h)
	h <<= zeros
	i := h >> 55 & 255
	part := float64(h&(1<<55-1)) / (1 << 55)
	return float64(zeros) + t[i] + (t[i+1]-t[i])*part
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of x
// changes half of what it returns.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashString is FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

func hashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])) ^ binary.BigEndian.Uint64(b[8:]))
}

// hashTarget hashes the host of a target.
func hashTarget(t flow.Target) uint64 {
	if t.Name != "" {
		return hashString(t.Name)
	}
	if t.Addr.IsValid() {
		return hashAddr(t.Addr)
	}
	return 0
}
