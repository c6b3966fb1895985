package interop

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// startRun starts tunroute run on host and waits until it serves.
func startRun(t *testing.T, l *lab.Lab, config string) *lab.Shell {
	t.Helper()
	d := startShell(t, l.Host, rootUser.tunroute("run", "-c", config)...)
	d.AwaitLog(t, 0, "msg=ready")
	return d
}

// stop ends a daemon in order.
func stop(t *testing.T, d *lab.Shell) {
	t.Helper()
	if err := d.Process().Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := d.Wait(t); status != 0 {
		t.Errorf("run ended with status %d\n%s", status, d.Log())
	}
}

func viaProxy(t *testing.T, proxy string) string {
	return lab.File(t, "run.yaml", fmt.Sprintf("upstreams: {p: 'socks5h://%s'}\nrules: [{via: p}]\n", proxy))
}

// carried fails the test unless both hosts reach a name and an address through
// the proxy.
func carried(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range []*lab.Node{l.Host, l.Lan} {
		for _, url := range []string{"http://" + lab.SecretName + "/", "http://" + lab.Target4(2).String() + "/", "http://[" + lab.Target6(2).String() + "]/"} {
			page := must(t, n, "curl", "-sS", "--max-time", "5", url)
			if !strings.HasPrefix(page, "the page of ") {
				t.Errorf("%s: %s printed %q", n.Name, url, page)
			}
			for _, past := range []string{lab.Host4.String(), lab.Host6.String(), lab.Lan4.String(), lab.Lan6.String()} {
				if strings.HasSuffix(strings.TrimSpace(page), " "+past) {
					t.Errorf("%s: %s went past the proxy: %q", n.Name, url, page)
				}
			}
		}
	}
}

// A host alone and the network behind it are served alike, and the host is as it
// was when that ends.
func TestRunAsSidecarAndGateway(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := lab.New(t)
	proxy := startServer(t, l, servers.Dante, dante)
	before := l.Host.State(t)
	d := startRun(t, l, viaProxy(t, proxy))
	carried(t, l)
	if n := l.DNS.Queries(t, lab.SecretName); n != 0 {
		t.Errorf("the DNS of the host was asked %d times for the name that only the proxy knows", n)
	}
	if r := run(t, l.Host, rootUser.tunroute("run", "-c", viaProxy(t, proxy))...); r.Status != 1 || !strings.Contains(r.Stderr, "in use by another process") {
		t.Errorf("a second run: status %d, %s", r.Status, r.Stderr)
	}
	carried(t, l) // nothing of the first one's was touched
	stop(t, d)
	if after := l.Host.State(t); after != before {
		t.Errorf("the host is not as it was:\n%s\nwas\n%s", after, before)
	}
}

// A run that was killed leaves no way past it, and no rest for the next one.
func TestRunThatIsKilledFailsClosed(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := lab.New(t)
	proxy := startServer(t, l, servers.Dante, dante)
	before := l.Host.State(t)
	config := viaProxy(t, proxy)
	watch := l.Watch(t)
	d := startRun(t, l, config)
	once := l.Host.State(t)
	if err := d.Process().Kill(); err != nil {
		t.Fatal(err)
	}
	d.Wait(t)
	watch.Arrived(t, func(lab.Packet) bool { return false }) // what was before does not count
	for _, n := range []*lab.Node{l.Host, l.Lan} {
		for _, url := range []string{"http://" + lab.PublicName + "/", "http://" + lab.Target4(2).String() + "/", "http://[" + lab.Target6(2).String() + "]/"} {
			if r := run(t, n, "curl", "-sS", "--max-time", "1", url); r.Status == 0 {
				t.Errorf("%s: %s printed %q though tunroute is dead", n.Name, url, r.Stdout)
			}
		}
	}
	if past := watch.Arrived(t, func(p lab.Packet) bool { return isTarget(p.Dst.Addr()) || p.Dst.Port() == 53 }); len(past) != 0 {
		t.Errorf("went past: %v", past)
	}
	d = startRun(t, l, config)
	carried(t, l)
	if again := l.Host.State(t); strings.Count(again, "\n") != strings.Count(once, "\n") {
		t.Errorf("after the second start:\n%s\nafter the first:\n%s", again, once)
	}
	stop(t, d)
	if after := l.Host.State(t); after != before {
		t.Errorf("the host is not as it was:\n%s\nwas\n%s", after, before)
	}
}

// SIGHUP: the new rules decide new flows, and what has an error changes nothing.
func TestRunReadsItsConfigAgain(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := lab.New(t)
	config := lab.File(t, "run.yaml", "rules: [{via: direct}]\n")
	d := startRun(t, l, config)
	url := "http://" + lab.Target4(1).String() + "/"
	must(t, l.Lan, "curl", "-sS", url)
	reload := func(text, told string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		skip := len(d.Log())
		if err := d.Process().Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		d.AwaitLog(t, skip, told)
	}
	reload("rules: [{via: reject}]\n", "msg=reloaded")
	if r := run(t, l.Lan, "curl", "-sS", url); r.Status != 7 {
		t.Errorf("a rejected flow: curl status %d, %q", r.Status, r.Stdout)
	}
	reload("rules: [{via: nowhere}]\n", "stays as it was")
	if r := run(t, l.Lan, "curl", "-sS", url); r.Status != 7 {
		t.Errorf("after a config with an error: curl status %d, %q, want the rules from before", r.Status, r.Stdout)
	}
	reload("rules: [{via: direct}]\n", "msg=reloaded")
	must(t, l.Lan, "curl", "-sS", url)
	stop(t, d)
}

func TestRunRefusesToLoop(t *testing.T) {
	l := lab.New(t)
	before := l.Host.State(t)
	for _, tt := range []struct{ name, config, rule, want string }{
		{"a server within the fake range", "upstreams: {p: 'socks5h://198.18.0.77'}\nrules: [{via: p}]\n", "", "range of fake addresses"},
		// As of a program that knows nothing of marks.
		{"a rule that ignores the mark", "upstreams: {p: 'socks5h://" + lab.Proxy4.String() + "'}\nrules: [{via: p}]\n",
			"rule add priority 100 to " + lab.Proxy4.String() + " lookup 1080", "1080"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.rule != "" {
				l.Host.IP(t, tt.rule)
				defer l.Host.IP(t, strings.Replace(tt.rule, "add", "del", 1))
			}
			r := run(t, l.Host, rootUser.tunroute("run", "-c", lab.File(t, "loop.yaml", tt.config))...)
			if r.Status != 1 || !strings.Contains(r.Stderr, tt.want) {
				t.Errorf("status %d, want 1 and a word of %q:\n%s", r.Status, tt.want, r.Stderr)
			}
		})
	}
	if after := l.Host.State(t); after != before {
		t.Errorf("the host is not as it was:\n%s\nwas\n%s", after, before)
	}
}
