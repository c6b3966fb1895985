package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"tunroute/bench/load"
)

// soakPath is a way that bytes take.
type soakPath struct {
	name       string
	up, down   bool
	halfClosed bool // the client's half is closed from the beginning
	v6         bool
}

// soakPaths returns all ways.
func soakPaths() []soakPath {
	var all []soakPath
	for _, v6 := range []bool{false, true} {
		ip := "IPv4"
		if v6 {
			ip = "IPv6"
		}
		all = append(all,
			soakPath{ip + " up", true, false, false, v6},
			soakPath{ip + " down", false, true, false, v6},
			soakPath{ip + " both", true, true, false, v6},
			soakPath{ip + " down, half closed", false, true, true, v6})
	}
	return all
}

const (
	// soakStreams is how many streams there are at once, and soakPiece how
	// many bytes each has in each direction.
	soakStreams = 8
	soakPiece   = 64 << 20
	// pieceTime is how long a stream may take without being given up.
	pieceTime = 10 * time.Minute
)

// Soak sends random bytes through each router, by every path in turn, until at
// least so many were sent, and compares them. It returns an error where any were
// wrong or missing.
func Soak(ctx context.Context, o Options, volume int64, out io.Writer) error {
	var failed []error
	for i := range o.Routers {
		r := &o.Routers[i]
		if err := r.check(); err != nil {
			return err
		}
		if r.Skip != "" {
			fmt.Fprintf(out, "%s was not soaked: %s\n", r.Name, r.Skip)
			continue
		}
		if err := o.soak(ctx, r, volume, out); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			failed = append(failed, fmt.Errorf("%s: %w", r.Name, err))
		}
	}
	return errors.Join(failed...)
}

func (o *Options) soak(ctx context.Context, r *Router, volume int64, out io.Writer) error {
	l, err := newLab(o.Topology, r.Direct, o.Seed)
	if err != nil {
		return err
	}
	defer l.close()
	defer context.AfterFunc(ctx, l.stopRoles)()
	running, err := r.start(ctx, l, l.way(r, false))
	if err != nil {
		return err
	}
	defer running.stop()

	var paths []soakPath
	for _, p := range soakPaths() {
		if !p.v6 || !r.NoIPv6 {
			paths = append(paths, p)
		}
	}
	// In turn, and every path as often as the others: a long run of one would
	// hide what another shows.
	done := make([]int64, len(paths))
	piece := min(soakPiece, max(1, volume/int64(len(paths)*soakStreams)))
	key := rand.Uint64()
	begin := time.Now()
	for sum, turn := int64(0), 0; sum < volume || turn%len(paths) != 0; turn++ {
		p := paths[turn%len(paths)]
		got, _, err := transfer(l, load.BulkArgs{
			Way: l.way(r, p.v6), Streams: soakStreams, Up: p.up, Down: p.down, HalfClosed: p.halfClosed,
			Bytes: piece, For: pieceTime, Key: key,
		})
		if err != nil {
			return fmt.Errorf("%s, after %d bytes, seed %d: %w", p.name, sum, o.Seed, err)
		}
		key += soakStreams
		for _, s := range got {
			done[turn%len(paths)] += s.Bytes
			sum += s.Bytes
		}
		fmt.Fprintf(o.Progress, "%s: %s, %d of %d MiB\n", r.Name, p.name, sum>>20, volume>>20)
	}
	for i, p := range paths {
		fmt.Fprintf(out, "%s  %-24s %d bytes identical\n", r.Name, p.name, done[i])
	}
	fmt.Fprintf(out, "%s  in %v, seed %d\n", r.Name, time.Since(begin).Round(time.Second), o.Seed)
	return nil
}
