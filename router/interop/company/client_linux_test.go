package company

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tunroute/router/interop/lab"
)

// kind is a way to use tunroute.
type kind struct {
	name  string
	start func(t *testing.T, node *lab.Node, config string) *client
}

var kinds = []kind{
	{"run", startRun},
	{"exec", startExec},
}

// client is a host with a tunroute and with programs that know nothing of it.
type client struct {
	*lab.Node
	sh       *lab.Shell // where a program finds itself
	tunroute *lab.Shell // whose log is tunroute's
	within   []string   // stands before a program that is to run beside sh
	stop     func(t *testing.T)
}

// startRun routes the whole host, as root.
func startRun(t *testing.T, node *lab.Node, config string) *client {
	t.Helper()
	before := node.State(t)
	d := startShell(t, node.Command(lab.Bin+"/tunroute", "run", "-c", config))
	d.AwaitLog(t, 0, "msg=ready")
	return &client{Node: node, sh: startShell(t, node.Command("bash")), tunroute: d, stop: func(t *testing.T) {
		t.Helper()
		if err := d.Process().Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := d.Wait(t); status != 0 {
			t.Errorf("run: status %d after SIGTERM, want 0", status)
		}
		if after := node.State(t); after != before {
			t.Errorf("after run the host is\n%s\nbefore it was\n%s", after, before)
		}
	}}
}

// nobody is a user without privileges, and its group.
const nobody = 65534

// startExec runs one shell, as an unprivileged user; the host does not notice.
func startExec(t *testing.T, node *lab.Node, config string) *client {
	t.Helper()
	lab.NeedRoot(t) // or there is no other user
	lab.Need(t, "setpriv", "util-linux")
	secrets, err := filepath.Glob(filepath.Join(filepath.Dir(config), "*.*"))
	for _, file := range secrets {
		err = errors.Join(err, os.Chown(file, nobody, nobody))
	}
	if err != nil {
		t.Fatal(err)
	}
	exec := []string{"setpriv", fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "--", lab.Bin + "/tunroute", "exec", "-c", config, "--"}
	before := node.State(t)
	unchanged := func(t *testing.T) {
		t.Helper()
		if now := node.State(t); now != before {
			t.Errorf("with exec the host is\n%s\nbefore it was\n%s", now, before)
		}
	}
	sh := startShell(t, node.Command(append(slices.Clone(exec), "bash")...))
	sh.Must(t, "true") // it has started
	unchanged(t)
	return &client{Node: node, sh: sh, tunroute: sh, within: exec, stop: func(t *testing.T) {
		t.Helper()
		if status := sh.Close(t); status != 0 {
			t.Errorf("exec: status %d, want 0", status)
		}
		unchanged(t)
	}}
}

// startShell is lab.NewShell that looks at what the race detector says.
func startShell(t *testing.T, cmd *exec.Cmd) *lab.Shell {
	t.Helper()
	s := lab.NewShell(t, cmd)
	t.Cleanup(func() {
		if strings.Contains(s.Log(), "DATA RACE") {
			t.Errorf("in tunroute:\n%s", s.Log())
		}
	})
	return s
}

// with runs f with a tunroute of its own.
func (k kind) with(t *testing.T, node *lab.Node, config string, f func(c *client)) {
	t.Helper()
	c := k.start(t, node, config)
	f(c)
	c.stop(t)
}

// get returns what a web server answers.
func (c *client) get(t *testing.T, url string) string {
	t.Helper()
	return c.sh.Must(t, "curl -sS -m 60 %s", url)
}

// What connect says (strerror(3)).
const (
	refused        = "Connection refused"     // ECONNREFUSED
	unreachable    = "No route to host"       // EHOSTUNREACH
	netUnreachable = "Network is unreachable" // ENETUNREACH
)

// connect tries to connect to an address and returns why it cannot. bash waits in
// connect(2), whose errno does not get lost: see the interop package.
func (c *client) connect(t *testing.T, addr fmt.Stringer, port int) string {
	t.Helper()
	out, status := c.sh.Run(t, "timeout 60 bash -c 'exec 3<>/dev/tcp/%s/%d'", addr, port)
	if status == 0 {
		return "connected"
	}
	if _, why, ok := strings.Cut(out, "connect: "); ok {
		why, _, _ = strings.Cut(why, "\n")
		return why
	}
	return fmt.Sprintf("status %d, %s", status, out)
}

// fails is connect of what has to fail.
func (c *client) fails(t *testing.T, addr fmt.Stringer, port int, want string) {
	t.Helper()
	if got := c.connect(t, addr, port); got != want {
		t.Errorf("connect to %s port %d: %q, want %q", addr, port, got, want)
	}
}
