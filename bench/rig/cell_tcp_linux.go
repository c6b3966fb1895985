package rig

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tunroute/bench/load"
	"tunroute/bench/report"
)

// bulk is streams for a time.
func bulk(streams int, up, down bool) func(context.Context, *measurement) error {
	return func(_ context.Context, m *measurement) error {
		_, err := m.bulk(load.BulkArgs{Way: m.way, Streams: streams, Up: up, Down: down, For: m.o.Time, Key: m.key})
		return err
	}
}

// many is many streams for a long time, and how fair that was.
func many(streams int, up, down bool) func(context.Context, *measurement) error {
	return func(_ context.Context, m *measurement) error {
		if err := m.lab.shareMemory(streams); err != nil {
			return err
		}
		all, err := m.bulk(load.BulkArgs{Way: m.way, Streams: streams, Up: up, Down: down, For: m.o.Long, Key: m.key})
		if err != nil {
			return err
		}
		var got []float64
		var longest time.Duration
		none := 0
		for _, s := range all {
			got = append(got, float64(s.Bytes))
			longest = max(longest, s.Longest)
			if s.Bytes == 0 {
				none++
			}
		}
		m.add("fairness", "(Jain)", report.Jain(got))
		m.add("longest stall", "ms", milliseconds(longest))
		m.add("without a byte", "", float64(none))
		m.add("least", "MB", slices.Min(got)/1e6)
		return nil
	}
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// bulk sends streams, adds the figures of their sum, and returns what the
// receivers of the streams say.
func (m *measurement) bulk(a load.BulkArgs) (all []load.Received, err error) {
	var took time.Duration
	c, err := m.measure(func() error {
		all, took, err = transfer(m.lab, a)
		return err
	})
	if err != nil {
		return nil, err
	}
	var sum float64
	for _, s := range all {
		sum += float64(s.Bytes)
	}
	if sum == 0 {
		return nil, fmt.Errorf("no byte in %v", took)
	}
	m.add("rate", "Gbit/s", sum*8/took.Seconds()/1e9)
	if m.program() {
		m.add("router", "s/GB", c.router.Seconds()/(sum/1e9))
	}
	m.add("machine", "s/GB", c.machine.Seconds()/(sum/1e9))
	m.add("retransmits", "/s", float64(c.retransmits)/took.Seconds())
	m.addOthers(c)
	return all, nil
}

// transfer sends streams, compares what one end has sent with what the other has
// received, and returns what the receivers say: for each stream, or for each
// direction of each.
func transfer(l *lab, a load.BulkArgs) (all []load.Received, took time.Duration, err error) {
	near, err := l.load.Bulk(a)
	if err != nil {
		return nil, 0, err
	}
	far, err := l.bulk.Streams(a.Streams)
	if err != nil {
		return nil, 0, err
	}
	byKey := make(map[uint64]load.Received)
	for _, f := range far {
		if f.Wrong != "" {
			return nil, 0, wrongBytes("from the client, stream %#x: %s", f.Key, f.Wrong)
		}
		byKey[f.Key] = f
	}
	for i, n := range near.Streams {
		f, there := byKey[n.Key]
		switch {
		case n.Wrong != "":
			err = wrongBytes("to the client, stream %d: %s", i, n.Wrong)
		case n.Failed != "":
			err = fmt.Errorf("stream %d at the client, after %d bytes: %s", i, n.Sent+n.Bytes, n.Failed)
		case !there:
			err = fmt.Errorf("stream %d did not end at the server", i)
		case f.Failed != "":
			err = fmt.Errorf("stream %d at the server, after %d bytes: %s", i, f.Sent+f.Bytes, f.Failed)
		case n.Sent != f.Bytes:
			err = wrongBytes("from the client, stream %d: %d of %d bytes arrived, and no error", i, f.Bytes, n.Sent)
		case f.Sent != n.Bytes:
			err = wrongBytes("to the client, stream %d: %d of %d bytes arrived, and no error", i, n.Bytes, f.Sent)
		}
		if err != nil {
			return nil, 0, err
		}
		if a.Up {
			all = append(all, f)
		}
		if a.Down {
			all = append(all, n)
		}
	}
	return all, near.Took, nil
}

// connect is connections that are opened, used for a request and closed.
func connect(_ context.Context, m *measurement) error {
	return m.requests((*load.Role).Connect, load.RequestArgs{Workers: 64, Count: m.o.Connects})
}

// keep is requests on connections that stay open.
func keep(_ context.Context, m *measurement) error {
	return m.requests((*load.Role).Keep, load.RequestArgs{Workers: 64})
}

// echo is the time that a message takes.
func echo(_ context.Context, m *measurement) error {
	defer m.first("p99")
	return m.requests((*load.Role).Echo, load.RequestArgs{Workers: 1})
}

// requests has a client do something with requests.
func (m *measurement) requests(f func(*load.Role, load.RequestArgs) (load.Times, error), a load.RequestArgs) error {
	a.Way, a.For, a.Key = m.way, m.o.Time, m.key
	var t load.Times
	c, err := m.measure(func() (err error) {
		t, err = f(m.lab.load, a)
		return err
	})
	if err != nil {
		return err
	}
	if err := m.times(t); err != nil {
		return err
	}
	if m.program() {
		m.add("router", "µs each", float64(c.router.Microseconds())/float64(t.Count))
	}
	m.add("machine", "µs each", float64(c.machine.Microseconds())/float64(t.Count))
	m.addOthers(c)
	return nil
}

// times adds the figures of what was done many times.
func (m *measurement) times(t load.Times) error {
	if t.Wrong != "" {
		return wrongBytes("%s", t.Wrong)
	}
	if t.Count == 0 {
		return fmt.Errorf("none in %v: %s", t.Took, t.Error)
	}
	m.add("rate", "/s", float64(t.Count)/t.Took.Seconds())
	m.add("p50", "ms", milliseconds(t.P50))
	m.add("p99", "ms", milliseconds(t.P99))
	m.add("longest", "ms", milliseconds(t.Max))
	m.add("lost", "", float64(t.Errors))
	return nil
}

// first has a figure stand before the others: it is what the chart shows.
func (m *measurement) first(name string) {
	slices.SortStableFunc(m.figures, func(a, b report.Figure) int {
		switch {
		case a.Name == name:
			return -1
		case b.Name == name:
			return 1
		}
		return 0
	})
}

// settleIn is how long streams run before something is measured beside them.
const settleIn = 500 * time.Millisecond

// echoBeside is the time that a message takes beside streams.
func echoBeside(_ context.Context, m *measurement) error {
	done := make(chan error, 1)
	go func() {
		_, _, err := transfer(m.lab, load.BulkArgs{Way: m.way, Streams: 8, Up: true, Down: true, Apart: true,
			For: m.o.Time + 2*settleIn, Key: m.key})
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			err = errors.New("the streams ended at once")
		}
		return err
	case <-time.After(settleIn):
	}
	var t load.Times
	c, err := m.measure(func() (err error) {
		t, err = m.lab.beside.Echo(load.RequestArgs{Way: m.way, Workers: 1, For: m.o.Time, Key: m.key})
		return err
	})
	if bulkErr := <-done; bulkErr != nil {
		return bulkErr
	}
	if err != nil {
		return err
	}
	defer m.first("p99")
	defer m.addOthers(c)
	return m.times(t)
}
