package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a command on a terminal of its own, at which a test types.
type Terminal struct {
	cmd    *exec.Cmd
	screen *os.File // the other end of the terminal
	seen   string   // and not expected yet
}

// NewTerminal starts a command as the leader of a session on a new terminal; it
// is killed when the test ends.
func NewTerminal(t testing.TB, cmd *exec.Cmd) *Terminal {
	t.Helper()
	screen, tty, err := openPTY()
	if err != nil {
		Missing(t, "no terminal: "+err.Error())
	}
	defer tty.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		screen.Close()
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		screen.Close() // hangs up on whoever is left
	})
	return &Terminal{cmd: cmd, screen: screen}
}

// openPTY is posix_openpt(3) and what comes after it (pty(7)).
func openPTY() (screen, tty *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	screen = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		// Whoever opens it keeps it: no test runs as its owner alone.
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err == nil {
		err = quiet(int(tty.Fd()))
	}
	if err != nil {
		screen.Close()
		return nil, nil, err
	}
	return screen, tty, nil
}

// quiet lets a terminal show what programs write, and not what is typed.
func quiet(fd int) error {
	attr, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("TCGETS", err)
	}
	attr.Lflag &^= unix.ECHO
	attr.Oflag &^= unix.ONLCR
	return os.NewSyscallError("TCSETS", unix.IoctlSetTermios(fd, unix.TCSETS, attr))
}

// Keys.
const (
	CtrlC = "\x03" // SIGINT for the group in the foreground
	CtrlZ = "\x1a" // SIGTSTP
	CtrlD = "\x04" // the end of the input
)

// Type types a text.
func (m *Terminal) Type(t testing.TB, text string) {
	t.Helper()
	if _, err := m.screen.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// Expect waits until a text is written, behind what has been expected before.
func (m *Terminal) Expect(t testing.TB, text string) {
	t.Helper()
	m.screen.SetReadDeadline(time.Now().Add(deadline))
	b := make([]byte, 4096)
	for {
		if _, rest, ok := strings.Cut(m.seen, text); ok {
			m.seen = rest
			return
		}
		n, err := m.screen.Read(b)
		m.seen += string(b[:n])
		if err != nil {
			t.Fatalf("the terminal shows %q, want %q: %v", m.seen, text, err)
		}
	}
}

// Wait waits for the end of the command and returns its exit status.
func (m *Terminal) Wait(t testing.TB) int { return m.WaitFor(t, "") }

// WaitFor is Wait of a command that ends when a line is typed. The line is typed
// again as long as the command does not end: a shell that has just got its
// terminal back may throw away what was typed before.
func (m *Terminal) WaitFor(t testing.TB, line string) int {
	t.Helper()
	m.screen.SetReadDeadline(time.Time{})
	var others sync.WaitGroup
	ended := make(chan struct{})
	// Whoever ends waits for its last words to be read.
	others.Go(func() { io.Copy(io.Discard, m.screen) })
	others.Go(func() {
		again := time.NewTicker(time.Second)
		defer again.Stop()
		late := time.After(deadline)
		for {
			if line != "" {
				m.screen.WriteString(line)
			}
			select {
			case <-again.C:
			case <-late:
				m.cmd.Process.Kill()
			case <-ended:
				return
			}
		}
	})
	m.cmd.Wait()
	close(ended)
	m.screen.SetReadDeadline(time.Now())
	others.Wait()
	return Status(m.cmd.ProcessState)
}
