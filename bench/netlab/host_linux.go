package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is a network namespace. Its methods are safe for concurrent use, until
// Close.
type Host struct {
	Name  string // for messages
	net   *os.File
	do    chan func()
	ended chan struct{}
}

// NewHost makes a host with nothing but a loopback interface, which is up.
func NewHost(name string) (*Host, error) {
	h := &Host{Name: name, do: make(chan func()), ended: make(chan struct{})}
	made := make(chan error)
	// A thread that stays in the namespace for as long as the host lives:
	// with the thread that has started it, a process of ours is killed.
	go func() {
		defer close(h.ended)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
		if err == nil {
			h.net, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		for f := range h.do {
			f()
		}
	}()
	err := <-made
	if err == nil {
		err = h.settle()
	}
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	return h, nil
}

// settle sets what all hosts need: enough ports for as many short connections as
// a machine can open, the congestion control that most machines have, and no
// filters on the way that packets take.
func (h *Host) settle() error {
	if err := h.IP("link set lo up"); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"net.ipv4.tcp_tw_reuse", "1"},
		{"net.ipv4.ip_local_port_range", "1024 65535"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
	} {
		if err := h.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	for _, name := range congestion {
		err := h.Sysctl(congestionSysctl, name)
		if err == nil {
			return nil
		}
		// The kernel has none, or lets only the machine itself have it
		// (tcp_allowed_congestion_control).
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return nil // the results page tells what it has
}

const congestionSysctl = "net.ipv4.tcp_congestion_control"

// congestion is what hosts have: what most machines do, or else the one that every
// kernel has and that does the same where nothing is lost.
var congestion = [...]string{"cubic", "reno"}

// Congestion returns the congestion control that hosts have on this machine, "" where
// no host can be made.
func Congestion() string {
	h, err := NewHost("congestion")
	if err != nil {
		return ""
	}
	defer h.Close()
	var b []byte
	if h.on(func() (err error) { b, err = os.ReadFile(sysctlFile(congestionSysctl)); return err }) != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Close removes the host, whose programs must have ended.
func (h *Host) Close() {
	close(h.do)
	<-h.ended
	if h.net != nil {
		h.net.Close()
	}
}

// on calls f on the host, in the thread that stays there.
func (h *Host) on(f func() error) error {
	done := make(chan error)
	h.do <- func() { done <- f() }
	return <-done
}

// Run runs a program on the host and returns what it prints; the end of ctx kills
// it. Its error has what the program printed on standard error.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	return h.output(exec.CommandContext(ctx, args[0], args[1:]...))
}

// IP runs commands of iproute2's ip, each in a line, until one fails.
func (h *Host) IP(lines ...string) error {
	cmd := exec.Command("ip", "-batch", "-") // one process for all of them
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if _, err := h.output(cmd); err != nil {
		return fmt.Errorf("%w: %s", err, strings.Join(lines, "; "))
	}
	return nil
}

// output runs a command on the host.
func (h *Host) output(cmd *exec.Cmd) (string, error) {
	var out, msg strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := h.on(cmd.Start); err != nil {
		return "", fmt.Errorf("%s: %w", h.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s", h.Name, strings.Join(cmd.Args, " "), err, strings.TrimSpace(msg.String()))
	}
	return out.String(), nil
}

// Sysctl sets a variable of /proc/sys.
func (h *Host) Sysctl(name, value string) error {
	// Which host it is of is the question of who opens it.
	err := h.on(func() error { return os.WriteFile(sysctlFile(name), []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func sysctlFile(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }

// End is one end of a wire.
type End struct {
	Host  *Host
	Name  string         // of the interface
	Addrs []netip.Prefix // of it
}

// Wire joins two hosts by a pair of veth interfaces with an MTU of 1500.
func Wire(a, b End) error {
	err := a.Host.IP(fmt.Sprintf("link add %s mtu 1500 type veth peer name %s mtu 1500 netns /proc/%d/fd/%d",
		a.Name, b.Name, os.Getpid(), b.Host.net.Fd()))
	if err != nil {
		return err
	}
	for _, end := range []End{a, b} {
		// There is nobody else who could have its addresses; and without its
		// link-local one at once, a host that forwards finds no neighbour.
		if err := end.Host.Sysctl("net.ipv6.conf."+end.Name+".accept_dad", "0"); err != nil {
			return err
		}
		lines := []string{"link set " + end.Name + " up"}
		for _, addr := range end.Addrs {
			lines = append(lines, AddAddr(addr, end.Name))
		}
		if err := end.Host.IP(lines...); err != nil {
			return err
		}
	}
	return nil
}

// AddAddr is the line for [Host.IP] that gives an interface an address.
func AddAddr(addr netip.Prefix, dev string) string {
	line := fmt.Sprintf("addr add %s dev %s", addr, dev)
	if addr.Addr().Is6() {
		line += " nodad" // there is nobody else who could have it
	}
	return line
}
