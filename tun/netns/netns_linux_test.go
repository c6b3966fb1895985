package netns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tunroute/tun/nstest"
)

const deadline = 3 * time.Minute // for what takes a fraction of a second

// user runs commands as somebody.
type user struct {
	name string
	cred *syscall.Credential
}

// asEverybody runs a test as root and as an unprivileged user.
func asEverybody(t *testing.T, test func(t *testing.T, u user)) {
	nstest.NeedTUN(t)
	t.Run("root", func(t *testing.T) { test(t, user{name: "root"}) })
	t.Run("nobody", func(t *testing.T) { test(t, nobody(t)) })
}

func nobody(t *testing.T) user {
	t.Helper()
	nstest.NeedTUN(t)
	nstest.NeedRoot(t)
	return user{"nobody", &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// command returns a process that runs args as P would run CMD, killed if it
// takes too long.
func (u user) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"parent"}, args...)...)
	cmd.Args[0] = "parent"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// Not that of the tests, which has the mark of nstest. Under -race a Go
	// process waits for a second before it exits unless it is told not to.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = "/"
	return cmd
}

// run runs CMD and returns its output and exit status as a shell would have it.
func (u user) run(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := u.command(t, args...)
	return run(t, cmd)
}

func run(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(deadline, func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	defer timer.Stop()
	cmd.Wait() // until all that have its output have ended
	return out.String(), errs.String(), shellStatus(cmd.ProcessState.Sys().(syscall.WaitStatus))
}

func shellStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// must runs CMD, which must succeed without a word on standard error.
func (u user) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, status := u.run(t, args...)
	if status != 0 || errs != "" {
		t.Fatalf("%s: status %d, %s", strings.Join(args, " "), status, errs)
	}
	return out
}

// process is a CMD that the test talks to.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe, which Wait closes: others may hold the end.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid := cmd.Process.Pid
	r.SetReadDeadline(time.Now().Add(deadline))
	t.Cleanup(func() {
		unix.Kill(-pid, unix.SIGKILL)
		cmd.Wait()
		r.Close()
	})
	return &process{cmd, in, bufio.NewReader(r)}
}

// line reads a line of output.
func (p *process) line(t *testing.T) string {
	t.Helper()
	l, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("output ends with %q, %v", l, err)
	}
	return strings.TrimSuffix(l, "\n")
}

// rest reads the output until nobody can write any more.
func (p *process) rest(t *testing.T) string {
	t.Helper()
	b, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatalf("output goes on after %q: %v", b, err)
	}
	return string(b)
}

// life is a fifo that R holds open: how the test knows that R lives, and so C.
type life struct {
	path   string
	r      *bufio.Reader
	router int
}

func watchRouter(t *testing.T, cmd *exec.Cmd) *life {
	t.Helper()
	l := &life{path: filepath.Join(publicDir(t), "life")}
	mkfifo(t, l.path)
	cmd.Env = append(cmd.Env, routerLife+"="+l.path)
	return l
}

// publicDir returns a directory that every user may enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "netns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mkfifo makes a fifo that every user may open.
func mkfifo(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
}

// pid returns the process id of R, which goes on only when it is asked.
func (l *life) pid(t *testing.T) int {
	t.Helper()
	f, err := os.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	f.SetReadDeadline(time.Now().Add(deadline))
	l.r = bufio.NewReader(f)
	line, err := l.r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if l.router, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	return l.router
}

// ended waits until R has ended.
func (l *life) ended(t *testing.T) {
	t.Helper()
	if _, err := l.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Fatalf("the router does not end: %v", err)
	}
	// It closes its files one after the other, and has closed them all when it
	// is a zombie without other threads, or nothing any more.
	eventually(t, "the router has ended", func() bool {
		dir := fmt.Sprintf("/proc/%d/", l.router)
		threads, _ := os.ReadDir(dir + "task")
		stat, err := os.ReadFile(dir + "stat")
		return err != nil || len(threads) <= 1 && strings.Contains(string(stat), ") Z ")
	})
}

// host is what must be the same before and after.
func host(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{"-j link", "-j addr", "-4 -j rule", "-6 -j rule", "-4 -j route show table all", "-6 -j route show table all"} {
		b.WriteString(nstest.IP(t, line) + "\n")
	}
	for _, path := range []string{"/proc/self/mountinfo", "/etc/resolv.conf", "/etc/nsswitch.conf"} {
		content, _ := os.ReadFile(path)
		fmt.Fprintf(&b, "%s\n%s\n", path, content)
	}
	return b.String()
}

func TestInsideThereIsOnlyTheTUN(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		before := host(t)
		if got, want := links(u.must(t, "ip", "-o", "link")), []string{"lo", "tun0"}; !slices.Equal(got, want) {
			t.Errorf("interfaces are %q, want %q", got, want)
		}
		out := u.must(t, "sh", "-c", "ip -o addr; ip route; ip -6 route; cat /sys/class/net/tun0/mtu 2>/dev/null; ip link show tun0")
		for _, want := range []string{
			"inet 127.0.0.1/8", "inet6 ::1/128", "inet 198.18.0.1/32", "inet6 fd00:74::1/128",
			"default dev tun0 scope link", "default dev tun0 metric 1024", "mtu 1400",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("there is no %q in\n%s", want, out)
			}
		}
		if strings.Contains(out, "fe80::") || strings.Contains(out, "tentative") {
			t.Errorf("IPv6 is not as it should be:\n%s", out)
		}
		if diff := cmp.Diff(before, host(t)); diff != "" {
			t.Errorf("on the host (-before +after):\n%s", diff)
		}
	})
}

// links returns the names of interfaces in the output of ip -o link.
func links(out string) []string {
	var names []string
	for line := range strings.Lines(out) {
		names = append(names, strings.TrimSuffix(strings.Fields(line)[1], ":"))
	}
	return names
}

func TestExitStatus(t *testing.T) {
	script := filepath.Join(publicDir(t), "script")
	if err := os.WriteFile(script, []byte("exit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range []struct {
			args []string
			want int
			says string // on standard error
		}{
			{[]string{"true"}, 0, ""},
			{[]string{"sh", "-c", "exit 3"}, 3, ""},
			{[]string{"/bin/sh", "-c", "exit 255"}, 255, ""},
			{[]string{script}, 7, ""}, // no "#!": the shell runs it
			{[]string{"no-such-command"}, 127, "no-such-command"},
			{[]string{"/no/such/command"}, 127, "/no/such/command"},
			{[]string{"/etc"}, 126, "/etc"},
			{[]string{"/etc/passwd"}, 126, "permission denied"},
			{[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
			{[]string{"sh", "-c", "kill -INT $$"}, 128 + 2, ""},
			{[]string{"sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
			{[]string{"sh", "-c", "ulimit -c 0; kill -SEGV $$"}, 128 + 11, ""},
		} {
			_, errs, status := u.run(t, tt.args...)
			if status != tt.want || !strings.Contains(errs, tt.says) || tt.says == "" && errs != "" || strings.Count(errs, "\n") > 1 {
				t.Errorf("%s: status %d, want %d; standard error: %q, want %q", strings.Join(tt.args, " "), status, tt.want, errs, tt.says)
			}
		}
	})
}

// A signal that ends CMD ends P as well, as the shell would see it; one that
// leaves a core file is told as a status.
func TestStatusExit(t *testing.T) {
	nstest.Need(t)
	for sig, want := range map[syscall.Signal]bool{
		syscall.SIGINT: true, syscall.SIGTERM: true, syscall.SIGHUP: true, syscall.SIGKILL: true, syscall.SIGUSR1: false,
		syscall.SIGSEGV: false, syscall.SIGQUIT: false, syscall.SIGABRT: false, syscall.SIGPIPE: false,
	} {
		cmd := exec.Command("/proc/self/exe", "end-by", strconv.Itoa(int(sig)))
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
		cmd.Run()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if ws.Signaled() != want || shellStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)) != 128+int(sig) {
			t.Errorf("%v: ended by a signal: %v, want %v; status %d", sig, ws.Signaled(), want, shellStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)))
		}
	}
}

// What has been made goes with the error: the TUN is there as long as it is open.
func TestSetupThatFailsLeavesNoDevice(t *testing.T) {
	nstest.NeedTUN(t)
	c := insideConfig()
	c.Addresses = append(c.Addresses, c.Addresses[0]) // which the kernel has by then
	if d, _, err := Setup(c); d != nil || !errors.Is(err, unix.EEXIST) {
		t.Errorf("Setup = %v, %v, want %v", d, err, unix.EEXIST)
	}
	if _, err := net.InterfaceByName(c.Device); err == nil {
		t.Error("the device is still there")
	}
}

func TestWhoTheCommandIs(t *testing.T) {
	status := func(t *testing.T, u user) map[string]string {
		fields := make(map[string]string)
		for line := range strings.Lines(u.must(t, "cat", "/proc/self/status")) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			fields[name] = value
		}
		return fields
	}
	t.Run("nobody", func(t *testing.T) {
		u := nobody(t)
		f := status(t, u)
		for name, want := range map[string]string{
			"Uid": "65534\t65534\t65534\t65534", "Gid": "65534\t65534\t65534\t65534", "NoNewPrivs": "0",
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		} {
			if f[name] != want {
				t.Errorf("%s is %q, want %q", name, f[name], want)
			}
		}
		if _, _, status := u.run(t, "ip", "link", "set", "tun0", "down"); status == 0 {
			t.Error("the command may set the tun down")
		}
	})
	t.Run("root", func(t *testing.T) {
		nstest.NeedTUN(t)
		f := status(t, user{})
		own, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(f["Uid"], "0\t0\t0") || !strings.Contains(string(own), "CapEff:\t"+f["CapEff"]) {
			t.Errorf("root has Uid %q, CapEff %q", f["Uid"], f["CapEff"])
		}
	})
}

func TestPing(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		u.must(t, "/proc/self/exe", "ping-sockets")
	})
}

// The tool of the distribution, which may have file capabilities.
func TestPingTool(t *testing.T) {
	nstest.Need(t)
	if _, err := exec.LookPath("ping"); err != nil {
		nstest.Missing(t, "ping is missing: apt-get install iputils-ping")
	}
	asEverybody(t, func(t *testing.T, u user) {
		for _, to := range []string{"198.18.9.9", "fd00:74::99"} {
			if _, errs, status := u.run(t, "ping", "-c", "1", "-W", "60", to); status != 0 {
				t.Errorf("ping %s: status %d, %s", to, status, errs)
			}
		}
	})
}

// The files that the tests do not want a command to have, and those that it was
// given.
func TestFilesPassThrough(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		if got, want := u.must(t, "ls", "/proc/self/fd"), "0\n1\n2\n3\n"; got != want { // 3 is the directory that ls reads
			t.Errorf("a command has the files %q, want %q", got, want)
		}
		cmd := u.command(t, "bash", "-c", "ls -m /proc/self/fd; cat <&4; cat <&12")
		cmd.ExtraFiles = make([]*os.File, 10)
		cmd.ExtraFiles[4-3], cmd.ExtraFiles[12-3] = stringFile(t, "four "), stringFile(t, "twelve")
		out, errs, status := run(t, cmd)
		if want := "0, 1, 12, 2, 3, 4\nfour twelve"; out != want || status != 0 {
			t.Errorf("with files 4 and 12: %q, want %q; status %d, %s", out, want, status, errs)
		}
		if out, errs, _ := u.run(t, "sh", "-c", "env | grep TUNROUTE"); out != "" || errs != "" {
			t.Errorf("the environment of the command has %q", out)
		}
	})
}

func stringFile(t *testing.T, content string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(content); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { r.Close() })
	return r
}

// Whoever waits for the end of a pipe waits for CMD, and not for P, C or R.
func TestNobodyHoldsTheFilesOfTheCommand(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd := u.command(t, "sh", "-c", "exec 3>&-; echo closed; read x")
		cmd.ExtraFiles = []*os.File{w}
		p := launch(t, cmd)
		w.Close()
		p.line(t)
		r.SetReadDeadline(time.Now().Add(deadline))
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the pipe that the command has closed: %v, want EOF", err)
		}
		p.in.Close()
		p.rest(t)
	})
}

// When P has ended and CMD has left nothing running, C and R have ended too, and
// are no zombies.
func TestNothingIsLeft(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		for _, script := range []string{"echo $PPID", "echo $PPID; kill -KILL $$", "echo $PPID; exec /no/such/command"} {
			cmd := u.command(t, "sh", "-c", script)
			router := watchRouter(t, cmd)
			p := launch(t, cmd)
			r, c := router.pid(t), p.line(t)
			cmd.Wait()
			for name, pid := range map[string]string{"router": strconv.Itoa(r), "child": c} {
				if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil {
					t.Errorf("after %q there is still the %s: %s", script, name, stat)
				}
			}
		}
	})
}

// P and its output end with CMD; what CMD has left running keeps the network
// until the last of it ends; then R ends and nothing is left.
func TestChildrenOutliveTheCommand(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		before := host(t)
		dir := publicDir(t)
		ask, tell := filepath.Join(dir, "ask"), filepath.Join(dir, "tell")
		mkfifo(t, ask)
		mkfifo(t, tell)
		agent := `cat ` + ask + `; getent hosts known.test > ` + tell + ` 2>&1; cat ` + ask
		cmd := u.command(t, "sh", "-c", `echo agent; setsid sh -c '`+agent+`' >/dev/null 2>&1 </dev/null & exit 5`)
		router := watchRouter(t, cmd)
		p := launch(t, cmd)
		router.pid(t)
		if out := p.rest(t); out != "agent\n" { // the end of what $(…) waits for
			t.Errorf("output is %q", out)
		}
		p.cmd.Wait()
		if got := shellStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus)); got != 5 {
			t.Errorf("status is %d, want 5", got)
		}

		next := func() { // let the agent go on
			f, err := os.OpenFile(ask, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		next()
		answer, err := os.ReadFile(tell)
		if err != nil || !strings.Contains(string(answer), "fd00:74::5") {
			t.Errorf("the name has the address %q, %v when the command has ended", answer, err)
		}
		next()
		router.ended(t)
		if diff := cmp.Diff(before, host(t)); diff != "" {
			t.Errorf("on the host (-before +after):\n%s", diff)
		}
	})
}

// C is the parent of orphans: none of them stays as a zombie.
func TestOrphansAreReaped(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		// Each turn of the loop leaves an orphan and prints its number.
		p := launch(t, u.command(t, "sh", "-c", `for i in 1 2 3; do sh -c 'true & echo $!'; done; read x`))
		var pids []string
		for range 3 {
			pids = append(pids, p.line(t))
		}
		for _, pid := range pids {
			eventually(t, "orphan "+pid+" is reaped", func() bool {
				_, err := os.Stat("/proc/" + pid)
				return errors.Is(err, os.ErrNotExist)
			})
		}
		p.in.Close()
		p.rest(t)
	})
}

// eventually is for what nobody tells: it asks again and again.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("does not come: %s", what)
		}
	}
}

// If R or C is killed, what is inside has no network, and nothing hangs.
func TestKilledProcessesTakeTheNetworkAlong(t *testing.T) {
	script := `echo $PPID; read x; ip -o link; getent hosts known.test; echo end`
	for name, kill := range map[string]func(c, r int) int{
		"router": func(_, r int) int { return r },
		"child":  func(c, _ int) int { return c },
	} {
		t.Run(name, func(t *testing.T) {
			asEverybody(t, func(t *testing.T, u user) {
				cmd := u.command(t, "sh", "-c", script)
				router := watchRouter(t, cmd)
				null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer null.Close()
				cmd.Stderr = null // P complains
				p := launch(t, cmd)
				r := router.pid(t)
				c, err := strconv.Atoi(p.line(t))
				if err != nil {
					t.Fatal(err)
				}
				unix.Kill(kill(c, r), unix.SIGKILL)
				router.ended(t)
				io.WriteString(p.in, "\n")
				if got, want := p.rest(t), "end\n"; !strings.HasSuffix(got, want) || strings.Contains(got, "tun0") || strings.Contains(got, "fd00") {
					t.Errorf("afterwards the command sees %q", got)
				}
				p.cmd.Wait()
				want := 0
				if name == "child" {
					want = exitFailed
				}
				if got := shellStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus)); got != want {
					t.Errorf("status is %d, want %d", got, want)
				}
			})
		})
	}
}

func TestRouterThatFailsIsTold(t *testing.T) {
	nstest.NeedTUN(t)
	cmd := user{}.command(t, "true")
	cmd.Env = append(cmd.Env, routerDoes+"=fail")
	_, errs, status := run(t, cmd)
	if status != exitFailed || !strings.Contains(errs, "no route to the upstream") {
		t.Errorf("status %d, %q", status, errs)
	}
}

// Before there is a command, a signal ends everything.
func TestSignalWhileTheRouterStarts(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
			for name, group := range map[string]int{"alone": 1, "group": -1} {
				cmd := u.command(t, "echo", "started")
				cmd.Env = append(cmd.Env, routerDoes+"=hang")
				router := watchRouter(t, cmd)
				p := launch(t, cmd)
				router.pid(t)
				unix.Kill(group*cmd.Process.Pid, sig)
				router.ended(t)
				if out := p.rest(t); out != "" {
					t.Errorf("%v, %s: output %q", sig, name, out)
				}
				cmd.Wait()
				if got := shellStatus(cmd.ProcessState.Sys().(syscall.WaitStatus)); got != 128+int(sig) {
					t.Errorf("%v, %s: status %d, want %d", sig, name, got, 128+int(sig))
				}
			}
		}
	})
}

// A signal reaches the command once, whether P alone was sent it or the group.
func TestSignalsReachTheCommandOnce(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		p := launch(t, u.command(t, "/proc/self/exe", "count-signals"))
		var cmd, group int
		if _, err := fmt.Sscanf(p.line(t), "ready %d %d", &cmd, &group); err != nil {
			t.Fatal(err)
		}
		parent := p.cmd.Process.Pid
		if group != parent {
			t.Errorf("the process group of the command is %d, that of its parent %d", group, parent)
		}
		for _, tt := range []struct {
			to  int
			sig syscall.Signal
		}{
			{parent, syscall.SIGTERM},
			{-group, syscall.SIGINT},
			{parent, syscall.SIGHUP},
			{cmd, syscall.SIGUSR1},
			{-group, syscall.SIGQUIT},
			{parent, syscall.SIGUSR2}, // ends it
		} {
			unix.Kill(tt.to, tt.sig)
			// One that came twice would be read in place of the next.
			if got := p.line(t); got != tt.sig.String() {
				t.Fatalf("%v to %d: the command got %q", tt.sig, tt.to, got)
			}
		}
		if rest := p.rest(t); rest != "" {
			t.Errorf("and then it got %q", rest)
		}
	})
}

// Signals that were ignored stay ignored, as nohup wants it; no other is.
func TestIgnoredSignals(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		show := []string{"grep", "SigIgn", "/proc/self/status"}
		if got := u.must(t, show...); got != "SigIgn:\t0000000000000000\n" {
			t.Errorf("ignored by the command: %q", got)
		}
		cmd := u.command(t, show...)
		cmd.Path = "/bin/sh"
		cmd.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh", publicBinary(t)}, cmd.Args[1:]...)
		out, errs, _ := run(t, cmd)
		if out != "SigIgn:\t0000000000000001\n" {
			t.Errorf("ignored by the command under nohup: %q %s", out, errs)
		}
	})
}

// ^Z stops the job as the shell sees it, and it goes on; ^C reaches the command
// once.
func TestJobControl(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		terminal, tty := openTerminal(t)
		said, say, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		told, tell, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		self := publicBinary(t)
		shell := u.command(t)
		shell.Args = append([]string{"shell", "shell"}, self, "parent", self, "count-signals")
		shell.Stdin, shell.Stdout, shell.Stderr = tty, tty, tty
		shell.ExtraFiles = []*os.File{say, told}
		shell.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred, Setsid: true, Setctty: true, Ctty: 0}
		if err := shell.Start(); err != nil {
			t.Fatal(err)
		}
		tty.Close()
		say.Close()
		told.Close()
		end := time.Now().Add(deadline)
		said.SetReadDeadline(end)
		terminal.SetReadDeadline(end)
		defer func() {
			for _, f := range []*os.File{terminal, said, tell} {
				f.Close()
			}
			shell.Process.Kill()
			shell.Wait()
		}()
		screen, job := bufio.NewReader(terminal), bufio.NewReader(said)
		expect := func(r *bufio.Reader, want string) {
			t.Helper()
			line, err := r.ReadString('\n')
			if err != nil || strings.TrimSpace(line) != want {
				t.Fatalf("instead of %q: %q, %v", want, line, err)
			}
		}
		if line, err := screen.ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready") {
			t.Fatalf("instead of ready: %q, %v", line, err)
		}
		io.WriteString(terminal, "\x1a")
		expect(job, "stopped "+syscall.SIGTSTP.String())
		io.WriteString(tell, "go on\n")
		expect(job, "continued") // and it has the terminal
		io.WriteString(terminal, "hello\n")
		expect(screen, "line hello")
		io.WriteString(terminal, "\x03")
		expect(screen, syscall.SIGINT.String())
		io.WriteString(terminal, "quit\n")
		expect(screen, "line quit") // and no second SIGINT before it
		expect(job, "ended 0")
	})
}

// publicBinary returns a copy of the test binary that every user may execute.
func publicBinary(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(publicDir(t), "netns.test")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// openTerminal returns both ends of a new terminal without echo.
func openTerminal(t *testing.T) (terminal, tty *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		nstest.Missing(t, "/dev/ptmx: "+err.Error())
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "/dev/ptmx"), tty
}
