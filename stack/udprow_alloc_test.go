//go:build !race

package stack

import (
	stdslices "slices"
	"testing"
)

// Without the race detector, which allocates.

// At packet tempo nothing is allocated, either way.
func TestRowsAllocateNothing(t *testing.T) {
	for name, fam := range rowFamilies {
		d := newRowDevice()
		d.discard = true
		s := serve(t, d, countUDP{})
		b := s.newBurst()
		payload := make([]byte, 1200)
		payloads := stdslices.Repeat([][]byte{payload}, 40)
		row := superRow(fam[0], fam[1], make([]byte, 40*1200), 1200, nil)
		one := superRow(fam[0], fam[1], payload, 0, nil)
		one[1] = 0
		views := [][]byte{row[superHeader:][:2<<10], row[superHeader+2<<10:]}
		for what, f := range map[string]func(){
			"WriteUDP":  func() { _ = s.WriteUDP(payload, fam[1], fam[0]) },
			"WriteUDPs": func() { _ = s.WriteUDPs(payloads, fam[1], fam[0]) },
			"row":       func() { b.takeSuper(row[:superHeader], views, len(row)-superHeader) },
			"datagram":  func() { b.takeSuper(one[:superHeader], [][]byte{one[superHeader:]}[:1:1], len(one)-superHeader) },
		} {
			if n := testing.AllocsPerRun(200, f); n != 0 {
				t.Errorf("%s %s: %v allocations, want 0", name, what, n)
			}
		}
	}
}
