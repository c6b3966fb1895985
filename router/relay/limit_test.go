package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"tunroute/router/pace"
)

// eachThatWaits runs f with every relay that keeps to a bandwidth: between two sockets
// nothing is looked at on the way.
func eachThatWaits(t *testing.T, f func(t *testing.T, start relayer)) {
	t.Run("portable", func(t *testing.T) { f(t, portable) })
	t.Run("loop", func(t *testing.T) {
		start := onLoop(t)
		if start == nil {
			skipWithoutLoop(t)
		}
		f(t, start)
	})
}

// TestBandwidth: what two flows move together, each way, is not faster than their
// bandwidth, and arrives as it was.
func TestBandwidth(t *testing.T) {
	const rate, size = 2 << 20, 512 << 10
	// A burst is free: see package pace.
	least := time.Second * (2*size - rate/10 - 2*64<<10) / rate
	data := make([]byte, size)
	rand.Read(data)
	eachThatWaits(t, func(t *testing.T, start relayer) {
		for name, l := range map[string]limits{
			"up": {up: pace.New(rate)}, "down": {down: pace.New(rate)}, "both": {up: pace.New(rate), down: pace.New(rate)},
		} {
			ctx := context.WithValue(t.Context(), limitsKey{}, l)
			var flows sync.WaitGroup
			began := time.Now()
			for range 2 {
				client, upstream, n, done := start(t, ctx)
				transfer := func(from, to peer) {
					flows.Go(func() {
						from.Write(data)
						from.CloseWrite()
					})
					flows.Go(func() {
						if got, err := io.ReadAll(to); err != nil || !bytes.Equal(got, data) {
							t.Errorf("%s: %d bytes arrived, %v", name, len(got), err)
						}
					})
				}
				transfer(client, upstream)
				transfer(upstream, client)
				flows.Go(func() {
					if r := <-done; r.end != EOF || n.Up.Load() != size || n.Down.Load() != size {
						t.Errorf("%s: %v, %d up, %d down", name, r, n.Up.Load(), n.Down.Load())
					}
				})
			}
			flows.Wait()
			if took := time.Since(began); took < least {
				t.Errorf("%s: %d bytes in %v, want not less than %v", name, 2*size, took, least)
			}
		}
	})
}

// TestBandwidthHoldsNoEndUp: a flow that waits for its turn ends at once when it has to,
// and leaves the bandwidth to others.
func TestBandwidthHoldsNoEndUp(t *testing.T) {
	eachThatWaits(t, func(t *testing.T, start relayer) {
		slow := pace.New(1)
		ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), limitsKey{}, limits{slow, slow}))
		client, upstream, n, done := start(t, ctx)
		var flows sync.WaitGroup
		for _, p := range []peer{client, upstream} {
			flows.Go(func() { p.Write(make([]byte, 1<<20)) }) // far more than a burst
			flows.Go(func() { io.Copy(io.Discard, p) })
		}
		for n.Up.Load()+n.Down.Load() < 16<<10-1500 { // until the burst is used up
			time.Sleep(time.Millisecond)
		}
		cause := errors.New("cause")
		cancel(cause)
		if r := wait(t, done); r.end != Canceled || !errors.Is(r.err, cause) {
			t.Errorf("Relay = %v, %v, want canceled", r.end, r.err)
		}
		client.Break()
		upstream.Break()
		flows.Wait()
	})
}
