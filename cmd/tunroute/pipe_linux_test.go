package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unread starts tunroute with its log in a pipe, and gives up the other end when a line
// has what is said, or at once where that is "".
func unread(t *testing.T, until string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "tunroute"
	cmd.Dir = t.TempDir()
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if until == "" {
		log.Close()
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() { late.Stop() })
	if until != "" {
		lines := bufio.NewScanner(log)
		for lines.Scan() && !strings.Contains(lines.Text(), until) {
		}
		log.Close()
	}
	return cmd
}

// TestRunOutlivesItsReader: run ends in order, and so takes back what it has changed,
// when the program that its log is piped to has ended before.
func TestRunOutlivesItsReader(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "tunroute.yaml")
	text := "tun: off\nadmin: {socket: off}\nlisten: {socks: ['unix:" + dir + "/socks']}\nrules: [{via: direct}]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := unread(t, "msg=ready", "run", "-c", config)
	for range 2 { // by which more than one line is written
		cmd.Process.Signal(syscall.SIGHUP)
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestExecOutlivesItsReader: exec returns the status of the program when nobody reads
// its log.
func TestExecOutlivesItsReader(t *testing.T) {
	if why := whyNoExec(); why != "" {
		missing(t, why)
	}
	config := filepath.Join(t.TempDir(), "tunroute.yaml")
	if err := os.WriteFile(config, []byte("rules: [{via: reject}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Each question is a line of the log or, if it is about a flow, another.
	script := `getent hosts x.test; for i in 1 2 3; do (exec 3<>/dev/tcp/192.0.2.1/80) 2>/dev/null; sleep 0.1; done; exit 7`
	cmd := unread(t, "", "exec", "-vv", "-c", config, "--", "bash", "-c", script)
	if err := cmd.Wait(); err == nil || err.Error() != "exit status 7" {
		t.Errorf("%v, want exit status 7", err)
	}
}
