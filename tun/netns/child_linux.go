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

	own      chan os.Signal      // what C itself is sent
	requests chan syscall.Signal // what P asks to be passed on
	over     chan struct{}       // closed when Run is
	running  sync.WaitGroup      // listen and forward

	mu    sync.Mutex // held while CMD is started, used by number, or reaped
	pid   int        // of CMD; 0: not yet
	ended bool       // pid may be another's
}

// Enter returns the Child in a process that [Start] has started.
//
// Until [Child.Run] has started the command, this process ends if P does, or if
// either is sent a signal.
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
	c := &Child{
		Router:   router,
		control:  control,
		own:      make(chan os.Signal, 16),
		requests: make(chan syscall.Signal),
		over:     make(chan struct{}),
	}
	notify(c.own)
	c.running.Go(c.listen)
	c.running.Go(c.forward)
	return c, nil
}

// listen reads what P says until P has gone or control is closed.
func (c *Child) listen() {
	for {
		m, err := c.control.receiveMessage()
		if err != nil {
			c.endWithoutCommand(0)
			return
		}
		if len(m) != 2 || m[0] != kindSignal {
			continue
		}
		select {
		case c.requests <- syscall.Signal(m[1]):
		case <-c.over:
			return
		}
	}
}

// endWithoutCommand ends this process if there is no CMD yet, and tells P that it
// was by this signal.
func (c *Child) endWithoutCommand(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid != 0 {
		return
	}
	c.tell(unix.WaitStatus(sig), false) // a status of wait(2) has the signal in its lowest bits
	os.Exit(exitFailed)
}

// tell tells P how CMD ended, and whether something of it is alive.
func (c *Child) tell(status unix.WaitStatus, alive bool) {
	m := []byte{kindExit, 0}
	if alive {
		m[1] = 1
	}
	// If P has gone there is nobody to tell.
	_ = c.control.send(binary.BigEndian.AppendUint32(m, uint32(status)))
}

// Fail tells P why there will be no command; [Inside.Wait] returns it when this
// process has ended, which it must do now.
func (c *Child) Fail(err error) {
	c.fail(exitFailed, err)
}

func (c *Child) fail(code byte, err error) {
	// If P has gone there is nobody to tell.
	_ = c.control.send(append([]byte{kindFail, code}, err.Error()...))
}

// Run starts a command, tells P how it ended, and returns when no process of it
// is left. args[0] is looked up in PATH. If the command cannot be started it
// calls [Child.Fail], and returns at once.
//
// It gives up the standard files, all others that this process was started with,
// and the current directory. It leaves the calling goroutine locked to its
// thread, without capabilities. It is the last thing that a process does.
func (c *Child) Run(args []string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.Fail(err)
		return err
	}
	defer null.Close()
	// Becoming the parent of orphans, and so knowing when there are none.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		err = fmt.Errorf("become a subreaper: %w", err)
		c.Fail(err)
		return err
	}
	c.mu.Lock()
	c.pid, err = startCommand(args)
	c.mu.Unlock()
	if err != nil {
		c.fail(exitCode(err), err)
		return err
	}
	defer c.Router.Close() // the end of the network
	if err := letGo(null); err != nil {
		return err
	}
	c.reap()
	close(c.over)
	c.control.Close()
	c.running.Wait()
	signal.Stop(c.own)
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

// reap waits for all descendants, and reports the end of CMD.
func (c *Child) reap() {
	for {
		// Leaves it waitable: pid must not become another's before the lock.
		if waitAny() != nil {
			return // ECHILD: the last one has ended
		}
		c.mu.Lock()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		ended := err == nil && pid == c.pid && !c.ended
		c.ended = c.ended || ended
		c.mu.Unlock()
		if ended {
			c.tell(status, anyAlive())
			c.control.Close()
		}
	}
}

// anyAlive says whether there is a child that has not ended. Those that have, it
// reaps.
func anyAlive() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && pid > 0:
		default:
			return err == nil
		}
	}
}

// waitAny blocks until a child has ended, and leaves its status to be fetched.
// It returns ECHILD if there is no child.
func waitAny() error {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
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
func (c *Child) forward() {
	last := make(map[os.Signal]time.Time)
	for {
		select {
		case <-c.over:
			return
		case sig := <-c.own:
			c.endWithoutCommand(sig.(syscall.Signal))
			last[sig] = time.Now()
		case sig := <-c.requests:
			c.endWithoutCommand(sig)
			if t, ok := last[sig]; ok && time.Since(t) < groupSince {
				continue
			}
			if !c.sentToGroup(sig, last) {
				c.kill(sig)
			}
		}
	}
}

// sentToGroup waits whether C itself is sent sig.
func (c *Child) sentToGroup(sig syscall.Signal, last map[os.Signal]time.Time) bool {
	timer := time.NewTimer(groupWait)
	defer timer.Stop()
	for {
		select {
		case s := <-c.own:
			last[s] = time.Now()
			if s == os.Signal(sig) {
				return true
			}
		case <-timer.C:
			return false
		}
	}
}

func (c *Child) kill(sig syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		_ = unix.Kill(c.pid, sig) // it may be a zombie
	}
}
