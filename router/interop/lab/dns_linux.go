package lab

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// DNS is a dnsmasq that knows a few names, and that no other exists.
type DNS struct {
	node *Node
	at   netip.Addr

	mu      sync.Mutex // guards queries
	queries []string   // the names that were asked for, in order
	asked   int
	arrived *sync.Cond // on mu
}

// newDNS starts a dnsmasq on a node, where it listens at all of at, until the
// test ends. It knows the names, each as Target4(1) and Target6(1).
func newDNS(t testing.TB, n *Node, at []netip.Addr, names ...string) *DNS {
	t.Helper()
	Need(t, "dnsmasq", "dnsmasq-base")
	args := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--group=root",
		"--no-hosts", "--no-resolv", "--bind-interfaces", "--log-queries", "--log-facility=-",
		// All names but those below do not exist.
		"--local=/#/"}
	for _, a := range at {
		args = append(args, "--listen-address="+a.String())
	}
	for _, name := range names {
		args = append(args, fmt.Sprintf("--address=/%s/%s", name, Target4(1)), fmt.Sprintf("--address=/%s/%s", name, Target6(1)))
	}
	cmd := n.Command(args...)
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	d := &DNS{node: n, at: at[0]}
	d.arrived = sync.NewCond(&d.mu)
	started := make(chan bool)
	var reading sync.WaitGroup
	reading.Go(func() { d.read(bufio.NewScanner(log), started) })
	t.Cleanup(func() {
		cmd.Process.Kill()
		reading.Wait()
		cmd.Wait()
	})
	if !<-started {
		t.Fatalf("dnsmasq does not start: %s", strings.Join(d.queries, "\n"))
	}
	return d
}

// read reads the log until dnsmasq ends. It tells started whether it has got as
// far as to serve; if not, queries is what it said instead.
func (d *DNS) read(lines *bufio.Scanner, started chan<- bool) {
	serving := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case !serving && strings.Contains(line, ": started"):
			serving = true
			started <- true
		case !serving:
			d.queries = append(d.queries, line)
		default:
			// dnsmasq: query[A] name.example from 10.77.0.2
			if _, q, ok := strings.Cut(line, ": query["); ok {
				if f := strings.Fields(q); len(f) >= 2 {
					d.mu.Lock()
					d.queries = append(d.queries, f[1])
					d.mu.Unlock()
					d.arrived.Broadcast()
				}
			}
		}
	}
	if !serving {
		started <- false
	}
}

// Queries returns how often a name, or one that has it in it, was asked for until
// now, with any type and in any spelling.
func (d *DNS) Queries(t testing.TB, name string) int {
	t.Helper()
	// The log is in order: when the question of this call is in it, so are
	// all before.
	d.mu.Lock()
	d.asked++
	last := fmt.Sprintf("sync-%d.test", d.asked)
	d.mu.Unlock()
	Need(t, "dig", "bind9-dnsutils")
	if r := d.node.Run(t, "dig", "@"+d.at.String(), last); r.Status != 0 {
		t.Fatalf("dig %s: status %d, %s%s", last, r.Status, r.Stdout, r.Stderr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		n, seen := 0, false
		for _, q := range d.queries {
			if strings.Contains(strings.ToLower(q), name) {
				n++
			}
			seen = seen || q == last
		}
		if seen {
			return n
		}
		d.arrived.Wait()
	}
}
