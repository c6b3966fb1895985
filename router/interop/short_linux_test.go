package interop

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// shortResult is what the role "short" prints.
type shortResult struct {
	Lost               []string // why, of the first few
	LostN              int
	P50, P90, P99, Max time.Duration
	Took               time.Duration
}

// slow is how long a client of the role "short" waits for one connection: longer
// than a lost SYN takes to be sent again, five times.
const slow = time.Minute

// shortRole N WORKERS TARGET... makes N connections, each of which the server
// closes after one byte, WORKERS at a time and to all targets in turn.
func shortRole(args []string) error {
	n, workers, targets := atoi(args[0]), atoi(args[1]), args[2:]
	var next atomic.Int64
	var mu sync.Mutex
	var r shortResult
	all := make([]time.Duration, 0, n)
	start := time.Now()
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				began := time.Now()
				err := short(targets[i%len(targets)])
				took := time.Since(began)
				mu.Lock()
				all = append(all, took)
				if err != nil {
					if r.LostN++; r.LostN <= 5 {
						r.Lost = append(r.Lost, err.Error())
					}
				}
				mu.Unlock()
			}
		})
	}
	running.Wait()
	r.Took = time.Since(start)
	slices.Sort(all)
	r.P50, r.P90, r.P99, r.Max = all[len(all)/2], all[len(all)*9/10], all[len(all)*99/100], all[len(all)-1]
	return json.NewEncoder(os.Stdout).Encode(r)
}

func short(target string) error {
	c, err := net.DialTimeout("tcp", target, slow)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(slow))
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "x" {
		err = fmt.Errorf("%s: read %q, want one byte", target, b)
	}
	return err
}

// Connections that follow one another fast use the ports again of those before
// them, also of such as the far end has closed first, which are in TIME-WAIT
// here. Where a SYN meets one of those and is not answered, everything hangs.
func TestShortConnectionsReusePorts(t *testing.T) {
	heavy(t)
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	micro := "socks5h://" + startServer(t, l, servers.Microsocks, servers.Options{})
	for _, tt := range []struct {
		name    string
		proxies []string
		n       int
	}{
		{"direct", nil, 20_000},
		{"microsocks", []string{micro}, 20_000},
		{"danted", []string{danted}, 5_000}, // forks, and is slower by itself
	} {
		t.Run(tt.name, func(t *testing.T) {
			var targets []string
			for i := range lab.Targets {
				targets = append(targets, netip.AddrPortFrom(lab.Target4(i+1), lab.ShortPort).String())
			}
			// Of fewer ports than connections, each is used several times.
			script := fmt.Sprintf("echo 32768 33767 > /proc/sys/net/ipv4/ip_local_port_range && exec %s short %d 64 %s", lab.Self, tt.n, strings.Join(targets, " "))
			var r shortResult
			out := must(t, l.Host, rootUser.exec(tt.proxies, "sh", "-c", script)...)
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatalf("%v in %q", err, out)
			}
			t.Logf("%d connections in %v, %.0f/s, p50 %v, p99 %v, slowest %v", tt.n, r.Took.Round(time.Millisecond), float64(tt.n)/r.Took.Seconds(), r.P50, r.P99, r.Max)
			if r.LostN > 0 {
				t.Errorf("%d of %d were lost: %q", r.LostN, tt.n, r.Lost)
			}
			// A SYN that is not answered is sent again after a second. Some may be
			// lost on a busy machine, which takes its time for all of them besides;
			// those that reuse a port are most of them.
			if r.P90 >= time.Second+2*r.P50 {
				t.Errorf("one in ten took %v: SYNs are lost, or waited for", r.P90)
			}
		})
	}
}

// TestFlowsLeaveNothing: after many flows, and a while for what closes and for
// what the collector finds, the router holds what one holds that has had none.
func TestFlowsLeaveNothing(t *testing.T) {
	heavy(t)
	l := newLab(t)
	micro := "socks5h://" + startServer(t, l, servers.Microsocks, servers.Options{})
	for _, tt := range []struct {
		name    string
		proxies []string
	}{{"direct", nil}, {"microsocks", []string{micro}}} {
		t.Run(tt.name, func(t *testing.T) {
			fresh := startShell(t, l.Host, rootUser.exec(tt.proxies, "sh")...)
			fresh.Must(t, "true") // it runs, so the router does
			idle := lab.Child(t, fresh.Process(), "exec-router")
			files, memory := idle.Files(t), idle.Memory(t)
			goroutines := countGoroutines(t, fresh, idle)

			sh := startShell(t, l.Host, rootUser.exec(tt.proxies, "sh")...)
			sh.Must(t, "true")
			router := lab.Child(t, sh.Process(), "exec-router")
			sh.Must(t, "%s short 30000 64 %s", lab.Self, netip.AddrPortFrom(lab.Target4(1), lab.ShortPort))
			busy := router.Memory(t)
			// Nothing tells when the last have closed and the memory is back: on a
			// quiet machine that is TIME-WAIT and then two looks of the router's own.
			// Flows that left their files, goroutines or endpoints behind would
			// leave many thousands of them, and more than 100 MB.
			const moreFiles, moreMemory, moreGoroutines = 16, 16 << 20, 64
			deadline := time.Now().Add(2 * time.Minute)
			for time.Now().Before(deadline) && (router.Files(t) > files+moreFiles || router.Memory(t) > memory+moreMemory) {
				time.Sleep(100 * time.Millisecond)
			}
			if n := router.Files(t); n > files+moreFiles {
				t.Errorf("%d files are open, and %d in a router without a flow", n, files)
			} else {
				t.Logf("%d files, and %d in a router without a flow", n, files)
			}
			if n := router.Memory(t); n > memory+moreMemory {
				t.Errorf("%d KiB are in use, and %d KiB in a router without a flow", n>>10, memory>>10)
			} else {
				t.Logf("%d KiB, %d KiB after the last flow, and %d KiB in a router without a flow", n>>10, busy>>10, memory>>10)
			}
			if n := countGoroutines(t, sh, router); n > goroutines+moreGoroutines {
				t.Errorf("%d goroutines, and %d in a router without a flow:\n%s", n, goroutines, sh.Log())
			} else {
				t.Logf("%d goroutines, and %d in a router without a flow", n, goroutines)
			}
		})
	}
}

// countGoroutines ends a router, and with it the shell.
func countGoroutines(t *testing.T, sh *lab.Shell, router *lab.Process) int {
	t.Helper()
	router.Signal(t, unix.SIGQUIT) // the runtime prints them
	router.Wait(t)
	sh.Close(t) // exec has passed all of it on then
	return strings.Count("\n"+sh.Log(), "\ngoroutine ")
}
