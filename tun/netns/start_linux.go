package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inheritEnv names the first of two files in the environment of C: the socket
// to R, and after it the socket to P.
const inheritEnv = "TUNROUTE_NETNS_FD"

// Inside is the child process C, as its parent P sees it.
type Inside struct {
	cmd     *exec.Cmd
	control *Conn
	signals chan os.Signal
}

// Start runs this executable again, with args, in namespaces of its own, and
// returns without waiting for it. args must lead it to [Enter]. It gets router,
// one end of a [Pair], and all files that this process was started with; Start
// closes router, and all files but the standard ones, whether it succeeds or
// not. The environment and the directory are those of this process.
//
// From here on the signals that [Inside.Signal] is for do not end this process
// any more: [Inside.Wait] passes them on, and [Status.Exit] ends it as they have
// ended the command.
//
// Root needs no user namespace; if it may not make the others without, and for
// every other user, there is one.
//
// What forbids it is a [*tun.Obstacle], see [Diagnose].
func Start(args []string, router *os.File) (*Inside, error) {
	defer CloseInherited() // after all attempts
	defer router.Close()
	near, far, err := Pair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	control, err := NewConn(near)
	if err != nil {
		return nil, err
	}

	// Before there is a C: its group must not lose P to a signal for all.
	signals := make(chan os.Signal, 16)
	notify(signals)

	user := os.Geteuid() != 0
	cmd, err := start(args, user, router, far)
	if errors.Is(err, unix.EPERM) && !user {
		cmd, err = start(args, true, router, far)
	}
	if err != nil {
		control.Close()
		signal.Stop(signals)
		return nil, Diagnose(fmt.Errorf("make a namespace: %w", err))
	}
	return &Inside{cmd, control, signals}, nil
}

func start(args []string, newUser bool, router, control *os.File) (*exec.Cmd, error) {
	// The same executable even if its file has been replaced meanwhile.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes(newUser)

	// What this process was given it passes on under the same numbers, and
	// ours come behind.
	inherited, err := inheritedFDs()
	if err != nil {
		return nil, err
	}
	for _, fd := range inherited {
		for len(cmd.ExtraFiles) < fd-3 {
			cmd.ExtraFiles = append(cmd.ExtraFiles, nil)
		}
		// The file of a copy: an os.File closes its descriptor when it is
		// collected.
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("pass on file descriptor %d: %w", fd, err)
		}
		f := os.NewFile(uintptr(dup), "inherited")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", inheritEnv, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, router, control)
	return cmd, cmd.Start()
}

// attributes are those of C.
func attributes(newUser bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	if !newUser {
		return attr
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	if os.Geteuid() == 0 {
		// Root of a container, which may map all ids that it has. Package
		// managers, for one, change to users of their own.
		attr.UidMappings = identity("/proc/self/uid_map")
		attr.GidMappings = identity("/proc/self/gid_map")
		attr.GidMappingsEnableSetgroups = true
		return attr
	}
	// The user stays who it is, which is the one id that it may map
	// (user_namespaces(7)). A user other than root loses the capabilities of
	// a new namespace on exec, but for ambient ones: what Setup needs.
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}
	return attr
}

// identity maps every id of a map to itself.
func identity(path string) []syscall.SysProcIDMap {
	var maps []syscall.SysProcIDMap
	for _, r := range idRanges(path) {
		maps = append(maps, syscall.SysProcIDMap{ContainerID: r.first, HostID: r.first, Size: r.size})
	}
	return maps
}

type idRange struct{ first, size int }

// idRanges returns the ids that exist in this user namespace, as far as they are
// below 2^31-1, which no system assigns more of.
func idRanges(path string) []idRange {
	var rs []idRange
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		var first, outside, size uint32
		n, _ := fmt.Sscan(line, &first, &outside, &size)
		if n == 3 && first <= math.MaxInt32 {
			rs = append(rs, idRange{int(first), int(min(size, math.MaxInt32-first))})
		}
	}
	return rs
}

// inheritedFDs returns the files beyond the standard ones that this process was
// started with, in order: whatever a Go program opens itself is closed on exec.
func inheritedFDs() ([]int, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list open files: %w", err)
	}
	var fds []int
	for _, e := range entries {
		fd, err := strconv.Atoi(filepath.Base(e.Name()))
		if err != nil || fd < 3 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds) // the directory has them as text
	return fds, nil
}

// CloseInherited closes the files beyond the standard ones that this process was
// started with. A process that lives longer than the command must not hold them:
// somebody may wait for the end of a pipe. [Start] and [Child.Run] call it; R
// calls it after it has taken its socket.
func CloseInherited() error {
	fds, err := inheritedFDs()
	for _, fd := range fds {
		unix.Close(fd)
	}
	return err
}

// Signal passes a signal on to CMD, at once or as soon as there is a CMD. If the
// signal has reached the whole process group, CMD has it already and does not
// get it twice.
func (i *Inside) Signal(sig syscall.Signal) error {
	return i.control.send([]byte{kindSignal, byte(sig)})
}

// Wait blocks until CMD has ended and returns how. C may live on, see
// [Status.Alive]. Signals that this process is sent are passed on meanwhile.
// Afterwards they are still caught: one for the whole group, by which CMD has
// ended, must not end P in another way.
//
// An error says why there was no CMD or what happened to C; the status is 125,
// 126 or 127 then. Wait may be called once.
func (i *Inside) Wait() (Status, error) {
	type report struct {
		status Status
		err    error
	}
	defer i.control.Close()

	reported := make(chan report, 1)
	go func() {
		status, err := i.receive()
		reported <- report{status, err}
	}()
	for {
		select {
		case sig := <-i.signals:
			// An error means that C has gone, which the report tells.
			_ = i.Signal(sig.(syscall.Signal))
		case r := <-reported:
			return r.status, r.err
		}
	}
}

func (i *Inside) receive() (Status, error) {
	for {
		m, err := i.control.receiveMessage()
		switch {
		case errors.Is(err, io.EOF):
			return i.unreported()
		case err != nil:
			return Status{Code: exitFailed}, err
		case m[0] == kindExit && len(m) == 6:
			status := exitStatus(syscall.WaitStatus(binary.BigEndian.Uint32(m[2:])))
			if status.Alive = m[1] != 0; !status.Alive {
				i.cmd.Wait()
			}
			return status, nil
		case m[0] == kindFail && len(m) >= 2:
			i.cmd.Wait()
			return Status{Code: int(m[1])}, errors.New(string(m[2:]))
		}
	}
}

// exitStatus is that of a command that has ended.
func exitStatus(ws syscall.WaitStatus) Status {
	if ws.Signaled() {
		return signalStatus(ws.Signal())
	}
	return Status{Code: ws.ExitStatus()}
}

// unreported is for a C that ended without a word. Before it has called Enter it
// ends by the signals that CMD would have got.
func (i *Inside) unreported() (Status, error) {
	i.cmd.Wait()
	ws, ok := i.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() && slices.Contains(groupSignals(), os.Signal(ws.Signal())) {
		return signalStatus(ws.Signal()), nil
	}
	return Status{Code: exitFailed}, fmt.Errorf("the process in the namespace ended without a word: %s", i.cmd.ProcessState)
}

// signalStatus is that of a command that a signal has ended.
func signalStatus(sig syscall.Signal) Status {
	return Status{Code: 128 + int(sig), Signal: sig}
}

// Kill ends C, and so R and the namespace if there is no CMD yet. It is for a
// parent that cannot go on.
func (i *Inside) Kill() {
	signal.Stop(i.signals)
	i.cmd.Process.Kill()
	i.cmd.Wait()
	i.control.Close()
}

// groupSignals are those that a terminal or a job control program sends to a
// process group, and that end a program that does not expect them.
func groupSignals() []os.Signal {
	return []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	}
}

// notify has the group signals sent to c, but for those that are ignored: they
// stay ignored, here and in the command.
func notify(c chan<- os.Signal) {
	for _, sig := range groupSignals() {
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
}

// Exit ends this process as the command ended. If a signal has ended the command
// it is the same signal, so that a shell sees what it would have seen without
// us: after ^C it ends its own loop only if the program was ended by SIGINT. A
// signal that is rare, or would leave a core file, which would be ours, becomes
// the exit status 128 plus its number, as a shell has it.
func (s Status) Exit() {
	switch s.Signal {
	// Of the signals without a core, those that end a Go program.
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM:
		if signal.Ignored(s.Signal) {
			break
		}
		signal.Reset(s.Signal)
		if syscall.Kill(os.Getpid(), s.Signal) == nil {
			time.Sleep(time.Second) // it may be delivered to another thread
		}
	}
	os.Exit(s.Code)
}
