package main

import (
	"bufio"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tunroute/cmd/tunroute/demo"
	"tunroute/router/interop/lab"
)

// demoMachine is a machine on which demos are run.
type demoMachine struct{ *lab.Node }

// machineForDemo returns the machine, in a process that is in a lab, in which every user
// may open a TUN. In any other it runs the test there.
func machineForDemo(t *testing.T) *demoMachine {
	t.Helper()
	if os.Getenv(inLab) == "" {
		runInLab(t)
		return nil
	}
	lab.NeedRoot(t) // or there is no other user
	lab.Need(t, "setpriv", "util-linux")
	lab.Need(t, "bash", "bash")
	m := &demoMachine{lab.NewNode(t, "machine", netip.MustParseAddr("192.0.2.53"))}
	// That of the tests is written to by others.
	if r := m.Run(t, "mount", "-t", "tmpfs", "-o", "mode=1777", "tmp", "/tmp"); r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	return m
}

// demoUsers are those who run demos, with what stands before their commands.
var demoUsers = map[string][]string{
	"root":   nil,
	"nobody": {"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"},
}

// demo returns the command of a demo. The test binary is tunroute under that name.
func (m *demoMachine) demo(user string, args ...string) *exec.Cmd {
	as := append(slices.Clone(demoUsers[user]), "bash", "-c", `exec -a tunroute `+lab.Self+` demo "$@"`, "demo")
	return m.Command(append(as, args...)...)
}

// state is what a demo could leave on the machine: interfaces, routes, mounts, processes
// and files.
func (m *demoMachine) state(t *testing.T) string {
	t.Helper()
	files := m.Run(t, "bash", "-c", "cat /proc/self/mounts; ls -A /tmp /run /mnt /media /srv")
	running, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var processes []string
	for _, file := range running {
		// One that has ended is waited for by the first process, in its own time.
		if stat, err := os.ReadFile(file); err == nil && !strings.Contains(string(stat), ") Z ") {
			processes = append(processes, file)
		}
	}
	return m.State(t) + files.Stdout + strings.Join(processes, "\n")
}

// nothingLeft runs f and tests that the machine is as it was before.
func (m *demoMachine) nothingLeft(t *testing.T, f func()) {
	t.Helper()
	before := m.state(t)
	f()
	if diff := cmp.Diff(before, m.state(t)); diff != "" {
		t.Errorf("the machine is another (-before +after):\n%s", diff)
	}
}

// lines matches the lines of the requirements.
var demoLines = regexp.MustCompile(`(?m)^([1-6]) (pass|FAIL)  .+: .+$`)

// verdicts returns the numbers of the requirements that a demo says have failed, and fails
// the test unless each of the six has its line.
func demoFailed(t *testing.T, out string) (failed string) {
	t.Helper()
	var numbers string
	for _, line := range demoLines.FindAllStringSubmatch(out, -1) {
		numbers += line[1]
		if line[2] == "FAIL" {
			failed += line[1]
		}
	}
	if numbers != "123456" {
		t.Errorf("the lines are of the requirements %s:\n%s", numbers, out)
	}
	return failed
}

// All six requirements are met, for root and for a user without privileges, and nothing
// is left.
func TestDemo(t *testing.T) {
	m := machineForDemo(t)
	if m == nil {
		return
	}
	for user := range demoUsers {
		t.Run(user, func(t *testing.T) {
			m.nothingLeft(t, func() {
				begun := time.Now()
				out, err := m.demo(user).CombinedOutput()
				if failed := demoFailed(t, string(out)); err != nil || failed != "" {
					t.Errorf("%v, failed: %s\n%s", err, failed, out)
				}
				t.Logf("after %v:\n%s", time.Since(begun), out)
				// docs/demo.md shows it, but for the numbers.
				digits := regexp.MustCompile(`[0-9]+(\.[0-9]+)?(µs|ms|s\b)?`)
				if text := digits.ReplaceAllString(page(t, "demo.md"), "#"); !strings.Contains(text, digits.ReplaceAllString(string(out), "#")) {
					t.Errorf("docs/demo.md does not have what is printed:\n%s", out)
				}
			})
		})
	}
}

// A company in which something is wrong fails what it should, and nothing else.
func TestDemoFails(t *testing.T) {
	m := machineForDemo(t)
	if m == nil {
		return
	}
	example, err := os.ReadFile(filepath.Join(root(t), "cmd/tunroute/examples/company.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		without string
		changes []string // of the client's config: old, new, and so on
		want    string   // the numbers of what fails
		because string
	}{
		{name: "a gateway is down", without: "int2", want: "34", because: "from int1 and 0 from int2"},
		{name: "D1 is down", without: "d1", want: "56", because: "192.168.100.10 saw 0 requests from nobody"},
		{name: "P1 is down", without: "p1", want: "6", because: "t1.private-net.org saw 0 requests from nobody"},
		{name: "the company's names asked elsewhere", changes: []string{"  local: .corp.example ", "  "}, want: "1", because: "lan.corp.example saw 1 request from 10.0.0.10"},
		{name: "any port", changes: []string{", port: http", ""}, want: "2", because: "connections to int1, int2, d1"},
		{name: "no balance", changes: []string{"policy: random", "policy: fallback", "hedge: 1s", "hedge: 5s"}, want: "3", because: "40 from int1 and 0 from int2"},
		{name: "no password", changes: []string{", user: {file: internet.user}, password: {file: internet.secret}", ""}, want: "234", because: "EHOSTUNREACH"},
		{name: "no rule for D1", changes: []string{"  - {to: 192.168.100.0/24, via: d1}\n", ""}, want: "5", because: "192.168.100.10 saw 0 requests from nobody"},
		// The page comes all the same: no program would notice.
		{name: "a name asked at the wrong place", changes: []string{"  local: ", "  local-then-remote: .private-net.org\n  local: "},
			want: "6", because: "queries for .private-net.org: 2 at the company's DNS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var args []string
			if c.without != "" {
				args = []string{"--without", c.without}
			}
			if c.changes != nil {
				text := strings.NewReplacer(c.changes...).Replace(string(example))
				for i := 0; i < len(c.changes); i += 2 {
					if !strings.Contains(string(example), c.changes[i]) {
						t.Fatalf("company.yaml has no %q", c.changes[i])
					}
				}
				args = []string{"-c", lab.File(t, "mine.yaml", text)}
			}
			m.nothingLeft(t, func() {
				cmd := m.demo("nobody", args...)
				out, _ := cmd.CombinedOutput()
				if failed := demoFailed(t, string(out)); failed != c.want || cmd.ProcessState.ExitCode() != 1 {
					t.Errorf("status %d, failed: %s, want status 1, failed: %s\n%s", cmd.ProcessState.ExitCode(), failed, c.want, out)
				}
				if !strings.Contains(string(out), c.because) {
					t.Errorf("it is not said that %q:\n%s", c.because, out)
				}
			})
		})
	}
}

// A demo that is killed, or interrupted at a terminal, leaves nothing.
func TestDemoEnds(t *testing.T) {
	m := machineForDemo(t)
	if m == nil {
		return
	}
	for user := range demoUsers {
		t.Run("SIGKILL/"+user, func(t *testing.T) {
			m.nothingLeft(t, func() {
				cmd := m.demo(user, "--shell") // which would not end
				out, err := cmd.StdoutPipe()
				if err == nil {
					_, err = cmd.StdinPipe() // for the shell to wait for
				}
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Fatal(err)
				}
				in, said := bufio.NewScanner(out), ""
				for in.Scan() && !strings.Contains(in.Text(), "To end it all") {
					said += in.Text() + "\n"
				}
				if failed := demoFailed(t, said); failed != "" {
					t.Errorf("before the shell:\n%s", said)
				}
				company := lab.Child(t, cmd.Process, demo.StageCompany)
				cmd.Process.Kill()
				cmd.Wait()
				company.Wait(t) // and with it the kernel has for all others
			})
		})
		t.Run("^C/"+user, func(t *testing.T) {
			m.nothingLeft(t, func() {
				term := lab.NewTerminal(t, m.demo(user))
				term.Expect(t, "is up after")
				term.Type(t, lab.CtrlC)
				if status := term.Wait(t); status != 128+int(unix.SIGINT) {
					t.Errorf("status %d, want that of SIGINT", status)
				}
			})
		})
	}
}

// The shell is on the client, behind tunroute; everything ends with it.
func TestDemoShell(t *testing.T) {
	m := machineForDemo(t)
	if m == nil {
		return
	}
	lab.Need(t, "curl", "curl")
	for user, prompt := range map[string]string{"root": "# ", "nobody": "$ "} {
		t.Run(user, func(t *testing.T) {
			m.nothingLeft(t, func() {
				cmd := m.demo(user, "--shell")
				// One without an editor of lines, which would throw away what
				// is typed before its prompt.
				cmd.Env = append(cmd.Env, "SHELL=/bin/sh", "ALL_PROXY=socks5h://192.0.2.1")
				term := lab.NewTerminal(t, cmd)
				term.Expect(t, "To end it all: exit")
				term.Expect(t, prompt)
				term.Type(t, "curl -sS http://t7.private-net.org/; uname -n; ls\n")
				term.Expect(t, "srv=priv peer=172.31.0.1 Host=t7.private-net.org")
				term.Expect(t, "client")
				term.Expect(t, "company.yaml")
				// Jobs are the shell's, and what is typed is for them.
				// The job itself says that it has begun: it is in the foreground
				// then, and the text is not that of the command.
				term.Type(t, "sh -c 'echo slee\"\"ps; exec sleep 1000'\n")
				term.Expect(t, "sleeps")
				term.Type(t, lab.CtrlC)
				term.Expect(t, prompt)
				term.Type(t, "echo status $?\n")
				term.Expect(t, "status 130")
				term.Type(t, "exit 7\n")
				if status := term.Wait(t); status != 7 {
					t.Errorf("status %d, want that of the shell", status)
				}
			})
		})
	}
}

// What forbids a demo is told in one line, with what to do.
func TestDemoIsForbidden(t *testing.T) {
	m := machineForDemo(t)
	if m == nil {
		return
	}
	const device = "/dev/net/tun" // the lab's
	if err := os.Chmod(device, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(device, 0o666)
	cmd := m.demo("nobody")
	out, _ := cmd.CombinedOutput()
	want := "may not be opened by user 65534: let every user open it with `chmod 0666 /dev/net/tun`"
	if cmd.ProcessState.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), want) {
		t.Errorf("status %d, %q, want a line with %q", cmd.ProcessState.ExitCode(), out, want)
	}
}
