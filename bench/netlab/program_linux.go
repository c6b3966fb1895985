package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GuardArg is the first argument with which a program that starts guarded
// programs is run again: its main function must then call [Guard] with the
// others, and exit with the result.
const GuardArg = "__guard"

// stopTime is how long a program that was asked to end may take.
const stopTime = 3 * time.Second

// Program is what [Host.Start] starts.
type Program struct {
	Args []string
	Dir  string
	Env  []string // nil for that of this process
	// Guarded programs are the children of a guard, which is the first
	// process of a namespace: when it ends, the kernel ends whatever the
	// program has started.
	Guarded bool
	Stdin   *os.File // nil for one that is at its end
	Stdout  io.Writer
	Stderr  io.Writer
}

// Process is a program that runs. Its methods are safe for concurrent use.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of the end, once ended is closed
}

// Start starts a program on the host. It must be stopped before the host is
// closed.
func (h *Host) Start(p Program) (*Process, error) {
	args := p.Args
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if p.Guarded {
		args = append([]string{"/proc/self/exe", GuardArg}, args...)
		attr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.Dir, p.Env, attr
	if p.Stdin != nil { // or it would be an interface that is not nil
		cmd.Stdin = p.Stdin
	}
	cmd.Stdout, cmd.Stderr = p.Stdout, p.Stderr
	// A grandchild that holds the pipes must not hold up Wait.
	cmd.WaitDelay = stopTime
	if err := h.on(cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	proc := &Process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		proc.err = cmd.Wait()
		close(proc.ended)
	}()
	return proc, nil
}

// PID returns the number of the process; for a guarded program, of its guard.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err returns how the process has ended, nil for status 0. It must have ended.
func (p *Process) Err() error { return p.err }

// Stop asks the process to end by SIGTERM, kills it where that takes longer than
// a few seconds, and waits for the end. It may be called more than once.
func (p *Process) Stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return
	case <-time.After(stopTime):
	}
	p.Kill()
}

// Kill ends the process at once, and waits for the end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// Guard runs a program as the first process of a process namespace, passes
// SIGTERM on to it, and returns its status.
func Guard(args []string) (status int) {
	if err := guard(args); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, strings.Join(args, " ")+":", err)
		return 1
	}
	return 0
}

func guard(args []string) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	// /proc shows the processes of who has mounted it, and /sys the
	// interfaces.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount /", err)
	}
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs"} {
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return os.NewSyscallError("mount "+dir, err)
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var waited sync.WaitGroup
	defer waited.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	waited.Go(func() {
		select {
		case <-asked:
			cmd.Process.Signal(syscall.SIGTERM)
		case <-ctx.Done():
		}
	})
	return cmd.Wait()
}
