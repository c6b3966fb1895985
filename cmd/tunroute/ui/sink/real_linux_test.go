package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/interop/lab"
)

// program starts a program until the test ends.
func program(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, &out)
		}
	})
}

// eventually waits until ok holds, for what nothing tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// TestRsyslog: a real syslog server understands what it is sent: each part is where it
// belongs.
func TestRsyslog(t *testing.T) {
	lab.Need(t, "rsyslogd", "rsyslog")
	dir := t.TempDir()
	// A port that nobody has: rsyslog does not tell which it was given.
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp := free.LocalAddr().(*net.UDPAddr).AddrPort()
	free.Close()
	conf := fmt.Sprintf(`
module(load="imuxsock" SysSock.Use="off")
module(load="imudp")
template(name="t" type="string" string="%%pri-text%%|%%hostname%%|%%app-name%%|%%msgid%%|%%msg%%\n")
ruleset(name="all") { action(type="omfile" file="%[1]s/out" template="t") }
input(type="imuxsock" Socket="%[1]s/new" UseSpecialParser="off" ruleset="all")
input(type="imuxsock" Socket="%[1]s/log" ruleset="all")
input(type="imudp" address="127.0.0.1" port="%[2]d" ruleset="all")
`, dir, udp.Port())
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, nil, "rsyslogd", "-n", "-f", filepath.Join(dir, "conf"), "-i", filepath.Join(dir, "pid"))

	at := time.Date(2026, 11, 8, 9, 5, 3, 0, time.UTC)
	for _, c := range []struct {
		name string
		o    SyslogOptions
		want string // of the line; HOST is put in
	}{
		{"socket-5424", SyslogOptions{Socket: dir + "/new", Facility: 3}, "daemon.info|HOST|tunroute|flow|flow test=socket-5424 dst=\"a b\""},
		{"socket-3164", SyslogOptions{Socket: dir + "/log", Facility: 3, Old: true}, "daemon.info|HOST|tunroute|-| flow test=socket-3164 dst=\"a b\""},
		{"udp-5424", SyslogOptions{Server: udp, Facility: 17}, "local1.info|HOST|tunroute|flow|flow test=udp-5424 dst=\"a b\""},
		{"udp-3164", SyslogOptions{Server: udp, Facility: 17, Old: true}, "local1.info|HOST|tunroute|-| flow test=udp-3164 dst=\"a b\""},
	} {
		s := NewSyslog(c.o)
		start(t, s.Sender)
		send := func() {
			r := slog.NewRecord(at, slog.LevelInfo, "flow", 0)
			r.Add("test", c.name, "dst", "a b")
			if err := s.Handle(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		send()
		want := strings.ReplaceAll(c.want, "HOST", hostname())
		eventually(t, "rsyslogd has written "+want, func() bool {
			if c.o.Socket == "" {
				send() // by UDP nobody knows whether it listens yet
			}
			b, _ := os.ReadFile(filepath.Join(dir, "out"))
			return strings.Contains(string(b), want+"\n")
		})
	}
}

// TestJournald: so does a real journal, run beside the machine's own, if it has one.
func TestJournald(t *testing.T) {
	const journald = "/lib/systemd/systemd-journald"
	if _, err := os.Stat(journald); err != nil {
		lab.Missing(t, "no "+journald+": install the Debian package systemd")
	}
	lab.Need(t, "journalctl", "systemd")
	lab.NeedRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"run", "log"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program(t, []string{"RUNTIME_DIRECTORY=" + dir + "/run", "LOGS_DIRECTORY=" + dir + "/log"}, journald, "tunroute-test")
	j := NewJournal(JournalOptions{Socket: dir + "/run/socket"})
	start(t, j.Sender)
	slog.New(j).Warn("flow", "dst", "a.test:80", "err", "two\nlines", "up", 7)

	var got map[string]any
	eventually(t, "the journal has it", func() bool {
		out, _ := exec.Command("journalctl", "--directory="+dir+"/log", "-o", "json", "SYSLOG_IDENTIFIER=tunroute").Output()
		return json.Unmarshal(out, &got) == nil
	})
	for k, want := range map[string]string{
		"MESSAGE": `flow dst=a.test:80 err="two\nlines" up=7`, "PRIORITY": "4",
		"TUNROUTE_DST": "a.test:80", "TUNROUTE_ERR": "two\nlines", "TUNROUTE_UP": "7",
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
}
