package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// entered is set in the environment of the process that Enter starts, to "yes"
// or to the reason why there is no namespace.
const entered = "TUNROUTE_NSTEST"

// Enter runs the test binary again in new network and mount namespaces, as root
// of a new user namespace where it is not root yet, and exits with its status.
// In the process it has started, it returns. Call it first in TestMain.
//
// Where namespaces are forbidden the tests run all the same; those that call
// [Need] do not.
func Enter() {
	switch os.Getenv(entered) {
	case "":
		os.Exit(again())
	case "yes":
		// Mounts of the tests must not propagate to the machine.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "nstest: make mounts private:", err)
			os.Exit(1)
		}
	}
}

func again() int {
	// Pdeathsig is about the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	code, err := run(attr, "yes")
	if err != nil {
		code, err = run(&syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, err.Error())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	return code
}

func run(attr *syscall.SysProcAttr, state string) (code int, err error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), entered+"="+state)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1 for a signal
	}
	return 0, err
}

// Need skips the test where there is no namespace of its own; where CI=true it
// fails.
func Need(t testing.TB) {
	t.Helper()
	if state := os.Getenv(entered); state != "yes" {
		Missing(t, "namespaces are forbidden here: "+state)
	}
}

// NeedTUN is [Need], and skips or fails in the same way where TUN interfaces
// cannot be made.
func NeedTUN(t testing.TB) {
	t.Helper()
	Need(t)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		Missing(t, "/dev/net/tun: "+err.Error())
	}
	unix.Close(fd)
}

// OpenTUN puts a /dev/net/tun that everybody may open in the place of that of the
// machine, in the mount namespace of [Enter] only. Where that cannot be done it is as it
// is, and the tests say so.
func OpenTUN() error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "nstest")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return nil // namespaces are forbidden
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	node := filepath.Join(dir, "tun")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil {
		return nil // root of a user namespace: it is as it is
	}
	if err := os.Chmod(node, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, ""); err != nil {
		return nil // there is none to cover
	}
	return nil
}

// NeedRoot skips the test, or fails it, where root is root of a user namespace
// only.
func NeedRoot(t testing.TB) {
	t.Helper()
	Need(t)
	m, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(m)); err != nil || len(f) != 3 || f[0] != "0" || f[1] != "0" {
		Missing(t, "needs to run as root")
	}
}

// Missing skips the test for a reason that lies in the machine; where CI=true
// it fails.
func Missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// Run runs a command and returns what it prints; the test fails if the command
// does. Where there is no such command the test is skipped: pkg is the Debian
// package that has it.
func Run(t testing.TB, pkg, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		Missing(t, name+" is missing: apt-get install "+pkg)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// IP runs the ip command of iproute2; its arguments are in one line.
func IP(t testing.TB, line string) string {
	t.Helper()
	return Run(t, "iproute2", "ip", strings.Fields(line)...)
}

// Loopback sets the loopback interface of the namespace up, which in a new one is
// down. Where there is no namespace it does nothing. It is for TestMain.
func Loopback() error {
	if os.Getenv(entered) != "yes" {
		return nil
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, lo)
}
