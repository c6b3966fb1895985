package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// path is where programs are looked for: Debian keeps servers where the PATH of
// an ordinary user does not lead.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment of all commands: nothing of the tests' own, such as GOCOVERDIR.
var environment = []string{"PATH=" + path, "LC_ALL=C", "HOME=/", "TERM=dumb",
	"GORACE=atexit_sleep_ms=10", // or each process waits for a second at its end
	"STATE_DIRECTORY=" + root,   // as service managers have it: nothing of the machine's
}

// Node is a host of the lab: a network namespace, and a mount namespace in which
// it has a resolv.conf of its own.
type Node struct {
	Name     string
	net, mnt *os.File
}

// NewNode makes a node with nothing but a loopback interface, for a test that draws
// a network of its own; it lives until the test ends and all its processes have.
// Nodes that live at the same time have different names. Where there can be none the
// test is skipped, or fails: see [Missing].
func NewNode(t testing.TB, name string, resolver netip.Addr) *Node {
	t.Helper()
	needLab(t)
	Need(t, "ip", "iproute2")
	Need(t, "nsenter", "util-linux")
	return newNode(t, name, resolver.String())
}

// newNode makes a node with nothing but a loopback interface; it lives until the
// test ends and all its processes have.
func newNode(t testing.TB, name, resolver string) *Node {
	t.Helper()
	n := &Node{Name: name}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		made <- n.make(resolver)
	}()
	if err := <-made; err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	t.Cleanup(func() {
		n.net.Close()
		n.mnt.Close()
	})
	n.IP(t, "link set lo up")
	// Part of the first is inherited from the machine.
	n.Sysctl(t, "net.ipv4.conf.all.rp_filter", "0")
	n.Sysctl(t, "net.ipv4.conf.default.rp_filter", "0")
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	n.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	// What is unreachable is said each time it is asked.
	n.Sysctl(t, "net.ipv4.icmp_ratelimit", "0")
	n.Sysctl(t, "net.ipv6.icmp.ratelimit", "0")
	return n
}

// make gives the calling thread namespaces of its own, and keeps them.
func (n *Node) make(resolver string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	file := filepath.Join(root, "resolv.conf."+n.Name)
	if err := os.WriteFile(file, []byte("nameserver "+resolver+"\n"), 0o644); err != nil {
		return err
	}
	tree, err := openTree(file)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := moveMount(tree, "/etc/resolv.conf"); err != nil {
		return err
	}
	if n.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	n.mnt, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// Cover has programs on n find another text in a file, such as /etc/passwd, until the
// test ends. The text is what the file has whose path is returned.
func (n *Node) Cover(t testing.TB, path, text string) string {
	t.Helper()
	file := File(t, filepath.Base(path), text)
	if r := n.Run(t, "mount", "--bind", file, path); r.Status != 0 {
		t.Fatalf("%s: cover %s: %s", n.Name, path, r.Stderr)
	}
	return file
}

// nsPath is where another process of the lab finds a namespace.
func nsPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// Within is what stands before a command that is to run on n.
func (n *Node) Within() []string {
	return []string{"nsenter", "--net=" + nsPath(n.net), "--mount=" + nsPath(n.mnt), "--"}
}

// Command returns a command on n; its process is that of the command itself,
// and its directory is "/".
func (n *Node) Command(args ...string) *exec.Cmd {
	return n.command(context.Background(), args...)
}

func (n *Node) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(n.Within(), args...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = slices.Clone(environment)
	cmd.Dir = "/"
	return cmd
}

// Do calls f in the network namespace of n: the sockets that f opens itself, not
// in another goroutine, are n's.
func (n *Node) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, as above
		err := os.NewSyscallError("setns", unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Listen listens for TCP on n until the test ends.
func (n *Node) Listen(t testing.TB, addr netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", addr.String())
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", n.Name, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// ListenUDP opens a UDP socket on n until the test ends.
func (n *Node) ListenUDP(t testing.TB, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", n.Name, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// IP runs the ip command of iproute2 on n, its arguments in one line, and
// returns what it prints.
func (n *Node) IP(t testing.TB, line string) string {
	t.Helper()
	Need(t, "ip", "iproute2")
	r := n.Run(t, append([]string{"ip"}, strings.Fields(line)...)...)
	if r.Status != 0 {
		t.Fatalf("%s: ip %s: status %d, %s", n.Name, line, r.Status, r.Stderr)
	}
	return r.Stdout
}

// Sysctl sets a variable of /proc/sys.
func (n *Node) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	// Which namespace it is of is the question of who opens it.
	if err := n.Do(func() error { return os.WriteFile(file, []byte(value), 0o644) }); err != nil {
		t.Fatalf("%s: set %s: %v", n.Name, name, err)
	}
}

// State is all that a program could change in the network configuration of n, as
// ip -j tells it.
func (n *Node) State(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{"-j addr", "-j -4 rule", "-j -6 rule", "-j -4 route show table all", "-j -6 route show table all"} {
		fmt.Fprintf(&b, "ip %s:\n%s", line, strings.ReplaceAll(n.IP(t, line), "},{", "},\n{"))
	}
	return b.String()
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Status         int // as a shell has it: 128 plus the number of a signal
	Took           time.Duration
}

// deadline of a command that takes a fraction of a second, or says how long it
// takes.
const deadline = 10 * time.Minute

// Run runs a command on n and waits until it has ended and nobody has its output
// any more. One that does not end is killed, and the test fails.
func (n *Node) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return n.RunWith(t, nil, args...)
}

// RunWith is Run with changes to the command before it is started.
func (n *Node) RunWith(t testing.TB, change func(*exec.Cmd), args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := n.command(ctx, args...)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if change != nil {
		change(cmd)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %s: %v", n.Name, strings.Join(args, " "), err)
	}
	err := cmd.Wait()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(start), Status: Status(cmd.ProcessState)}
	if ctx.Err() != nil {
		t.Fatalf("%s: %s: does not end: %v\n%s%s", n.Name, strings.Join(args, " "), err, r.Stdout, r.Stderr)
	}
	return r
}

// Status is the exit status of a process as a shell has it.
func Status(s *os.ProcessState) int {
	ws := s.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
