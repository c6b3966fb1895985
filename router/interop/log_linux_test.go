package interop

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// A log is kept in several places at once: a file is opened anew by SIGHUP, also where
// the config has an error, and a syslog server gets datagrams past the rules, and the last
// words.
func TestRunLogs(t *testing.T) {
	lab.Need(t, "nc", "netcat-openbsd")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	dir := t.TempDir()
	file := filepath.Join(dir, "log")
	at := netip.AddrPortFrom(lab.Proxy4, 514)
	syslog := startShell(t, l.Srv, "sh", "-c", "exec nc -d -u -l -k "+at.Addr().String()+" 514 >&2")
	must(t, l.Srv, "sh", "-c", "until grep -q ':0202 ' /proc/net/udp; do sleep 0.02; done") // it listens
	config := lab.File(t, "tunroute.yaml", runConfig(danted)+
		"dns: {state: none}\n"+ // or the log tells how many leases the tests before have left
		"log: {to: [stderr, {file: "+file+", format: json}, {syslog: \"udp:"+at.String()+"\", facility: local0}, {syslog: \"unix:/nobody\"}]}\n")
	d := startRun(t, l, config)
	// Datagrams have no line ends: AwaitLog would wait for one.
	await := func(text string) {
		t.Helper()
		end := time.After(3 * time.Minute)
		for !strings.Contains(syslog.Log(), text) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-end:
				t.Fatalf("the server never gets %q, only %q", text, syslog.Log())
			}
		}
	}
	lines := func(path string) []string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	sh := startShell(t, l.Host, "sh")
	flow := func(addr netip.Addr) {
		t.Helper()
		logged := len(d.Log())
		connect(t, sh, addr.String(), lab.ClosedPort)
		d.AwaitLog(t, logged, "dst="+addr.String()+":")
		await("dst=" + addr.String() + ":")
	}
	flow(lab.Target4(viaDirect))
	if got := syslog.Log(); !strings.HasPrefix(got, "<134>1 ") || !strings.Contains(got, " ready - ready device=tunroute0 ") {
		t.Errorf("the server got %q", got)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte("rules: [{via: nowhere}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	logged := len(d.Log())
	if err := d.Process().Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.AwaitLog(t, logged, `msg="the config stays as it was"`)
	flow(lab.Target4(viaNobody))
	stopRun(t, d)
	await(" stopped - stopped after=")

	old, now := lines(file+".1"), lines(file)
	if len(old) != 2 || !strings.Contains(old[0], `"msg":"ready"`) || !strings.Contains(old[1], `"dst":"`+lab.Target4(viaDirect).String()) {
		t.Errorf("the file that was moved has %q", old)
	}
	if len(now) != 3 || !strings.Contains(now[0], `stays as it was`) || !strings.Contains(now[1], `"end":"rejected"`) || !strings.Contains(now[2], `"msg":"stopped"`) {
		t.Errorf("the new file has %q", now)
	}
	if n := strings.Count(d.Log(), "\n"); n != len(old)+len(now)+1 || strings.Count(d.Log(), "tunroute: log: syslog /nobody: ") != 1 {
		t.Errorf("standard error has %d lines, want what the files have and one that a server is missing:\n%s", n, d.Log())
	}
}
