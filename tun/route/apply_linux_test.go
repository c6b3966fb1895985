package route

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tunroute/tun"
	"tunroute/tun/nstest"
)

// The topology of these tests, in a namespace of their own. up0 is the way out,
// lan0 a connected network, mid0 one that main reaches through the LAN:
//
//	                 ┌── up0   192.0.2.2/24   2001:db8::2/64    default via .1, ::1
//	host (main) ─────┼── lan0  10.1.2.1/24    2001:db8:2::1/64
//	                 │   └ 10.0.0.0/8 and 2001:db8:100::/40 via lan0
//	own tables ──────┴── tun0  198.18.0.1/32  fd00:74::1/128
//
// Nobody answers on the other ends: the tests ask the kernel where packets would
// go.

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "apply-and-wait" {
		applyAndWait(os.Args[2], os.Args[3])
		return
	}
	nstest.Enter()
	goleak.VerifyTestMain(m)
}

// applyAndWait is a run that will be killed.
func applyAndWait(device, table string) {
	o := options()
	if device == "tun1" {
		o = second()
	}
	o.Table, _ = strconv.Atoi(table)
	_, err := tun.Open(tun.Config{Name: device})
	if err == nil {
		err = Clean(o)
	}
	if err == nil {
		_, err = applyNew(o)
	}
	fmt.Println("applied:", err)
	<-make(chan struct{}) // until SIGKILL
}

// start starts a run and returns how to kill it.
func start(t *testing.T, device string, table int) (kill func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "apply-and-wait", device, strconv.Itoa(table))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "applied: <nil>\n" {
		t.Fatalf("the run with %s says %q", device, line)
	}
	return kill
}

func applyNew(o Options) (*Applied, error) {
	h, err := ReadHost(o.Device)
	if err != nil {
		return nil, err
	}
	p, err := New(o, h)
	if err != nil {
		return nil, err
	}
	return Apply(context.Background(), p)
}

func options() Options {
	return Options{Device: "tun0", Addresses: prefixes("198.18.0.1/32 fd00:74::1/128")}
}

// second are those of another run on the same host: it has a part of what main
// has no route for, and a mark of its own.
func second() Options {
	return Options{
		Device: "tun1", Addresses: prefixes("198.19.0.1/32 fd00:75::1/128"), Table: 2000,
		Routes: prefixes("198.51.100.0/24 2001:db8:ffff::/48"), Mark: 0x75000000, MarkMask: 0xff000000,
	}
}

// host makes the topology but for tun0.
func host(t *testing.T) {
	t.Helper()
	nstest.NeedTUN(t)
	for _, name := range []string{"up", "lan"} {
		nstest.IP(t, "link add "+name+"0 type veth peer name "+name+"1")
		t.Cleanup(func() { nstest.IP(t, "link del "+name+"0") })
		for _, end := range []string{"0", "1"} {
			nstest.IP(t, "link set "+name+end+" addrgenmode none")
			nstest.IP(t, "link set "+name+end+" up")
		}
	}
	nstest.IP(t, "link set lo up")
	for _, line := range []string{
		"addr add 192.0.2.2/24 dev up0",
		"addr add 2001:db8::2/64 nodad dev up0",
		"addr add 10.1.2.1/24 dev lan0",
		"addr add 2001:db8:2::1/64 nodad dev lan0",
		"route add default via 192.0.2.1",
		"route add default via 2001:db8::1",
		"route add 10.0.0.0/8 via 10.1.2.254",
		"route add 2001:db8:100::/40 via 2001:db8:2::254",
	} {
		nstest.IP(t, line)
	}
	// The kernel tells of a carrier, and gives IPv6 its local routes, in a work
	// queue: until then a snapshot is one of a host that changes.
	settled := func() bool {
		local := nstest.IP(t, "-6 route show table local")
		for _, dev := range []string{"local 2001:db8::2 dev up0", "local 2001:db8:2::1 dev lan0", "ff00::/8 dev up1", "ff00::/8 dev lan1"} {
			if !strings.Contains(local, dev) {
				return false
			}
		}
		return !strings.Contains(nstest.IP(t, "link"), "NO-CARRIER")
	}
	for !settled() && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
}

// device makes tun0.
func device(t *testing.T, name string) tun.Device {
	t.Helper()
	d, err := tun.Open(tun.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	nstest.IP(t, "link set "+name+" addrgenmode none")
	// The kernel gives an interface its queueing discipline when it is set up
	// for the first time, and does not take it back.
	nstest.IP(t, "link set "+name+" up")
	nstest.IP(t, "link set "+name+" down")
	return d
}

// snapshot is all that a plan could change.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{
		"-j link", "-j addr", "-4 -j rule", "-6 -j rule", "-4 -j route show table all", "-6 -j route show table all",
	} {
		b.WriteString(strings.ReplaceAll(nstest.IP(t, line), "},{", "},\n{"))
	}
	return b.String()
}

func mustApply(t *testing.T, o Options) *Applied {
	t.Helper()
	a, err := applyNew(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func undo(t *testing.T, a *Applied) {
	t.Helper()
	if err := a.Undo(); err != nil {
		t.Error("Undo:", err)
	}
}

// via asks where packets go: the interface, "local", or the error.
func via(dst string, mark uint32) string {
	ifname, _, local, err := Via(netip.MustParseAddr(dst), mark)
	for errno, name := range map[error]string{unix.EHOSTUNREACH: "unreachable", unix.ENETUNREACH: "no route"} {
		if errors.Is(err, errno) {
			return name
		}
	}
	switch {
	case err != nil:
		return err.Error()
	case local:
		return "local"
	}
	return ifname
}

func checkVia(t *testing.T, mark uint32, want map[string]string) {
	t.Helper()
	for dst, w := range want {
		if got := via(dst, mark); got != w {
			t.Errorf("mark %#x: %s goes to %s, want %s", mark, dst, got, w)
		}
	}
}

func TestApplyRoutesAndUndoRestores(t *testing.T) {
	host(t)
	device(t, "tun0")
	before := snapshot(t)
	mainOnly := map[string]string{
		"203.0.113.9": "up0", "2001:db8:ffff::9": "up0",
		"10.1.2.9": "lan0", "10.9.9.9": "lan0", "2001:db8:100::9": "lan0",
		"192.0.2.2": "local", "2001:db8::2": "local", "127.0.0.1": "local",
	}
	checkVia(t, 0, mainOnly)

	a := mustApply(t, options())
	checkVia(t, 0, map[string]string{
		"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0", // default routes only
		"10.1.2.9": "lan0", "10.9.9.9": "lan0", "2001:db8:100::9": "lan0", "192.0.2.9": "up0",
		"192.0.2.2": "local", "2001:db8::2": "local", "127.0.0.1": "local", "198.18.0.1": "local", "fd00:74::1": "local",
	})
	checkVia(t, DefaultMark, mainOnly)
	checkVia(t, DefaultMark|0x1234, mainOnly) // the other bits are not ours

	// What the host opens has an address of the TUN, and so finds the way back.
	for dst, want := range map[string]string{"203.0.113.9": "198.18.0.1", "2001:db8:ffff::9": "fd00:74::1"} {
		if _, src, _, err := Via(netip.MustParseAddr(dst), 0); err != nil || src.String() != want {
			t.Errorf("source address towards %s is %s, %v, want %s", dst, src, err, want)
		}
	}
	// Answers to what came from outside leave as they came.
	for _, line := range []string{
		"route get 203.0.113.9 from 192.0.2.2", "route get 2001:db8:ffff::9 from 2001:db8::2 ipproto tcp sport 22",
	} {
		if out := nstest.IP(t, line); !strings.Contains(out, "dev up0") {
			t.Errorf("ip %s: %s", line, out)
		}
	}
	// What comes out of the TUN does not go back in; what is forwarded does go in.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0)
	for line, dev := range map[string]string{
		"route get 203.0.113.9 from 198.51.100.7 iif tun0": "dev up0",
		"route get 203.0.113.9 from 10.1.2.77 iif lan0":    "dev tun0",
	} {
		if out := nstest.IP(t, line); !strings.Contains(out, dev) {
			t.Errorf("ip %s: %s", line, out)
		}
	}

	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
	checkVia(t, 0, mainOnly)
	undo(t, a) // nothing left to undo
}

// An explicit route wins over one of main that is as long or shorter, and
// leaves longer ones alone. An exclusion goes back to main.
func TestExplicitRoutesAndExclusions(t *testing.T) {
	host(t)
	device(t, "tun0")
	before := snapshot(t)
	o := options()
	o.Routes = prefixes("0.0.0.0/0 10.1.0.0/16 ::/0 2001:db8:100::/40")
	o.Exclude = prefixes("10.1.7.0/24 203.0.113.0/24 2001:db8:ffff::/48")
	a := mustApply(t, o)
	checkVia(t, 0, map[string]string{
		"10.1.3.9":         "tun0", // main: 10.0.0.0/8
		"10.1.2.9":         "lan0", // main: connected, longer
		"10.2.0.9":         "lan0", // only main
		"10.1.7.9":         "lan0", // excluded
		"198.51.100.9":     "tun0",
		"203.0.113.9":      "up0", // excluded
		"2001:db8:100::9":  "tun0",
		"2001:db8:ffff::9": "up0",
		"2001:db8:eeee::9": "tun0",
		"2001:db8:2::9":    "lan0",
	})
	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}

// The resolver of most hosts is a neighbour, to which main has a route.
func TestQueriesToANeighbourAreCaptured(t *testing.T) {
	host(t)
	device(t, "tun0")
	before := snapshot(t)
	o := options()
	o.Exclude = prefixes("10.1.2.10/32")
	o.CaptureDNS = true
	a := mustApply(t, o)
	for _, c := range []struct{ query, want string }{
		{"10.1.2.9 ipproto udp dport 53", "dev tun0"},
		{"10.1.2.9 ipproto tcp dport 53", "dev tun0"},
		{"2001:db8:2::9 ipproto udp dport 53", "dev tun0"},
		{"10.1.2.9 ipproto udp dport 54", "dev lan0"},
		{"10.1.2.9 ipproto udp sport 53 dport 4000", "dev lan0"},                                 // an answer
		{"10.1.2.10 ipproto udp dport 53", "dev lan0"},                                           // excluded
		{fmt.Sprintf("10.1.2.9 ipproto udp dport 53 mark %#x", uint32(DefaultMark)), "dev lan0"}, // our own
	} {
		if got := nstest.IP(t, "route get "+c.query); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.query, got, c.want)
		}
	}
	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}

// TestNoWayOutIsNoWayIn: while main has no route, a cable having been pulled, our
// own packets are refused. In the TUN each connection would become a new flow,
// which opens a connection, and so on.
func TestNoWayOutIsNoWayIn(t *testing.T) {
	host(t)
	device(t, "tun0")
	a := mustApply(t, options())
	defer undo(t, a)
	nstest.IP(t, "route del default")
	nstest.IP(t, "-6 route del default")
	own := map[string]string{"203.0.113.9": "no route", "2001:db8:ffff::9": "no route", "10.1.2.9": "lan0"}
	checkVia(t, DefaultMark, own)
	checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0", "10.1.2.9": "lan0"})
	// Nor may an answer to somebody who was behind that cable.
	if out := nstest.IP(t, "rule show"); !strings.Contains(out, "iif tun0 unreachable") {
		t.Errorf("what comes out of the tun may go back in:\n%s", out)
	}
	nstest.IP(t, "route add default via 192.0.2.1")
	nstest.IP(t, "route add default via 2001:db8::1")
	checkVia(t, DefaultMark, map[string]string{"203.0.113.9": "up0", "2001:db8:ffff::9": "up0"})
}

func TestStrictLeavesNoWayByAddress(t *testing.T) {
	host(t)
	device(t, "tun0")
	o := options()
	o.Routes, o.Strict = prefixes("0.0.0.0/0"), true
	a := mustApply(t, o)
	defer undo(t, a)
	checkVia(t, 0, map[string]string{
		"203.0.113.9":      "tun0",
		"2001:db8:ffff::9": "unreachable", // nothing routes it, so it is closed
		"2001:db8:2::9":    "lan0",
		"192.0.2.9":        "up0",
	})
	checkVia(t, DefaultMark, map[string]string{"203.0.113.9": "up0", "2001:db8:ffff::9": "up0"})
	if out := nstest.IP(t, "route get 203.0.113.9 from 192.0.2.2"); !strings.Contains(out, "dev tun0") {
		t.Errorf("a program that binds to the address of up0 passes the tun by: %s", out)
	}
}

// The process is killed: nothing leaks, the neighbours stay, and the next run
// finds what to clean.
func TestKilledRunFailsClosedAndIsCleaned(t *testing.T) {
	host(t)
	before := snapshot(t)
	for range 2 {
		kill := start(t, "tun0", DefaultTable)
		checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0"})

		// While it lives, another with its own TUN must not take its rules away.
		o := options()
		o.Device = "tun1"
		if err := Clean(o); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "tun0") {
			t.Errorf("Clean beside a living run = %v, want a conflict with tun0", err)
		}
		checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0"})

		kill()
		if _, err := net.InterfaceByName("tun0"); err == nil {
			t.Fatal("tun0 is still there")
		}
		checkVia(t, 0, map[string]string{
			"203.0.113.9": "unreachable", "2001:db8:ffff::9": "unreachable",
			"10.1.2.9": "lan0", "2001:db8:2::9": "lan0", "192.0.2.2": "local",
		})

		// The next run.
		d := device(t, "tun0")
		if _, err := applyNew(options()); !errors.Is(err, ErrLeftover) {
			t.Errorf("Apply on what is left = %v, want %v", err, ErrLeftover)
		}
		for range 2 {
			if err := Clean(options()); err != nil {
				t.Fatal("Clean:", err)
			}
		}
		a := mustApply(t, options())
		if n := strings.Count(nstest.IP(t, "rule"), "lookup 1080"); n != 1 {
			t.Errorf("%d rules look up our table, want 1", n)
		}
		checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0"})
		undo(t, a)
		d.Close()
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after two killed runs (-before +after):\n%s", diff)
	}
}

// Two runs with tables of their own: neither start takes anything from the other,
// nor does an end, and what is left of a killed one goes with its next start only.
func TestTwoRunsSideBySide(t *testing.T) {
	host(t)
	before := snapshot(t)
	lines := func(mark string) int {
		n := 0
		for _, family := range []string{"-4", "-6"} {
			n += strings.Count(nstest.IP(t, family+" rule"), mark)
		}
		return n
	}
	const first, other = "fwmark 0x74000000", "fwmark 0x75000000"
	both := map[string]string{
		"203.0.113.9": "tun0", "2001:db8:eeee::9": "tun0",
		"198.51.100.9": "tun1", "2001:db8:ffff::9": "tun1", "10.1.2.9": "lan0",
	}
	killOther := start(t, "tun1", 2000)
	killFirst := start(t, "tun0", DefaultTable-tables) // its rules come after the other's
	checkVia(t, 0, both)
	killFirst()
	checkVia(t, 0, map[string]string{"203.0.113.9": "unreachable", "198.51.100.9": "tun1"})
	killFirst = start(t, "tun0", DefaultTable-tables)
	checkVia(t, 0, both)
	killFirst()
	if err := Clean(Options{Device: "tun0", Table: DefaultTable - tables}); err != nil {
		t.Fatal(err)
	}
	if n, m := lines(first), lines(other); n != 0 || m != 4 {
		t.Errorf("%d rules of the first run and %d of the other after Clean, want 0 and 4", n, m)
	}

	// What has the address of the other's TUN, by the other's route, goes there
	// even if the rules of the first come before.
	device(t, "tun0")
	a := mustApply(t, options())
	checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "10.1.2.9": "lan0"})
	for _, line := range []string{"route get 203.0.113.9 from 198.19.0.1", "route get 2001:db8:eeee::9 from fd00:75::1 ipproto tcp sport 22"} {
		if out := nstest.IP(t, line); !strings.Contains(out, "dev tun0") {
			t.Errorf("ip %s: %s, want it in tun0", line, out)
		}
	}
	killOther()
	killOther = start(t, "tun1", 2000)
	if n, m := lines(first), lines(other); n != 4 || m != 4 {
		t.Errorf("%d rules of the first run and %d of the other after a restart of the other, want 4 and 4", n, m)
	}
	undo(t, a)
	checkVia(t, 0, map[string]string{"203.0.113.9": "up0", "198.51.100.9": "tun1"})
	killOther()
	checkVia(t, 0, map[string]string{"203.0.113.9": "up0", "198.51.100.9": "unreachable"})
	if err := Clean(second()); err != nil {
		t.Fatal(err)
	}
	nstest.IP(t, "link del tun0")
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after both (-before +after):\n%s", diff)
	}
}

// Two runs whose tables differ and whose priorities meet all the same: the second
// leaves the first alone, and says who it is.
func TestRunsWithPrioritiesInCommon(t *testing.T) {
	host(t)
	kill := start(t, "tun0", DefaultTable)
	for _, table := range []int{DefaultTable + 1, DefaultTable + tables - 1, DefaultTable + blocks*tables} {
		o := second()
		o.Table = table
		before := snapshot(t)
		if err := Clean(o); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "tun0") {
			t.Errorf("table %d: Clean beside a living run = %v, want a conflict with tun0", table, err)
		}
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("table %d: after Clean (-before +after):\n%s", table, diff)
		}
	}
	kill()
	if err := Clean(options()); err != nil {
		t.Fatal(err)
	}
}

// The table may be another one at the next start: what is left of the run before is
// found by its device.
func TestKilledRunIsCleanedWithAnotherTable(t *testing.T) {
	host(t)
	before := snapshot(t)
	start(t, "tun0", DefaultTable)()
	checkVia(t, 0, map[string]string{"203.0.113.9": "unreachable", "2001:db8:ffff::9": "unreachable"})
	o := options()
	o.Table = 2000
	if err := Clean(o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Clean (-before +after):\n%s", diff)
	}
}

// Undo when the device has gone first, as when a process closes in the wrong
// order.
func TestUndoWithoutTheDevice(t *testing.T) {
	host(t)
	before := snapshot(t)
	d := device(t, "tun0")
	a := mustApply(t, options())
	d.Close()
	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}

func TestCleanTouchesNothingElse(t *testing.T) {
	host(t)
	for _, line := range []string{
		"rule add priority 7500 from 192.0.2.77 lookup main",
		"rule add priority 100 from 192.0.2.78 lookup main protocol 116", // another block of numbers
		"route add 203.0.113.0/24 dev up0 table 1080",
		"route add 203.0.113.0/24 dev up0 table 9000 protocol 116",
		"-6 rule add priority 7400 from 2001:db8::77 lookup main",
	} {
		nstest.IP(t, line)
		defer nstest.IP(t, strings.Replace(line, " add ", " del ", 1))
	}
	before := snapshot(t)
	if err := Clean(options()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Clean (-before +after):\n%s", diff)
	}
}

func TestConflictsAreFoundBeforeAnythingIsDone(t *testing.T) {
	for _, tt := range []struct {
		line string // of ip(8), with add
		want string // in the error; "" for no conflict
	}{
		{"rule add priority 7403 from 10.5.0.0/16 lookup main", "7403: from 10.5.0.0/16"},
		{"-6 rule add priority 7400 from 2001:db8:5::/48 lookup main", "7400: from 2001:db8:5::/48"},
		{"rule add priority 3000 from 10.5.0.0/16 lookup 1080", "lookup 1080"},
		{"route add 10.5.0.0/16 dev up0 table 1080", "table 1080 has a route for 10.5.0.0/16"},
		{"rule add priority 3000 fwmark 0x74000000/0xf4000000 lookup 99", "fwmark 0x74000000/0xf4000000"},
		{"rule add priority 9000 fwmark 0x74000001 lookup 99", "fwmark 0x74000001"},

		{"rule add priority 7404 from 10.5.0.0/16 lookup main", ""},                     // a number that the plan leaves free
		{"rule add priority 5210 fwmark 0x80000/0xff0000 lookup main", ""},              // Tailscale
		{"rule add priority 9000 fwmark 0x4000/0x4000 lookup 99", ""},                   // Kubernetes
		{"rule add priority 1001 fwmark 0x100/0x3f00 lookup 99", ""},                    // mwan3
		{"rule add priority 32764 not from all fwmark 0xca6c lookup 51820", ""},         // wg-quick
		{"rule add priority 9000 from 10.5.0.0/16 lookup main protocol 116", ""},        // ours, another block
		{"route add 10.5.0.0/16 dev up0 table 1081", ""},                                // no route has length 1
		{"route add unreachable 10.5.0.0/16 table 9000", ""},                            // nor is this a table of ours
		{"rule add priority 3000 fwmark 0x75000000/0xff000000 lookup 99", ""},           // another value in our bits
		{"rule add priority 9000 fwmark 0x10000000/0x10000000 lookup 99", ""},           // comes after ours, a part of our bits
		{"rule add priority 3000 from 10.5.0.0/16 fwmark 0x74000000 lookup 99", "fwma"}, // whatever else it asks
	} {
		t.Run(tt.line, func(t *testing.T) {
			host(t)
			device(t, "tun0")
			nstest.IP(t, tt.line)
			defer nstest.IP(t, strings.Replace(tt.line, " add ", " del ", 1))
			before := snapshot(t)
			a, err := applyNew(options())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				undo(t, a)
			} else if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Apply = %v, want a conflict with %q", err, tt.want)
			}
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("afterwards (-before +after):\n%s", diff)
			}
		})
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	host(t)
	device(t, "tun0")
	before := snapshot(t)
	h, err := ReadHost("tun0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(options(), h)
	if err != nil {
		t.Fatal(err)
	}
	p.Rules = append(p.Rules, p.Rules[0]) // the kernel has it by then
	if a, err := Apply(context.Background(), p); !errors.Is(err, unix.EEXIST) || a != nil {
		t.Errorf("Apply of an impossible plan = %v, %v", a, err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after an impossible plan (-before +after):\n%s", diff)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Apply(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with an ended context = %v", err)
	}
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after an ended context (-before +after):\n%s", diff)
	}

	p.Device = "nosuch0"
	if _, err := Apply(context.Background(), p); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("Apply without the device = %v", err)
	}
}

// What was there before belongs to somebody else, and stays.
func TestAddressThatWasThereStays(t *testing.T) {
	host(t)
	device(t, "tun0")
	nstest.IP(t, "addr add 198.18.0.1/32 dev tun0")
	nstest.IP(t, "link set tun0 up")
	before := snapshot(t)
	a := mustApply(t, options())
	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}

func TestReadHost(t *testing.T) {
	host(t)
	device(t, "tun0")
	nstest.IP(t, "addr add 198.18.0.1/32 dev tun0")
	nstest.IP(t, "addr add fe80::77/64 nodad dev up0")
	h, err := ReadHost("tun0")
	want := Host{Addresses: addrs("10.1.2.1 192.0.2.2 2001:db8::2 2001:db8:2::1"), IPv6: true, Ephemeral: 32768} // as every new namespace has it
	if diff := cmp.Diff(want, h, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("ReadHost: %v (-want +got):\n%s", err, diff)
	}

	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0)
	if h, err = ReadHost("tun0"); err != nil || h.IPv6 {
		t.Errorf("ReadHost with IPv6 off = %+v, %v", h, err)
	}
	before := snapshot(t)
	o := options()
	o.Addresses = prefixes("198.18.0.9/32 fd00:74::1/128")
	a := mustApply(t, o) // the IPv6 address would be refused
	checkVia(t, 0, map[string]string{"203.0.113.9": "tun0"})
	undo(t, a)
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("after Undo (-before +after):\n%s", diff)
	}
}

// sysctl sets a kernel setting of IPv6, all/disable_ipv6 for example.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// Docker's networks have IPv6 off for "all" and new interfaces, and on for the one
// that has it; others have it off for new interfaces only.
func TestIPv6IsThatOfTheInterfaces(t *testing.T) {
	for _, off := range []string{"all", "default"} { // all sets default as well
		t.Run(off, func(t *testing.T) {
			sysctl(t, off+"/disable_ipv6", "1")
			t.Cleanup(func() { sysctl(t, "all/disable_ipv6", "0") })
			for _, name := range []string{"up", "lan"} {
				nstest.IP(t, "link add "+name+"0 type veth peer name "+name+"1")
				defer nstest.IP(t, "link del "+name+"0")
				nstest.IP(t, "link set "+name+"1 up")
				nstest.IP(t, "link set "+name+"0 up")
			}
			nstest.IP(t, "link set lo up")
			h, err := ReadHost("tun0")
			if err != nil || h.IPv6 {
				t.Fatalf("ReadHost with IPv6 off = %+v, %v", h, err)
			}

			sysctl(t, "up0/disable_ipv6", "0")
			nstest.IP(t, "addr add 2001:db8::2/64 nodad dev up0")
			nstest.IP(t, "route add default via 2001:db8::1")
			nstest.NeedTUN(t)
			device(t, "tun0")
			before := snapshot(t)
			a := mustApply(t, options())
			checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "tun0", "fd00:74::1": "local"})
			checkVia(t, DefaultMark, map[string]string{"2001:db8:ffff::9": "up0"})
			if len(a.Warnings) != 0 {
				t.Errorf("warnings %q, want none", a.Warnings)
			}
			undo(t, a)
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("after Undo (-before +after):\n%s", diff)
			}

			// As in a container that may not write there.
			readOnly(t, "/proc/sys")
			before = snapshot(t)
			a = mustApply(t, options())
			checkVia(t, 0, map[string]string{"203.0.113.9": "tun0", "2001:db8:ffff::9": "unreachable"})
			checkVia(t, DefaultMark, map[string]string{"2001:db8:ffff::9": "up0"})
			if len(a.Warnings) != 1 || !strings.Contains(a.Warnings[0], "read-only") {
				t.Errorf("warnings %q, want one with the reason", a.Warnings)
			}
			undo(t, a)
			if diff := cmp.Diff(before, snapshot(t)); diff != "" {
				t.Errorf("after Undo (-before +after):\n%s", diff)
			}
		})
	}
}

// readOnly makes a directory read-only for the rest of a test.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	err := unix.Mount(dir, dir, "", unix.MS_BIND, "")
	if err == nil {
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestViaTellsErrors(t *testing.T) {
	host(t)
	for _, line := range []string{
		"route add unreachable 203.0.113.0/24", "route add prohibit 198.51.100.0/24",
		"route add unreachable 2001:db8:a::/48", "route add prohibit 2001:db8:b::/48", "route add blackhole 2001:db8:c::/48",
	} {
		nstest.IP(t, line)
		defer nstest.IP(t, strings.Replace(line, " add ", " del ", 1))
	}
	for dst, want := range map[string]error{
		"203.0.113.1": unix.EHOSTUNREACH, "198.51.100.1": unix.EACCES,
		"2001:db8:a::1": unix.EHOSTUNREACH, "2001:db8:b::1": unix.EACCES, "2001:db8:c::1": unix.EINVAL, "2001:db8:d::1": nil,
	} {
		if _, _, _, err := Via(netip.MustParseAddr(dst), 0); !errors.Is(err, want) {
			t.Errorf("Via(%s) = %v, want %v", dst, err, want)
		}
	}
	nstest.IP(t, "-6 route del default")
	if _, _, _, err := Via(netip.MustParseAddr("2001:db8:d::1"), 0); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("Via without any route = %v, want %v", err, unix.ENETUNREACH)
	}
	if _, _, local, err := Via(netip.MustParseAddr("::ffff:192.0.2.2"), 0); err != nil || !local {
		t.Errorf("Via of an IPv4 address in IPv6 form = %v, %v, want local", local, err)
	}
}

func TestForwarding(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string
	}{{
		name: "a gateway",
		files: map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
			"ipv4/conf/all/rp_filter": "0", "ipv4/conf/eth0/rp_filter": "2", "ipv4/conf/lan.7/rp_filter": "0",
		},
	}, {
		name: "a plain host",
		files: map[string]string{
			"ipv4/ip_forward": "0", "ipv6/conf/all/forwarding": "0",
			"ipv4/conf/all/rp_filter": "0", "ipv4/conf/lan.7/rp_filter": "1", "ipv4/conf/eth0/rp_filter": "0",
			"ipv4/conf/lo/rp_filter": "1", "ipv4/conf/default/rp_filter": "1",
		},
		want: []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net/ipv4/conf/lan.7/rp_filter=2"},
	}, {
		name: "no IPv6, and all interfaces strict but the loose one",
		files: map[string]string{
			"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "1",
			"ipv4/conf/eth0/rp_filter": "0", "ipv4/conf/eth1/rp_filter": "2",
		},
		want: []string{"net/ipv4/conf/eth0/rp_filter=2"},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			for name, content := range tt.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			ws, err := forwarding(root)
			if err != nil || len(ws) != len(tt.want) {
				t.Fatalf("forwarding = %v, %v, want %d warnings", ws, err, len(tt.want))
			}
			for i, w := range ws {
				if !strings.HasSuffix(w.String(), tt.want[i]) {
					t.Errorf("warning %d is %q, want remedy %q", i, w, tt.want[i])
				}
			}
		})
	}
	if _, err := Forwarding(); err != nil {
		t.Error("on this host:", err)
	}
}

// The commands that a plan prints are commands that ip(8) takes, and they do
// what Apply does.
func TestPlanAsCommandsDoesTheSame(t *testing.T) {
	host(t)
	o := options()
	o.Routes = prefixes("0.0.0.0/0 10.1.0.0/16 ::/0")
	o.Exclude = prefixes("203.0.113.0/24")
	o.CaptureDNS = true
	h, err := ReadHost("tun0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(o, h)
	if err != nil {
		t.Fatal(err)
	}
	d := device(t, "tun0")
	for line := range strings.Lines(p.String()) {
		nstest.IP(t, strings.TrimPrefix(line, "ip "))
	}
	byHand := ignoreIndex(snapshot(t))
	d.Close()
	if err := Clean(o); err != nil {
		t.Fatal(err)
	}

	device(t, "tun0")
	a := mustApply(t, o)
	defer undo(t, a)
	if diff := cmp.Diff(byHand, ignoreIndex(snapshot(t))); diff != "" {
		t.Errorf("by Apply, and not by the commands (-commands +Apply):\n%s", diff)
	}
}

// ignoreIndex leaves out the numbers of interfaces, which count up.
func ignoreIndex(s string) string {
	parts := strings.Split(s, `"ifindex":`)
	for i := 1; i < len(parts); i++ {
		parts[i] = strings.TrimLeft(parts[i], "0123456789")
	}
	return strings.Join(parts, "")
}
