package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Child is C itself: the process in the namespace.
type Child struct {
	// Router is the socket to R.
	Router  *Conn
	control *Conn
}

// Enter returns the Child in a process that [Start] has started.
func Enter() (*Child, error) {
	first, err := strconv.Atoi(os.Getenv(inheritEnv))
	if err != nil {
		return nil, fmt.Errorf("%s: this process is started by another of ours and cannot be run by hand", inheritEnv)
	}
	os.Unsetenv(inheritEnv) // not for CMD
	router, err := NewConn(os.NewFile(uintptr(first), "router"))
	if err != nil {
		return nil, err
	}
	control, err := NewConn(os.NewFile(uintptr(first+1), "parent"))
	if err != nil {
		router.Close()
		return nil, err
	}
	return &Child{Router: router, control: control}, nil
}

// Fail tells P why there will be no command; [Inside.Wait] returns it.
func (c *Child) Fail(err error) {
	c.fail(exitFailed, err)
}

func (c *Child) fail(code byte, err error) {
	// If P has gone there is nobody to tell.
	_ = c.control.send(append([]byte{kindFail, code}, err.Error()...))
}

// Run starts a command, tells P how it ended, and returns when no process of it
// is left. args[0] is looked up in PATH. If the command cannot be started it
// tells P so, and returns at once.
//
// It gives up the standard files, all others that this process was started with,
// and the current directory. It leaves the calling goroutine locked to its
// thread, without capabilities. It is the last thing that a process does.
func (c *Child) Run(args []string) error {
	defer c.Router.Close()
	defer c.control.Close()
	// Becoming the parent of orphans, and so knowing when there are none.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		err = fmt.Errorf("become a subreaper: %w", err)
		c.Fail(err)
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.Fail(err)
		return err
	}
	defer null.Close()
	// From here on signals to the group are for CMD.
	own := make(chan os.Signal, 16)
	notify(own)
	defer signal.Stop(own)

	pid, err := startCommand(args)
	if err != nil {
		c.fail(exitCode(err), err)
		return err
	}
	if err := letGo(null); err != nil {
		return err // and CMD ends with the network
	}

	cmd := &command{pid: pid}
	requests := make(chan syscall.Signal)
	over := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { // until reap closes control, or P goes
		for {
			m, err := c.control.receiveMessage()
			if err != nil {
				return
			}
			if len(m) == 2 && m[0] == kindSignal {
				select {
				case requests <- syscall.Signal(m[1]):
				case <-over:
					return
				}
			}
		}
	})
	running.Go(func() { cmd.forward(own, requests, over) })
	c.reap(cmd)
	close(over)
	c.control.Close()
	running.Wait()
	return nil
}

// startCommand starts CMD on this thread, which has no capabilities any more.
func startCommand(args []string) (pid int, err error) {
	if len(args) == 0 {
		return 0, errors.New("no command")
	}
	path, err := exec.LookPath(args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) { // who has "." in PATH means it
		return 0, err
	}
	// Capabilities belong to threads, and a child has those of the thread
	// that forks. This one is not given back.
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		if err := dropCapabilities(); err != nil {
			return 0, fmt.Errorf("give up capabilities: %w", err)
		}
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}
	pid, err = syscall.ForkExec(path, args, attr)
	if errors.Is(err, syscall.ENOEXEC) {
		// A script without "#!", which execvp(3) and the shells run so.
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"sh", path}, args[1:]...), attr)
	}
	if err != nil {
		return 0, &fs.PathError{Op: "run", Path: path, Err: err}
	}
	return pid, nil
}

// Exit statuses of a command that cannot be run, as the shells have them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitCode is what a shell returns for a command that cannot be started.
func exitCode(err error) byte {
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	case errors.As(err, new(*fs.PathError)), errors.As(err, new(*exec.Error)):
		return exitNotExecutable
	}
	return exitFailed
}

// dropCapabilities empties all sets of the calling thread that exec adds to. A
// user other than root then has none.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData // of 32 capabilities each
	return unix.Capset(&header, &none[0])
}

// letGo gives up what belongs to CMD now.
func letGo(null *os.File) error {
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("give up file descriptor %d: %w", fd, err)
		}
	}
	if err := CloseInherited(); err != nil {
		return err
	}
	return os.Chdir("/")
}

// command is CMD.
type command struct {
	mu    sync.Mutex // held while pid is used or reaped: afterwards it may be another's
	pid   int
	ended bool
}

// reap waits for all descendants, and reports the end of CMD.
func (c *Child) reap(cmd *command) {
	for {
		// Leaves it waitable: pid must not become another's before the lock.
		err := waitAny()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // ECHILD: the last one has ended
		}
		cmd.mu.Lock()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		ended := err == nil && pid == cmd.pid && !cmd.ended
		cmd.ended = cmd.ended || ended
		cmd.mu.Unlock()
		if ended {
			// If P has gone there is nobody to tell.
			_ = c.control.send(binary.BigEndian.AppendUint32([]byte{kindExit}, uint32(status)))
			c.control.Close()
		}
	}
}

// waitAny blocks until a child has ended, and leaves its status to be fetched.
func waitAny() error {
	return unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
}

// exitStatus is the status of a kindExit message.
func exitStatus(m []byte) Status {
	ws := syscall.WaitStatus(binary.BigEndian.Uint32(m))
	if ws.Signaled() {
		return Status{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
	}
	return Status{Code: ws.ExitStatus()}
}

const (
	// groupWait is how long a signal that P was sent is held back to see
	// whether C is sent it too. Both are woken by the same system call; this
	// is for a machine that is busy.
	groupWait = 50 * time.Millisecond
	// groupSince is how old C's own signal may be when P tells of the same.
	groupSince = time.Second
)

// forward passes the signals that P asks for on to CMD, but for those that C was
// sent as well: they went to the whole group. It ends with over.
func (cmd *command) forward(own <-chan os.Signal, requests <-chan syscall.Signal, over <-chan struct{}) {
	last := make(map[os.Signal]time.Time)
	for {
		select {
		case <-over:
			return
		case sig := <-own:
			last[sig] = time.Now()
		case sig := <-requests:
			if t, ok := last[sig]; ok && time.Since(t) < groupSince {
				continue
			}
			if !cmd.sentToGroup(sig, own, last) {
				cmd.kill(sig)
			}
		}
	}
}

// sentToGroup waits whether C itself is sent sig.
func (cmd *command) sentToGroup(sig syscall.Signal, own <-chan os.Signal, last map[os.Signal]time.Time) bool {
	timer := time.NewTimer(groupWait)
	defer timer.Stop()
	for {
		select {
		case s := <-own:
			last[s] = time.Now()
			if s == os.Signal(sig) {
				return true
			}
		case <-timer.C:
			return false
		}
	}
}

func (cmd *command) kill(sig syscall.Signal) {
	cmd.mu.Lock()
	defer cmd.mu.Unlock()
	if !cmd.ended {
		_ = unix.Kill(cmd.pid, sig) // it may be a zombie
	}
}

