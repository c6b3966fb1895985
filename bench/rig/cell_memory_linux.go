package rig

import (
	"context"
	"fmt"
	"time"

	"tunroute/bench/load"
)

// someIdle is the first number of idle connections. The firstIdle before them have
// come and gone when the router is said to be idle: they bring in pages of its
// program and tables of its runtime, once.
const (
	someIdle  = 1000
	firstIdle = 16
)

// memory is the router's memory without connections, with some and with many,
// and some time after they were closed.
func memory(ctx context.Context, m *measurement) error {
	for _, count := range []int{firstIdle, 0} {
		r, err := m.lab.load.Idle(load.IdleArgs{Way: m.way, Count: count, Key: m.key})
		if err != nil {
			return err
		}
		if r.Open < count {
			return fmt.Errorf("%d of %d connections are open: %s", r.Open, count, r.Error)
		}
	}
	idle, err := m.usage()
	if err != nil {
		return err
	}
	m.add("idle", "MB", float64(idle.RSS)/1e6)
	for _, count := range []int{min(someIdle, m.o.Idle), m.o.Idle} {
		r, err := m.lab.load.Idle(load.IdleArgs{Way: m.way, Count: count, Key: m.key})
		if err != nil {
			return err
		}
		if r.Open < count {
			return fmt.Errorf("%d of %d connections are open: %s", r.Open, count, r.Error)
		}
		u, err := m.usage()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%d flows", count)
		if m.has(name) {
			break // there are no more than some
		}
		m.add(name, "MB", float64(u.RSS)/1e6)
		m.add(fmt.Sprintf("each of %d", count), "KB", float64(u.RSS-idle.RSS)/1e3/float64(count))
	}
	settled := func(count int) (float64, error) {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(m.o.Settle):
		}
		u, err := m.usage()
		return float64(u.RSS), err
	}
	rss, err := settled(m.o.Idle)
	if err != nil {
		return err
	}
	m.add(fmt.Sprintf("%v later", m.o.Settle), "KB", (rss-float64(idle.RSS))/1e3/float64(m.o.Idle))
	if _, err := m.lab.load.Idle(load.IdleArgs{Way: m.way}); err != nil {
		return err
	}
	if rss, err = settled(0); err != nil {
		return err
	}
	m.add(fmt.Sprintf("%v after", m.o.Settle), "MB", rss/1e6)
	m.first(fmt.Sprintf("each of %d", m.o.Idle))
	return nil
}

// has says whether there is a figure of this name.
func (m *measurement) has(name string) bool {
	for _, f := range m.figures {
		if f.Name == name {
			return true
		}
	}
	return false
}
