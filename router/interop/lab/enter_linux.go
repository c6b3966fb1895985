package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Places in the mount namespace of the tests, which every user can read.
const (
	root = "/run/lab"
	// Bin is what the function given to [Enter] has made.
	Bin = root + "/bin"
	// Self is the test binary.
	Self = root + "/self"
)

// Stages of Enter, in stageEnv: nothing is the process that go test has started,
// stageInit the first one of the namespaces and stageTests its only child.
// Anything else is the reason why there are none.
const (
	stageEnv   = "TUNROUTE_LAB"
	binEnv     = "TUNROUTE_LAB_BIN"  // what is to become Bin
	selfEnv    = "TUNROUTE_LAB_SELF" // what is to become Self
	stageInit  = "init"
	stageTests = "tests"
)

// Enter runs the test binary again in network, mount and process namespaces of
// its own, as root of a new user namespace where it is not root yet, and exits
// with its status. In the process it has started, it returns. Call it first in
// TestMain.
//
// Before, while there is a network, it calls build to make the programs that the
// tests need in a directory.
//
// Where namespaces are forbidden the tests run all the same; those that call
// [New] do not.
func Enter(build func(dir string) error) {
	// What nohup started has hangups ignored, and so would all that the tests
	// start; who catches them passes the default on.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	switch os.Getenv(stageEnv) {
	case "":
		code, err := enter(build)
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		os.Exit(code)
	case stageInit:
		if err := furnish(os.Getenv(binEnv), os.Getenv(selfEnv)); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			os.Exit(1)
		}
		os.Exit(initProcess())
	}
}

// enter is the stage of the process that go test has started.
func enter(build func(dir string) error) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "tunroute-lab-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // others execute what is in it
		return 1, err
	}
	if err := build(dir); err != nil {
		return 1, err
	}
	// ^C is for the tests; this process has to clean up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)

	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	code, err = again(attr, stageEnv+"="+stageInit, binEnv+"="+dir, selfEnv+"="+self)
	if err != nil {
		code, err = again(nil, stageEnv+"="+err.Error())
	}
	return code, err
}

// again runs this executable with the same arguments.
func again(attr *syscall.SysProcAttr, environ ...string) (code int, err error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), environ...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1 for a signal
	}
	return 0, err
}

// initProcess runs the tests. It is the first process of its namespace: orphans
// become its children, and when it ends the kernel kills whatever is left.
func initProcess() int {
	os.Setenv(stageEnv, stageTests)
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: run the tests:", err)
		return 1
	}
	// The timeout of go test asks the tests for their goroutines.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGQUIT, os.Interrupt, syscall.SIGTERM)
	go func() {
		for sig := range signals {
			_ = unix.Kill(pid, sig.(syscall.Signal))
		}
	}()
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case ended == pid && status.Exited():
			return status.ExitStatus()
		case ended == pid:
			return 128 + int(status.Signal())
		}
	}
}

// furnish gives the mount namespace a /proc of its processes, an empty /run, the
// programs of the tests, and a TUN that every user can open.
func furnish(bin, self string) error {
	// What is mounted here must not propagate to the machine.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// Taken before /run is covered, where they may be.
	binTree, err := openTree(bin)
	if err != nil {
		return err
	}
	defer unix.Close(binTree)
	selfTree, err := openTree(self)
	if err != nil {
		return err
	}
	defer unix.Close(selfTree)

	// Servers keep their sockets in /run, and the machine's must not be found
	// there: a resolver behind one would be asked past the network.
	if err := mount("lab", "/run", "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	if err := os.MkdirAll(Bin, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(Self, nil, 0o755); err != nil {
		return err
	}
	if err := moveMount(binTree, Bin); err != nil {
		return err
	}
	if err := moveMount(selfTree, Self); err != nil {
		return err
	}
	return openTUN()
}

const tunPath = "/dev/net/tun"

// openTUN lets every user open TUNs, as most distributions do. Where there are
// none, or where this is not root's to decide, it does nothing.
func openTUN() error {
	node := filepath.Join(root, "tun")
	if _, err := os.Stat(tunPath); err != nil {
		return nil
	}
	// The number of Documentation/admin-guide/devices.txt.
	err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200)))
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	if err == nil {
		err = os.Chmod(node, 0o666) // whatever the umask
	}
	if err == nil {
		err = mount(node, tunPath, "", unix.MS_BIND, "")
	}
	return err
}

func mount(from, to, kind string, flags uintptr, data string) error {
	if err := unix.Mount(from, to, kind, flags, data); err != nil {
		return &fs.PathError{Op: "mount", Path: to, Err: err}
	}
	return nil
}

// openTree copies a mount, or a part of it, and moveMount mounts the copy over
// something. Unlike mount(2) they follow no link that a path ends in: what is
// covered may be a link to nowhere.
func openTree(path string) (fd int, err error) {
	fd, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return fd, nil
}

func moveMount(tree int, path string) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: path, Err: err}
	}
	return nil
}

// Missing skips the test for a reason that lies in the machine; where CI=true it
// fails.
func Missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// Need skips or fails the test, as [Missing] does, if a program is not
// installed; debian is the package that has it.
func Need(t testing.TB, program, debian string) {
	t.Helper()
	for dir := range strings.SplitSeq(path, ":") {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return
		}
	}
	Missing(t, fmt.Sprintf("no %s: install the Debian package %s", program, debian))
}

// needLab skips or fails the test where there is no lab, or no TUN in it.
func needLab(t testing.TB) {
	t.Helper()
	if stage := os.Getenv(stageEnv); stage != stageTests {
		Missing(t, "namespaces are forbidden here: "+stage)
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		Missing(t, tunPath+": "+err.Error())
	}
	unix.Close(fd)
}

// NeedRoot skips or fails the test, as [Missing] does, where root is root of a
// user namespace only: there are no other users in it.
func NeedRoot(t testing.TB) {
	t.Helper()
	m, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(m)); err != nil || len(f) != 3 || f[0] != "0" || f[1] != "0" {
		Missing(t, "needs to run as root")
	}
}
