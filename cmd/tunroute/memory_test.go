package main

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestBurst(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name string
		each []uint64 // allocated between two looks
		over []bool
	}{
		{"nothing", []uint64{0, 0, 0}, []bool{false, false, false}},
		{"little", []uint64{1000, 1000, 1000}, []bool{false, false, false}},
		{"at its end", []uint64{50 * mib, 70 * mib, 0, 0}, []bool{false, false, true, false}},
		{"not quite quiet", []uint64{64 * mib, 4 * mib, 0}, []bool{false, true, false}},
		{"slow work", []uint64{mib, mib, mib, mib, mib, mib, mib, mib, mib}, []bool{false, false, false, false, false, false, false, true, false}},
		{"some buffers", []uint64{mib, mib, mib, 0, 0}, []bool{false, false, false, false, false}},
		{"heavy work", []uint64{90 * mib, 9 * mib, 9 * mib, 9 * mib}, []bool{false, false, false, false}},
		{"twice", []uint64{5 * mib, 0, 5 * mib, 0}, []bool{false, true, false, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b burst
			allocated := uint64(0)
			for i, n := range tt.each {
				allocated += n
				if got := b.over(allocated); got != tt.over[i] {
					t.Errorf("look %d: over = %v, want %v", i+1, got, tt.over[i])
				}
			}
		})
	}
}

// What a burst leaves behind goes back to the kernel, and it does not take more
// than two looks.
func TestGiveBack(t *testing.T) {
	const size = 64 << 20
	released := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	ctx, cancel := context.WithCancel(t.Context())
	tick := make(chan time.Time)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		giveBack(ctx, tick)
	}()
	b := make([]byte, size)
	for i := range b {
		b[i] = 1
	}
	before := released()
	runtime.KeepAlive(b)
	tick <- time.Now() // it is a burst,
	tick <- time.Now() // which is over,
	cancel()
	<-stopped
	if now := released(); now < before+size/2 {
		t.Errorf("%d bytes were released before and %d after %d became free", before, now, size)
	}
}
