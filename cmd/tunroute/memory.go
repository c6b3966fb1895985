package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"tunroute/cmd/tunroute/engine"
)

// serve is e.Run in a process of its own, which lives within the memory that it
// is given and gives back what it does not need any more.
func serve(ctx context.Context, e *engine.Engine) error {
	// Nine tenths of what the cgroup has, if it has a limit and GOMEMLIMIT does
	// not say otherwise: the collector works harder before the kernel kills. The
	// rest is for what is not the heap. Where it fails there is no cgroup.
	_, _ = memlimit.Set()
	ctx, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(quietFor)
		defer tick.Stop()
		giveBack(ctx, tick.C)
	}()
	err := e.Run(ctx)
	cancel()
	<-stopped
	return err
}

// quietFor is how often giveBack looks: after two or three times as long, the
// memory of ten thousand closed flows is back with the kernel. The runtime alone
// collects after two minutes, and returns after more.
const quietFor = 8 * time.Second

// giveBack returns memory to the kernel after each burst of work, at the second
// tick after its end at the latest, until ctx ends.
func giveBack(ctx context.Context, tick <-chan time.Time) {
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var b burst
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		metrics.Read(allocated)
		if b.over(allocated[0].Value.Uint64()) {
			// What lies in pools survives one collection.
			runtime.GC()
			debug.FreeOSMemory()
		}
	}
}

// burst finds the end of a burst of work by what the program allocates.
type burst struct {
	settled uint64 // bytes allocated when the last one was over
	last    uint64 // bytes allocated when over was called last
}

// It is a burst from 4 MiB on, a few buffers' worth, and over when an eighth of it is not
// allocated between two looks. While more than 8 MiB are, the collector runs
// anyway, and what would be given back is needed again.
const (
	leastBurst = 4 << 20
	busy       = 8 << 20
)

// over says whether a burst is over; allocated is how much the program has
// allocated since it began, in bytes.
func (b *burst) over(allocated uint64) bool {
	burst, now := allocated-b.settled, allocated-b.last
	b.last = allocated
	if burst < leastBurst || now > busy || now > burst/8 {
		return false
	}
	b.settled = allocated
	return true
}
