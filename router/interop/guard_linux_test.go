package interop

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// The rule of docs/run.md for a gateway keeps what it forwards from passing by run, before
// it starts and behind its end, and lets pass what comes and goes by its interface.
func TestGuard(t *testing.T) {
	lab.Need(t, "curl", "curl")
	lab.Need(t, "nft", "nftables")
	page, err := os.ReadFile("../../cmd/tunroute/docs/run.md")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	config := lab.File(t, "tunroute.yaml", runConfig(startServer(t, l, servers.Dante, dante)))
	targets := []netip.Addr{lab.Target4(viaServer), lab.Target6(viaServer)}
	within := func(seconds string, a netip.Addr) bool {
		t.Helper()
		url := "http://" + netip.AddrPortFrom(a, lab.WebPort).String() + "/"
		return run(t, l.Lan, "curl", "-s", "-m", seconds, url).Status == 0
	}
	const soon, late = "2", "100" // what is dropped is dropped at once
	for _, a := range targets {
		if !within(late, a) {
			t.Fatalf("%v is not reached without a rule", a)
		}
	}
	rules := 0
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(line, "    nft "); ok {
			must(t, l.Host, "sh", "-c", "nft "+command)
			rules++
		}
	}
	if rules == 0 {
		t.Fatal("run.md has no rule any more")
	}
	for _, a := range targets {
		if within(soon, a) {
			t.Errorf("%v is reached before the start", a)
		}
	}
	d := startRun(t, l, config)
	for _, a := range targets {
		if !within(late, a) {
			t.Errorf("%v is not reached through run", a)
		}
	}
	stopRun(t, d)
	for _, a := range targets {
		if within(soon, a) {
			t.Errorf("%v is reached after the end", a)
		}
	}
}
