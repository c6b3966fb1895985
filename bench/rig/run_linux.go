package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/bench/load"
	"tunroute/bench/proc"
	"tunroute/bench/report"
)

// Options are what [Run] measures, and how.
type Options struct {
	Topology string
	Routers  []Router
	Cells    []Cell
	Rounds   int
	Time     time.Duration // of a cell that has none of its own
	Long     time.Duration // of cells with many streams
	Connects int64         // connections of the cell connect; 0 for as many as Time allows
	Idle     int           // idle connections of the cell memory
	Settle   time.Duration // from their close to the last figure
	Seed     uint64        // of the bytes that are sent
	// Others is how much of the machine, in percent, others may take during a
	// run that counts; one in which they take more is done again, a few times.
	// 100 lets every run count.
	Others   float64
	Progress io.Writer // a line for each round of a cell and router
}

// ErrWrongBytes is what [Run] returns where bytes did not arrive as they were
// sent.
var ErrWrongBytes = errors.New("bytes did not arrive as they were sent")

// errNotForIt says that a cell has no meaning for a router.
var errNotForIt = errors.New("not for this router")

// Run measures every cell with every router, in rounds: each router is measured
// once before any is measured again, and another one is the first each time. A
// router that fails is told of in the report; the error is for what makes the
// report worthless.
func Run(ctx context.Context, o Options) (*report.Report, error) {
	rep := &report.Report{When: time.Now().UTC().Truncate(time.Second), Topology: o.Topology, Rounds: o.Rounds, Seed: o.Seed, Machine: machine()}
	var routers []*Router
	for i := range o.Routers {
		r := &o.Routers[i]
		if err := r.check(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(rep.Routers, func(other report.Router) bool { return other.Name == r.Name }) {
			return nil, fmt.Errorf("two routers are called %s", r.Name)
		}
		rep.Routers = append(rep.Routers, r.describe())
		if r.Skip == "" {
			routers = append(routers, r)
		}
	}
	wrong := false
	for round := range o.Rounds {
		for c, cell := range o.Cells {
			for i := range routers {
				router := routers[(i+round+c)%len(routers)]
				err := o.calm(ctx, cell, router, rep)
				if ctx.Err() != nil {
					return rep, context.Cause(ctx)
				}
				switch {
				case errors.Is(err, errNotForIt):
					continue
				case err != nil:
					res := rep.Result(cell.Name, router.Name)
					res.Failures = append(res.Failures, err.Error())
					wrong = wrong || errors.Is(err, ErrWrongBytes)
				}
				o.progress(round, cell, router, rep, err)
			}
		}
	}
	if wrong {
		return rep, ErrWrongBytes
	}
	return rep, nil
}

func (o *Options) progress(round int, cell Cell, router *Router, rep *report.Report, err error) {
	line := fmt.Sprintf("round %d of %d, %s, %s:", round+1, o.Rounds, cell.Name, router.Name)
	if err != nil {
		line += " " + err.Error()
	} else {
		for _, f := range rep.Result(cell.Name, router.Name).Figures {
			last := report.Figure{Values: f.Values[len(f.Values)-1:]}
			line += fmt.Sprintf(" %s %s %s,", f.Name, last.String(), f.Unit)
		}
		line = line[:len(line)-1]
	}
	fmt.Fprintln(o.Progress, line)
}

const (
	// patience is how often a run is done again because of others.
	patience = 5
	// quietTime is how long the machine must be quiet before a run, and
	// quietWait the most that is waited for that.
	quietTime = 300 * time.Millisecond
	quietWait = time.Minute
)

// calm is one, done again until others did not disturb it.
func (o *Options) calm(ctx context.Context, cell Cell, router *Router, rep *report.Report) error {
	for try := 0; ; try++ {
		if err := o.quiet(ctx); err != nil {
			return err
		}
		figures, err := o.one(ctx, cell, router)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(figures, func(f report.Figure) bool { return f.Name == othersName })
		if i >= 0 && figures[i].Values[0] > o.Others && try < patience {
			fmt.Fprintf(o.Progress, "%s, %s: others took %.0f %% of the machine, again\n", cell.Name, router.Name, figures[i].Values[0])
			continue
		}
		res := rep.Result(cell.Name, router.Name)
		for _, f := range figures {
			res.Add(f.Name, f.Unit, f.Values[0])
		}
		return nil
	}
}

// quiet waits for a time in which others take no more than they may, but not for
// ever.
func (o *Options) quiet(ctx context.Context) error {
	if o.Others >= 100 {
		return nil
	}
	for end := time.Now().Add(quietWait); time.Now().Before(end); {
		begin := time.Now()
		before, err := othersTime()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quietTime):
		}
		after, err := othersTime()
		if err != nil {
			return err
		}
		if percent(after-before, time.Since(begin)) <= o.Others {
			return nil
		}
	}
	return nil
}

// othersTime returns the processor time of everything that is not the rig's.
func othersTime() (time.Duration, error) {
	all, err := proc.Machine()
	if err != nil {
		return 0, err
	}
	rig, err := ours()
	return all - rig, err
}

// percent returns how much of the machine a processor time is.
func percent(busy, wall time.Duration) float64 {
	return max(0, 100*float64(busy)/float64(wall*time.Duration(runtime.NumCPU())))
}

// oneTime is the most that a cell may take beside the times that the options
// give it: nothing here takes as long, but a router may do anything.
const oneTime = 10 * time.Minute

// one measures a cell with a router once, on hosts of its own.
func (o *Options) one(ctx context.Context, cell Cell, router *Router) ([]report.Figure, error) {
	if cell.fits != nil && !cell.fits(router) {
		return nil, errNotForIt
	}
	ctx, cancel := context.WithTimeoutCause(ctx, oneTime+o.Time+o.Long+o.Settle, errors.New("it takes too long"))
	defer cancel()
	l, err := newLab(o.Topology, router.Direct, o.Seed)
	if err != nil {
		return nil, err
	}
	defer l.close()
	defer context.AfterFunc(ctx, l.stopRoles)()

	m := &measurement{o: o, lab: l, router: router, way: l.way(router, false), key: rand.Uint64(), begin: time.Now()}
	if m.running, err = router.start(ctx, l, m.way); err != nil {
		return nil, err
	}
	defer m.running.stop()
	if err := cell.run(ctx, m); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if m.running != nil {
			select {
			case <-m.running.Ended():
				err = fmt.Errorf("%w (the router has ended: %v)%s", err, m.running.Err(), m.running.said())
			default:
			}
		}
		return nil, err
	}
	return m.figures, nil
}

// way is how clients reach the targets with a router.
func (l *lab) way(r *Router, v6 bool) load.Way {
	var w load.Way
	for i := range targets {
		if v6 {
			w.Targets = append(w.Targets, target6(i))
		} else {
			w.Targets = append(w.Targets, target4(i))
		}
	}
	if r.Serves {
		w.SOCKS = l.listen(v6)
	}
	if r.SOCKS {
		w.SOCKS = socksAddr
		if v6 {
			w.SOCKS = netip.AddrPortFrom(server6.Addr(), socksPort)
		}
	}
	return w
}

// measurement is one run of a cell with a router.
type measurement struct {
	o       *Options
	lab     *lab
	router  *Router
	running *running // nil where there is no program
	way     load.Way
	key     uint64 // of the first stream
	figures []report.Figure
	begin   time.Time
}

// add adds a figure.
func (m *measurement) add(name, unit string, value float64) {
	m.figures = append(m.figures, report.Figure{Name: name, Unit: unit, Values: []float64{value}})
}

// program says whether the router has a program of which there are figures.
func (m *measurement) program() bool { return m.running != nil }

// usage is what the router uses, nothing where it has no program.
func (m *measurement) usage() (proc.Usage, error) {
	if !m.program() {
		return proc.Usage{}, nil
	}
	return proc.Tree(m.running.PID())
}

// cost is what something has cost.
type cost struct {
	router, machine time.Duration // of processors
	rig             time.Duration // of all that the rig has started
	wall            time.Duration // that has passed
	retransmits     int64         // of all hosts
}

// measure finds what f costs.
func (m *measurement) measure(f func() error) (cost, error) {
	before, err := m.totals()
	if err != nil {
		return cost{}, err
	}
	if err := f(); err != nil {
		return cost{}, err
	}
	after, err := m.totals()
	return cost{
		after.router - before.router, after.machine - before.machine, after.rig - before.rig,
		after.wall - before.wall, after.retransmits - before.retransmits,
	}, err
}

// othersName is the figure of what others took.
const othersName = "others"

// addOthers adds how much of the machine was taken by what is not the rig's:
// where that is not near 0, no figure of time can be relied on.
func (m *measurement) addOthers(c cost) {
	m.add(othersName, "%", percent(c.machine-c.rig, c.wall))
}

func (m *measurement) totals() (c cost, err error) {
	pids := []int{m.lab.load.PID(), m.lab.socks.PID()}
	if m.program() && m.lab.client != m.lab.router {
		pids = append(pids, m.running.PID())
	}
	for _, pid := range pids {
		n, err := proc.Retransmits(pid)
		if err != nil {
			return c, err
		}
		c.retransmits += n
	}
	u, err := m.usage()
	if err != nil {
		return c, err
	}
	c.router = u.CPU
	if c.rig, err = ours(); err != nil {
		return c, err
	}
	c.wall = time.Since(m.begin)
	c.machine, err = proc.Machine()
	return c, err
}

// ours returns the processor time of the rig and all that it has started.
func ours() (time.Duration, error) {
	tree, err := proc.Tree(os.Getpid())
	if err != nil {
		return 0, err
	}
	sum := tree.CPU
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, os.NewSyscallError("getrusage", err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}

// wrongBytes is an error about bytes.
func wrongBytes(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrWrongBytes, fmt.Sprintf(format, args...))
}
