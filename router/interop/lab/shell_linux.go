package lab

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Shell is a shell, on a node or wherever its command leads, to which a test
// speaks.
type Shell struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *os.File
	buf *bufio.Reader

	mu     sync.Mutex // guards log
	log    strings.Builder
	logged sync.Cond // on mu
}

// NewShell starts a command that ends in running sh, for example
//
//	NewShell(t, lab.Host.Command("setpriv", "--reuid=65534", "sh"))
//
// and is killed when the test ends.
func NewShell(t testing.TB, cmd *exec.Cmd) *Shell {
	t.Helper()
	s := &Shell{cmd: cmd}
	s.logged.L = &s.mu
	// Not StdoutPipe, which Wait closes: others may hold the end.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s.out, s.buf = r, bufio.NewReader(r)
	cmd.Stdout, cmd.Stderr = w, (*shellLog)(s)
	cmd.WaitDelay = 10 * time.Second
	if s.in, err = cmd.StdinPipe(); err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	t.Cleanup(func() {
		s.in.Close()
		cmd.Process.Kill() // not by its number, which may be another's if Wait has returned
		cmd.Wait()
		r.Close()
		if t.Failed() {
			t.Logf("%s: standard error:\n%s", strings.Join(cmd.Args, " "), s.Log())
		}
	})
	return s
}

// shellLog takes the standard error of a Shell.
type shellLog Shell

func (l *shellLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.Write(b)
	l.logged.Broadcast()
	return len(b), nil
}

// Log returns what the shell's command has written on standard error until now;
// what it was told to run, [Shell.Run] returns.
func (s *Shell) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// AwaitLog waits until a line with a text in it stands on standard error behind
// the first skip bytes, and returns the line.
func (s *Shell) AwaitLog(t testing.TB, skip int, text string) string {
	t.Helper()
	late := time.AfterFunc(deadline, s.logged.Broadcast)
	defer late.Stop()
	end := time.Now().Add(deadline)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for line := range strings.Lines(s.log.String()[skip:]) {
			if strings.HasSuffix(line, "\n") && strings.Contains(line, text) {
				return line
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not logged:\n%s", text, s.log.String())
		}
		s.logged.Wait()
	}
}

// mark is what separates the output of a command from its exit status.
const mark = "\x01status"

// Run runs a line in the shell and returns what it prints, on standard output
// and standard error, and its exit status. Its standard input is empty.
func (s *Shell) Run(t testing.TB, format string, args ...any) (out string, status int) {
	t.Helper()
	s.Send(t, format, args...)
	return s.Receive(t)
}

// Send is the first half of [Shell.Run].
func (s *Shell) Send(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintf(s.in, "{ %s\n} </dev/null 2>&1; printf '%s %%d\\n' $?\n", line, mark); err != nil {
		t.Fatalf("run %s: %v", line, err)
	}
}

// Receive is the second half of [Shell.Run].
func (s *Shell) Receive(t testing.TB) (out string, status int) {
	t.Helper()
	s.out.SetReadDeadline(time.Now().Add(deadline))
	var b strings.Builder
	for {
		line, err := s.buf.ReadString('\n')
		before, code, found := strings.Cut(line, mark+" ")
		b.WriteString(before)
		if found {
			status, err = strconv.Atoi(strings.TrimSpace(code))
		}
		if err != nil {
			t.Fatalf("the shell says %q: %v\n%s", b.String(), err, s.Log())
		}
		if found {
			return b.String(), status
		}
	}
}

// Must is [Shell.Run] of what has to succeed.
func (s *Shell) Must(t testing.TB, format string, args ...any) string {
	t.Helper()
	out, status := s.Run(t, format, args...)
	if status != 0 {
		t.Fatalf("%s: status %d, %s", fmt.Sprintf(format, args...), status, out)
	}
	return out
}

// Process is that of the shell's command.
func (s *Shell) Process() *os.Process { return s.cmd.Process }

// Close lets the shell end, and returns the exit status of its command.
func (s *Shell) Close(t testing.TB) int {
	t.Helper()
	s.in.Close()
	return s.Wait(t)
}

// Wait waits for the end of the shell's command and returns its exit status.
func (s *Shell) Wait(t testing.TB) int {
	t.Helper()
	timer := time.AfterFunc(deadline, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	s.cmd.Wait()
	return Status(s.cmd.ProcessState)
}
