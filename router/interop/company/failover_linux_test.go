package company

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/router/interop/lab"
)

// load is a program that asks for a page twenty times a second: loadRole.
type load struct {
	*client
	name    string
	in, out *os.File // named pipes

	mu    sync.Mutex // guards lines
	lines []string   // what it has said
	more  sync.Cond  // on mu
}

// startLoad starts it, on hold.
func startLoad(t *testing.T, k kind, node *lab.Node, config string) *load {
	t.Helper()
	l := &load{client: k.start(t, node, config), name: k.name}
	l.more.L = &l.mu
	dir := lab.Dir(t)
	l.in, l.out = pipe(t, dir, "in"), pipe(t, dir, "out")
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(l.out); s.Scan(); l.more.Broadcast() {
			l.mu.Lock()
			l.lines = append(l.lines, s.Text())
			l.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		l.in.Close()
		l.out.Close()
		reading.Wait()
	})
	l.sh.Send(t, "%s load http://www.example.com/ <%s >%s", lab.Self, l.in.Name(), l.out.Name())
	return l
}

// pipe makes a named pipe that everybody can open, and holds both its ends.
func pipe(t *testing.T, dir, name string) *os.File {
	t.Helper()
	path := filepath.Join(dir, name)
	err := unix.Mkfifo(path, 0o666)
	if err == nil {
		err = os.Chmod(path, 0o666) // whatever the umask
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// said returns how many lines it has said.
func (l *load) said() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// await waits until n lines behind the first skip have a text in them, and returns all
// behind these.
func (l *load) await(t *testing.T, skip, n int, text string) []string {
	t.Helper()
	const deadline = 3 * time.Minute
	late := time.AfterFunc(deadline, l.more.Broadcast)
	defer late.Stop()
	end := time.Now().Add(deadline)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		found := 0
		for _, line := range l.lines[skip:] {
			if strings.Contains(line, text) {
				found++
			}
		}
		if found >= n {
			return slices.Clone(l.lines[skip:])
		}
		if time.Now().After(end) {
			t.Fatalf("%s: the program has not said %q %d times, but\n%s", l.name, text, n, strings.Join(l.lines[skip:], "\n"))
		}
		l.more.Wait()
	}
}

// tell tells it one of the words of loadRole, and returns when it is done.
func (l *load) tell(t *testing.T, word string) {
	t.Helper()
	skip := l.said()
	if _, err := fmt.Fprintln(l.in, word); err != nil {
		t.Fatal(err)
	}
	if word == hold {
		l.await(t, skip, 1, held)
	}
}

// Two programs, one routed by run and one in an exec, ask for a page twenty times a
// second each, while int2 breaks in all the ways in which gateways break. They do not
// notice, but for the time that it takes, and int2 is used again when it is well.
//
// What is open through a gateway at the moment when it breaks is lost with it, since it
// is half way through: so nothing is then.
func TestFailover(t *testing.T) {
	lab.NeedRoot(t) // exec does, for another user
	for _, servers := range softwares {
		t.Run(servers.name, func(t *testing.T) { failover(t, servers) })
	}
}

func failover(t *testing.T, servers *software) {
	n := newNetwork(t, servers, 2)
	int2 := n.int[1]
	var loads []*load
	for i, node := range []*lab.Node{n.client, n.second} {
		loads = append(loads, startLoad(t, kinds[i], node, config(t,
			change{"badexpire: 10s", "badexpire: 1s"},
			change{"{connect: 3s, negotiate: 3s}", "{connect: 8s, negotiate: 8s}"}))) // a slow machine is no broken one
	}
	all := func(f func(l *load)) {
		for _, l := range loads {
			f(l)
		}
	}
	const anotherPassword = "another password"
	peer1, peer2 := fmt.Sprintf(" peer=%v ", gatewayAddr(1)), fmt.Sprintf(" peer=%v ", gatewayAddr(2))
	all(func(l *load) {
		l.tell(t, goOn)
		l.await(t, 0, 1, peer1)
		l.await(t, 0, 1, peer2)
	})
	for _, mode := range []struct {
		name        string
		spoil, mend func()
		logged      string // when int2 has become bad; "" is not at all
	}{
		{"killed", func() { int2.kill(t) }, int2.start,
			`msg="member of a group is bad" group=internet member=int2 net=tcp cause="connect failed"`},
		{"stopped", func() { int2.signal(t, unix.SIGSTOP) }, func() { int2.signal(t, unix.SIGCONT) },
			`msg="member of a group is bad" group=internet member=int2 net=tcp cause="no answer"`},
		// It answers that a name or a host cannot be reached, which may be true.
		{"cut from the Internet", func() { int2.IP(t, "link set net down") }, func() { int2.IP(t, "link set net up") }, ""},
		{"its packets dropped", func() {
			int2.IP(t, "route add blackhole 10.0.0.10")
			int2.IP(t, "route add blackhole 10.0.0.11")
		}, func() {
			int2.IP(t, "route del blackhole 10.0.0.10")
			int2.IP(t, "route del blackhole 10.0.0.11")
		}, `msg="member of a group is bad" group=internet member=int2 net=tcp cause="connect failed"`},
		{anotherPassword, func() { int2.password(t, another) }, func() { int2.password(t, password) },
			`msg="member of a group refuses our user or password" group=internet member=int2 net=tcp cause="authentication refused"`},
	} {
		begun := time.Now()
		skip, logged := make(map[*load]int), make(map[*load]int)
		all(func(l *load) { l.tell(t, hold) })
		mode.spoil()
		int2.connections(t)
		all(func(l *load) {
			skip[l], logged[l] = l.said(), len(l.tunroute.Log())
			l.tell(t, goOn)
		})
		all(func(l *load) {
			if mode.logged != "" {
				l.tunroute.AwaitLog(t, logged[l], mode.logged)
			}
			if mode.name == anotherPassword { // until it was seen, the old one was right
				l.tell(t, hold)
				skip[l] = l.said()
				l.tell(t, goOn)
			}
			l.await(t, l.said(), 20, peer1)
		})
		tried := int2.connections(t)
		if tried == 0 {
			t.Errorf("%s: nobody has tried int2", mode.name)
		}
		all(func(l *load) {
			for _, line := range l.await(t, skip[l], 0, "") {
				if strings.Contains(line, peer2) {
					t.Errorf("%s, %s: %s", mode.name, l.name, line)
				}
			}
			logged[l] = len(l.tunroute.Log())
		})
		broken := time.Since(begun)
		mode.mend()
		all(func(l *load) {
			if mode.logged != "" {
				l.tunroute.AwaitLog(t, logged[l], `msg="member of a group is good again" group=internet member=int2`)
			}
			lines := l.await(t, skip[l], 1, peer2)
			t.Logf("int2 %s, %s: %s", mode.name, l.name, summary(t, lines))
		})
		t.Logf("int2 %s: for %v, with %d connections to it, and used again after %v", mode.name,
			broken.Round(time.Millisecond), tried, (time.Since(begun) - broken).Round(time.Millisecond))
	}
	all(func(l *load) {
		l.tell(t, hold)
		lines := l.await(t, 0, 0, "")
		if i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "failed") }); i >= 0 {
			t.Errorf("%s: of %d requests some have failed, one %s", l.name, len(lines), lines[i])
		}
		l.in.Close()
		if out, status := l.sh.Receive(t); status != 0 {
			t.Errorf("%s: the program ended with status %d, %s", l.name, status, out)
		}
		l.stop(t)
	})
}

// summary tells how many requests there were and how long they took.
func summary(t *testing.T, lines []string) string {
	t.Helper()
	var took []time.Duration
	failed := 0
	for _, line := range lines {
		switch f := strings.Fields(line); f[0] {
		case "failed":
			failed++
		case "ok":
			d, err := time.ParseDuration(f[1])
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, d)
		}
	}
	slices.Sort(took)
	return fmt.Sprintf("%d requests, %d failed; p50 %v, p99 %v, longest %v", len(took)+failed, failed,
		took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}
