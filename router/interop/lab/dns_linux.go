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

	mu      sync.Mutex // guards what follows
	queries []Query    // in order
	said    []string   // before it served
	asked   int
	arrived *sync.Cond // on mu
}

// Query is a question that a DNS was asked.
type Query struct {
	Name string
	From netip.Addr
}

func (q Query) String() string { return fmt.Sprintf("%s from %v", q.Name, q.From) }

// newDNS is NewDNS with names that all are Target4(1) and Target6(1).
func newDNS(t testing.TB, n *Node, at []netip.Addr, names ...string) *DNS {
	t.Helper()
	known := make(map[string][]netip.Addr)
	for _, name := range names {
		known[name] = []netip.Addr{Target4(1), Target6(1)}
	}
	return NewDNS(t, n, at, known)
}

// NewDNS starts a dnsmasq on a node, where it listens at all of at, until the
// test ends. It knows the names, and that all below them are the same.
func NewDNS(t testing.TB, n *Node, at []netip.Addr, names map[string][]netip.Addr) *DNS {
	t.Helper()
	Need(t, "dnsmasq", "dnsmasq-base")
	// Without a group: to set one is forbidden to the root of a user namespace
	// (user_namespaces(7), /proc/pid/setgroups).
	args := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--group=",
		"--no-hosts", "--no-resolv", "--bind-interfaces", "--log-queries", "--log-facility=-",
		// All names but those below do not exist.
		"--local=/#/"}
	for _, a := range at {
		args = append(args, "--listen-address="+a.String())
	}
	for name, addrs := range names {
		for _, a := range addrs {
			args = append(args, fmt.Sprintf("--address=/%s/%s", name, a))
		}
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
		t.Fatalf("dnsmasq does not start: %s", strings.Join(d.said, "\n"))
	}
	return d
}

// read reads the log until dnsmasq ends. It tells started whether it has got as
// far as to serve; if not, d.said is what it said instead.
func (d *DNS) read(lines *bufio.Scanner, started chan<- bool) {
	serving := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case !serving && strings.Contains(line, ": started"):
			serving = true
			started <- true
		case !serving:
			d.said = append(d.said, line)
		default:
			// dnsmasq: query[A] name.example from 10.77.0.2
			if _, q, ok := strings.Cut(line, ": query["); ok {
				if f := strings.Fields(q); len(f) == 4 {
					from, _ := netip.ParseAddr(f[3])
					d.mu.Lock()
					d.queries = append(d.queries, Query{f[1], from})
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
	return len(d.Asked(t, name))
}

// Asked is [DNS.Queries] with who has asked.
func (d *DNS) Asked(t testing.TB, name string) []Query {
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
		var found []Query
		seen := false
		for _, q := range d.queries {
			if strings.Contains(strings.ToLower(q.Name), name) {
				found = append(found, q)
			}
			seen = seen || q.Name == last
		}
		if seen {
			return found
		}
		d.arrived.Wait()
	}
}
