package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of the lab that the test has not started itself.
type Process struct {
	PID int
	fd  int // pidfd_open(2): PID may become another's
}

// Child finds the child of a process that has a word among its arguments.
func Child(t testing.TB, parent *os.Process, word string) *Process {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		cmdline, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(cmdline), "\x00"+word+"\x00") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", parent.Pid)) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(os.NewSyscallError("pidfd_open", err))
		}
		t.Cleanup(func() { unix.Close(fd) })
		return &Process{pid, fd}
	}
	t.Fatalf("process %d has no child %s", parent.Pid, word)
	return nil
}

// Wait waits until the process has ended.
func (p *Process) Wait(t testing.TB) {
	t.Helper()
	polled := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	for end := time.Now().Add(deadline); ; {
		left := time.Until(end)
		n, err := unix.Poll(polled, int(max(left, 0)/time.Millisecond))
		switch {
		case n == 1:
			return
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(os.NewSyscallError("poll", err))
		default:
			t.Fatalf("process %d does not end", p.PID)
		}
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(t testing.TB, sig unix.Signal) {
	t.Helper()
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil {
		t.Fatal(os.NewSyscallError("pidfd_send_signal", err))
	}
}

// Files returns how many files the process has open.
func (p *Process) Files(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Memory returns how many bytes of memory the process has (VmRSS).
func (p *Process) Memory(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		t.Fatalf("VmRSS of process %d: %v", p.PID, err)
	}
	return kib << 10
}
