package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tunroute/bench/report"
	"tunroute/tun/nstest"
)

// needRig skips the test where the rig cannot work.
func needRig(t *testing.T) {
	t.Helper()
	if err := possible(); err != nil {
		nstest.Missing(t, err.Error())
	}
}

// rigRun runs the rig and returns its report and what it prints. Whatever comes
// of it, nothing may be left behind.
func rigRun(t *testing.T, args ...string) (*report.Report, string, error) {
	t.Helper()
	needRig(t)
	before := children(t)
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	file := filepath.Join(t.TempDir(), "report.json")
	var stdout, stderr strings.Builder
	err := measure(t.Context(), append(args, "-json", file), &stdout, &stderr)
	if after := children(t); !slices.Equal(before, after) {
		t.Errorf("processes are left: %v", after)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
	t.Log(stderr.String())
	rep := new(report.Report)
	if b, readErr := os.ReadFile(file); readErr == nil {
		if err := json.Unmarshal(b, rep); err != nil {
			t.Fatal(err)
		}
	}
	return rep, stdout.String(), err
}

// children lists the processes that this one has started. Namespaces have no
// names, and end with them.
func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Fatalf("/proc does not tell of children: %v", err)
	}
	var all []string
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// TestRig measures a little of everything in a short time, without a router and
// with tunroute, and looks whether there are figures.
func TestRig(t *testing.T) {
	rep, table, err := rigRun(t, "-rounds", "1", "-time", "500ms", "-long", "500ms", "-idle", "200", "-settle", "100ms",
		"-with", "none,tunroute", "-mtu", "1500", "-cells", "up1|down512|connect|echo-load|udp-echo|dns-cold|memory")
	if err != nil {
		t.Fatalf("%v\n%s", err, table)
	}
	for _, want := range []struct{ cell, router, figure string }{
		{"up1", "none", "rate"},
		{"up1", "tunroute@1500", "rate"},
		{"up1", "tunroute@1500", "router"},
		{"up1", "tunroute@1500", "machine"},
		{"down512", "tunroute@1500", "fairness"},
		{"connect", "none", "p99"},
		{"connect", "tunroute@1500", "router"},
		{"echo-load", "tunroute@1500", "p99"},
		{"udp-echo", "tunroute@1500", "rate"},
		{"dns-cold", "tunroute@1500", "rate"},
		{"memory", "tunroute@1500", "idle"},
		{"memory", "tunroute@1500", "200 flows"},
	} {
		res := rep.Result(want.cell, want.router)
		if f := res.Figure(want.figure); f == nil || len(f.Values) != 1 || f.Values[0] < 0 || f.Values[0] == 0 && want.figure != "router" { // CPU time is counted in ticks
			t.Errorf("%+v: %+v, failures %v", want, f, res.Failures)
		}
		if !strings.Contains(table, "\n"+want.router+" ") {
			t.Errorf("%s is not in the table:\n%s", want.router, table)
		}
	}
}

// TestRigFindsTheRateOfDatagrams: of the client alone, which takes a few steps. A
// machine that stands still for a moment loses too many of the slowest rate, but
// not each time.
func TestRigFindsTheRateOfDatagrams(t *testing.T) {
	found := false
	for end := time.Now().Add(3 * time.Minute); !found && time.Now().Before(end); {
		rep, table, err := rigRun(t, "-rounds", "1", "-time", "30ms", "-with", "none", "-cells", "udp1400")
		if err != nil {
			t.Fatalf("%v\n%s", err, table)
		}
		res := rep.Result("udp1400", "none")
		rate, lost := res.Figure("rate"), res.Figure("lost")
		found = rate != nil && rate.Median() > 0 && lost != nil && lost.Median() < 1
		if !found {
			t.Logf("%+v", res)
		}
	}
	if !found {
		t.Error("no rate was found, each time")
	}
}

// TestRigGatewayAndSoak: the other topology, IPv6, and streams that are half
// closed; nothing gets past a router.
func TestRigGatewayAndSoak(t *testing.T) {
	needRig(t)
	var out strings.Builder
	if err := measure(t.Context(), strings.Fields("soak -topology gateway -with none,tunroute -mtu 1500 -bytes 8M"), &out, t.Output()); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, router := range []string{"none", "tunroute@1500"} {
		for _, ip := range []string{"IPv4", "IPv6"} {
			for _, path := range []string{"up", "down", "both", "down, half closed"} {
				want := fmt.Sprintf("%s  %-24s 1048576 bytes", router, ip+" "+path)
				if path == "both" {
					want = strings.Replace(want, "1048576", "2097152", 1)
				}
				if !strings.Contains(out.String(), want) {
					t.Errorf("there is no %q in\n%s", want, &out)
				}
			}
		}
	}
}

// TestRouterThatFails: what is wrong with it is said, with its own words, and
// others are measured.
func TestRouterThatFails(t *testing.T) {
	rep, table, err := rigRun(t, "-rounds", "1", "-time", "50ms", "-with", "none", "-cells", "up1",
		"-router", "gone=echo no such {{.Tun}} >&2; exit 3",
		"-router", "none-such@9000=/nonexistent/router --mtu {{.MTU}}")
	if err != nil {
		t.Fatal(err)
	}
	for router, words := range map[string][]string{
		"gone":           {"it ended at once", "status 3", "no such rig0"},
		"none-such@9000": {"it ended at once", "/nonexistent/router"},
	} {
		res := rep.Result("up1", router)
		if len(res.Failures) != 1 {
			t.Fatalf("%s: %+v", router, res)
		}
		for _, w := range words {
			if !strings.Contains(res.Failures[0], w) || !strings.Contains(table, w) {
				t.Errorf("%s: there is no %q in %q and in\n%s", router, w, res.Failures[0], table)
			}
		}
	}
	if f := rep.Result("up1", "none").Figure("rate"); f == nil {
		t.Error("no figure of the other router")
	}
}

func TestTwoRoutersOfAName(t *testing.T) {
	if _, _, err := rigRun(t, "-with", "none,none", "-cells", "up1"); err == nil || !strings.Contains(err.Error(), "two routers are called none") {
		t.Error(err)
	}
}

func TestWrongUse(t *testing.T) {
	for _, args := range []string{
		"-cells nothing", "-cells (", "-rounds 0", "-topology ring", "surplus", "-bytes", "-mtu",
	} {
		var wrongUse *usageError
		if _, err := parse(strings.Fields(args), t.Output()); !errors.As(err, &wrongUse) {
			t.Errorf("%s: %v", args, err)
		}
	}
	for _, args := range []string{"-with=", "-with wonder", "-with none -router nonsense", "-with none -router a@b=c", "-mtu x -tunroute a=b", "-tunroute nonsense"} {
		s, err := parse(strings.Fields(args), t.Output())
		if err != nil {
			t.Fatal(err)
		}
		var wrongUse *usageError
		if _, err := s.chosen(t.Context(), t.TempDir()); !errors.As(err, &wrongUse) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestNumbersOfBytes(t *testing.T) {
	for text, want := range map[string]int64{"1": 1, "10K": 10 << 10, "3M": 3 << 20, "100G": 100 << 30, "2T": 2 << 40} {
		if got, err := parseBytes(text); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "0", "-1K", "1.5G", "1k", "9999999999T"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q: %d, want an error", text, got)
		}
	}
}
