package krb5

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestDeadKDC: a KDC that does not answer holds up nobody who does not need it, is asked
// by one at a time, and what comes of it is remembered for a moment.
func TestDeadKDC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(ClientOptions{})
		good, dead := &ticket{end: time.Now().Add(time.Hour)}, errors.New("no KDC answers")
		asked := 0
		ask := func(ctx context.Context) (*ticket, error) {
			return c.get(ctx, stamp{}, "dead", func() (*ticket, error) {
				asked++
				select {
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				case <-time.After(2 * kdcTime): // it has two
					return nil, dead
				}
			})
		}
		fetched := 0
		known := func() {
			t.Helper()
			began := time.Now()
			got, err := c.get(t.Context(), stamp{}, "good", func() (*ticket, error) { fetched++; return good, nil })
			if got != good || err != nil || fetched != 1 || time.Since(began) != 0 {
				t.Errorf("a known ticket: %v, %v, asked for %d times, after %v", got, err, fetched, time.Since(began))
			}
		}
		known()

		var work sync.WaitGroup
		leaver, leave := context.WithCancel(t.Context())
		work.Go(func() {
			if _, err := ask(leaver); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: %v", err)
			}
		})
		synctest.Wait()
		for range 10 {
			work.Go(func() {
				if _, err := ask(t.Context()); err != dead {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		known()
		leave() // and another asks in its place
		work.Wait()
		if asked != 2 {
			t.Errorf("asked %d times, want twice", asked)
		}
		if _, err := ask(t.Context()); err != dead || asked != 2 {
			t.Errorf("at once: %v, asked %d times, want it remembered", err, asked)
		}
		time.Sleep(remembered)
		if _, err := ask(t.Context()); err != dead || asked != 3 {
			t.Errorf("later: %v, asked %d times, want it asked again", err, asked)
		}
		// The file has changed: there may be another ticket to ask with.
		c.get(t.Context(), stamp{name: "new"}, "dead", func() (*ticket, error) { asked++; return good, nil })
		if asked != 4 {
			t.Errorf("after kinit: asked %d times, want it asked again", asked)
		}
	})
}
