package dnsfake

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// oracle knows what clients were told of addresses, and what they may rely on.
type oracle struct {
	t          *testing.T
	quarantine time.Duration
	told       map[string]uint32  // the place that a name was last told to have
	holder     map[uint32]*holder // who was last told of a place, or had a flow to it
	switched   int                // how often a place became another name's
}

type holder struct {
	name  string
	used  time.Time
	flows int
}

// tell says that a client has been told, or has found, that slot is name's.
func (o *oracle) tell(what, name string, slot uint32, now time.Time) *holder {
	o.t.Helper()
	h := o.holder[slot]
	if h == nil || h.name != name {
		if h != nil {
			o.switched++
			if h.flows > 0 || now.Sub(h.used) < o.quarantine {
				o.t.Fatalf("%s: place %d is %s, and was %s %v ago with %d flows", what, slot, name, h.name, now.Sub(h.used), h.flows)
			}
			delete(o.told, h.name)
		}
		if was, ok := o.told[name]; ok && was != slot {
			o.t.Fatalf("%s: %s is at %d, was told to be at %d", what, name, slot, was)
		}
		h = &holder{name: name}
		o.holder[slot] = h
		o.told[name] = slot
	}
	h.used = now
	return h
}

// evicted forgets names that have no lease any more, which has to be right.
func (o *oracle) evicted(p *Pool, now time.Time) {
	o.t.Helper()
	for name, slot := range o.told {
		if l := p.leases.placed(slot); l != nil && l.name == name {
			continue
		}
		if h := o.holder[slot]; h.flows > 0 || now.Sub(h.used) < o.quarantine {
			o.t.Fatalf("%s at %d was used %v ago, with %d flows, and is evicted", name, slot, now.Sub(h.used), h.flows)
		}
		delete(o.told, name)
	}
}

// A million random leases, flows, drops, pauses, restarts and crashes: no place is
// told to be another name's within the quarantine, none is another's while there
// is a flow, and no lease that somebody was told of is lost.
//
// A crash loses the memory and what has not been written, of which a part may be
// in the file.
func TestLeasesAgainstOracle(t *testing.T) {
	ops := 1_000_000
	if testing.Short() {
		ops = 50_000
	}
	rnd := rand.New(rand.NewPCG(6, 3))
	o := &oracle{t: t, holder: map[uint32]*holder{}, told: map[string]uint32{}, quarantine: time.Minute}
	var c clock
	path := filepath.Join(t.TempDir(), "leases")
	options := PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/26"), Quarantine: o.quarantine, Now: c.now}
	p := openPool(t, path, options)
	var (
		waiting []func() // answers that wait for the file
		flows   []func() // what ends them
		anew    *rewritten
		kills   int
		clean   int
		refused int
		answers int
	)
	written := func() {
		if err := p.store.flush(); err != nil {
			t.Fatal(err)
		}
		for _, answer := range waiting {
			answer()
		}
		waiting = nil
	}
	start := func() {
		p = openPool(t, path, options)
		waiting, flows, anew = nil, nil, nil
		for _, h := range o.holder {
			if h.flows > 0 {
				h.flows, h.used = 0, c.now() // the end of the process was the end of the flow
			}
		}
		for name, slot := range o.told {
			l, ok := p.FindName(name)
			if at, _ := p.slot(l.V4); !ok || at != slot {
				t.Fatalf("%s was told to be at %d; after a start it is at %d, %v", name, slot, at, ok)
			}
		}
	}
	step := time.Duration(p.store.useAge) * time.Second / 4 // as run has it
	name := func() string { return fmt.Sprintf("n%d.example", rnd.IntN(150)) }
	for op := range ops {
		now := c.now()
		switch x := rnd.IntN(1000); {
		case x < 535: // a question
			name := name()
			before := p.Stats().Evicted
			l, saving, err := p.grant(name)
			if err != nil {
				refused++
				continue
			}
			if p.Stats().Evicted > before {
				o.evicted(p, now)
			}
			answer := func() {
				answers++
				o.tell(fmt.Sprint("answer ", op), name, l.slot, c.now())
			}
			if saving == nil {
				answer()
			} else {
				waiting = append(waiting, answer)
			}
		case x < 600: // a question by way of the path that takes no lock
			name := name()
			if a, ok := p.leased(name, true); ok {
				slot, _ := p.slot(a)
				answers++
				o.tell(fmt.Sprint("answer ", op), name, slot, now)
			}
		case x < 680: // a flow of somebody who was told
			slot := uint32(p.reserved + rnd.IntN(p.max))
			h := o.holder[slot]
			if h == nil || len(flows) > 20 {
				continue
			}
			name, release, ok := p.Acquire(p.addr(slot, rnd.IntN(2) == 0))
			if !ok {
				continue // dropped, or evicted
			}
			if name != h.name && len(waiting) > 0 {
				release() // nobody was told of that one yet
				continue
			}
			// What the file has to know of a flow, it knows a moment later.
			written()
			h = o.tell(fmt.Sprint("flow ", op), name, slot, now)
			h.flows++
			flows = append(flows, func() {
				release()
				h.flows--
				h.used = c.now()
			})
		case x < 780 && len(flows) > 0: // one ends
			i := rnd.IntN(len(flows))
			flows[i]()
			flows = append(flows[:i], flows[i+1:]...)
			written()
		case x < 785:
			name := name()
			if slot, ok := o.told[name]; p.Drop(name) && ok {
				o.holder[slot].used = now
			}
			written()
		case x < 890: // time passes
			for range rnd.IntN(3) {
				written() // no answer waits for as long
				c.advance(time.Duration(rnd.Int64N(int64(step))))
				p.store.notePinned()
				written()
			}
		case x < 995:
			written()
		case x < 997: // the file is written anew, by and by
			switch {
			case anew == nil:
				r := p.store.begin()
				anew = &r
			case anew.file == nil:
				*anew = p.store.rewrite(*anew)
			default:
				if more, ok := p.store.more(*anew); ok {
					*anew = p.store.rewrite(more)
					continue
				}
				written()
				if err := p.store.finish(*anew); err != nil {
					t.Fatal(err)
				}
				anew = nil
			}
		case x < 998: // stopped and started
			clean++
			for _, end := range flows {
				end()
			}
			if anew != nil && anew.file != nil {
				p.store.discard(*anew)
			}
			written()
			p.store.close()
			start()
		case x < 1000: // killed and started
			kills++
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lost := p.store.pending.entries
			part := lost[:rnd.IntN(len(lost)+1)]
			kill(p)
			if anew != nil && anew.file != nil {
				anew.file.Close()
			}
			if err := os.WriteFile(path, append(file, part...), 0o600); err != nil {
				t.Fatal(err)
			}
			c.advance(time.Duration(rnd.Int64N(int64(step))))
			start()
		}
		if op%1000 == 0 {
			for slot, h := range o.holder { // what reverse questions find, which is no use
				name, ok := p.Name(p.addr(slot, false))
				if ok && name != h.name && (h.flows > 0 || now.Sub(h.used) < o.quarantine) {
					t.Fatalf("op %d: place %d is %s, and was %s %v ago", op, slot, name, h.name, now.Sub(h.used))
				}
			}
		}
	}
	t.Logf("%d answers, %d refused, %d places changed hands, %d crashes, %d restarts", answers, refused, o.switched, kills, clean)
	if answers < ops/8 || refused < ops/100 || o.switched < ops/1000 || kills < ops/1000 || clean < ops/2000 {
		t.Error("the test did not get far")
	}
}

var killCount = flag.Int("kills", 10, "how often to kill a process that leases")

// childEnv is set in a process that is to be killed: to its file.
const childEnv = "DNSFAKE_TEST_LEASES"

// leaseForever leases names and writes each with its address to standard output,
// as soon as it would be answered.
func leaseForever(path string) error {
	p, err := NewPool(PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8")})
	if err == nil {
		err = p.Open(path)
	}
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	running.Go(func() { _ = p.Run(context.Background()) })
	for g := range 8 {
		running.Go(func() {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), uint64(g)))
			for {
				name := fmt.Sprintf("n%d.example", rnd.IntN(1<<20))
				a, err := p.Lease(name, false)
				if err != nil {
					panic(err)
				}
				_, _ = fmt.Println(name, a)
			}
		})
	}
	running.Wait()
	return nil
}

// A process that leases names as fast as it can is killed at any moment: what it
// has said stays so.
func TestLeasesOutliveSIGKILL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kills := *killCount
	if testing.Short() {
		kills = min(kills, 3)
	}
	told := map[string]string{}
	for round := range kills {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// How many it says before it is killed is as good as a time, and does
		// not depend on the machine.
		enough := 1 + rand.IntN(5000)
		n := 0
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			name, addr, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if was := told[name]; was != "" && was != addr {
				t.Errorf("round %d: %s is at %s, was at %s", round, name, addr, was)
			}
			told[name] = addr
			if n++; n == enough {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		if n < enough {
			t.Fatalf("round %d: it ended after %d leases", round, n)
		}
		p := openPool(t, path, PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8")}) // by now nobody has it
		for name, addr := range told {
			if l, ok := p.FindName(name); !ok || l.V4.String() != addr {
				t.Errorf("round %d: %s was at %s, is at %v, %v", round, name, addr, l.V4, ok)
			}
		}
		kill(p)
	}
	t.Logf("%d leases after %d kills", len(told), kills)
}
