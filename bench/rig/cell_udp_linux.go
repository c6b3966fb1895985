package rig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tunroute/bench/load"
)

// ladder are the rates that are tried, in datagrams a second: each about a fifth
// more than the one before.
var ladder = []int{
	2_000, 3_000, 5_000, 7_500, 10_000, 12_500, 15_000, 20_000, 25_000, 30_000, 35_000, 40_000, 45_000, 50_000,
	57_000, 65_000, 72_000, 80_000, 90_000, 100_000, 115_000, 130_000, 150_000, 175_000, 200_000, 235_000,
	270_000, 320_000, 375_000, 440_000, 520_000, 600_000, 700_000,
}

const (
	// stepTime is how long each rate is tried, unless cells are shorter.
	stepTime = time.Second
	// firstStep is 20,000, and stride is how many steps are taken at once
	// until one is too many.
	firstStep, stride = 7, 4
	// maxLoss is what a rate may lose and be good.
	maxLoss = 0.01
	// minSent is how much of a rate the sender must have sent.
	minSent = 0.95
)

// step is what was found at a rate.
type step struct {
	rate, loss, count float64
	cost              cost
}

// datagrams finds the highest rate at which less than one in a hundred is lost.
func datagrams(size int) func(context.Context, *measurement) error {
	return func(ctx context.Context, m *measurement) error {
		best := step{}
		// Of the ladder, everything below low is good and everything from
		// high on is not.
		low, high := 0, len(ladder)
		next := firstStep
		for low < high {
			s, err := m.step(ctx, ladder[next], size)
			if err != nil {
				return err
			}
			if s.loss < maxLoss {
				best, low = s, next+1
			} else {
				high = next
			}
			if next = (low + high) / 2; high == len(ladder) {
				next = min(low+stride-1, high-1)
			}
		}
		if best.rate == 0 {
			return fmt.Errorf("more than %v of %d datagrams a second are lost", maxLoss, ladder[0])
		}
		m.add("rate", "/s", best.rate)
		m.add("lost", "%", best.loss*100)
		if m.program() {
			m.add("router", "µs each", best.cost.router.Seconds()*1e6/best.count)
		}
		m.add("machine", "µs each", best.cost.machine.Seconds()*1e6/best.count)
		m.addOthers(best.cost)
		return nil
	}
}

// step tries a rate, and tries it again where too much is lost. A rate that the
// sender does not reach is no better than one at which all is lost.
func (m *measurement) step(ctx context.Context, rate, size int) (s step, err error) {
	for range 2 {
		m.key++
		var sent load.SendResult
		var got load.Received
		c, err := m.measure(func() (err error) {
			if sent, err = m.lab.load.Send(load.SendArgs{Way: m.way, Size: size, Rate: rate, For: min(stepTime, m.o.Time), Key: m.key}); err != nil {
				return err
			}
			got, err = m.lab.bulk.Counts(m.key)
			return err
		})
		if err != nil {
			return s, err
		}
		if got.Wrong != "" {
			return s, wrongBytes("%s", got.Wrong)
		}
		if got.Repeated > 0 {
			return s, wrongBytes("%d datagrams came twice", got.Repeated)
		}
		s = step{
			rate:  float64(got.Count) / sent.Took.Seconds(),
			loss:  1 - float64(got.Count)/float64(sent.Sent),
			count: float64(got.Count),
			cost:  c,
		}
		if float64(sent.Sent) < minSent*float64(rate)*sent.Took.Seconds() {
			s.loss = 1
		}
		if s.loss < maxLoss || ctx.Err() != nil {
			break
		}
	}
	return s, ctx.Err()
}

// echoUDP is datagrams that come back.
func echoUDP(_ context.Context, m *measurement) error {
	return m.pingPong((*load.Role).EchoUDP, load.PingPongArgs{Sockets: 8, Window: 32, Size: 64})
}

// dnsWarm is questions for names that have an address.
func dnsWarm(_ context.Context, m *measurement) error {
	return m.dns(load.PingPongArgs{Names: 1000})
}

// coldNames is how many names there are: fewer than any router has addresses
// for.
const coldNames = 100_000

// dnsCold is questions for names that nobody has asked for.
func dnsCold(_ context.Context, m *measurement) error {
	return m.dns(load.PingPongArgs{Names: coldNames, Once: true})
}

func (m *measurement) dns(a load.PingPongArgs) error {
	server, err := netip.ParseAddrPort(m.router.DNS)
	if err != nil {
		return err
	}
	a.Server, a.Sockets, a.Window = server, 8, 8
	if !a.Once {
		// Each name once, so that it has an address.
		warm := a
		warm.For, warm.Once, warm.Key = m.o.Time+time.Minute, true, m.key
		if _, err := m.lab.load.DNS(warm); err != nil {
			return err
		}
	}
	return m.pingPong((*load.Role).DNS, a)
}

// pingPong has a client do something with datagrams that are answered.
func (m *measurement) pingPong(f func(*load.Role, load.PingPongArgs) (load.PingPongResult, error), a load.PingPongArgs) error {
	a.Way, a.For, a.Key = m.way, m.o.Time, m.key
	var r load.PingPongResult
	c, err := m.measure(func() (err error) {
		r, err = f(m.lab.load, a)
		return err
	})
	switch {
	case err != nil:
		return err
	case r.Wrong != "":
		return wrongBytes("%s", r.Wrong)
	case r.Answers == 0:
		return errors.New("no answer")
	}
	m.add("rate", "/s", float64(r.Answers)/r.Took.Seconds())
	m.add("lost", "", float64(r.Lost))
	if a.Server.IsValid() {
		m.add("refused", "", float64(r.Refused))
	}
	if m.program() {
		m.add("router", "µs each", float64(c.router.Microseconds())/float64(r.Answers))
	}
	m.add("machine", "µs each", float64(c.machine.Microseconds())/float64(r.Answers))
	m.addOthers(c)
	return nil
}
