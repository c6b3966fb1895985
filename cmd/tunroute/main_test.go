package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// The test binary is tunroute as well, under that name, and the programs that
// the tests have it run.
func TestMain(m *testing.M) {
	enterLab()
	testscript.Main(leakChecked{m}, map[string]func(){
		"tunroute": main,
		"dial":     dial,
	})
}

// leakChecked fails the tests if they leave goroutines.
type leakChecked struct{ m *testing.M }

func (c leakChecked) Run() int {
	code := c.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// missing skips the test for a reason that lies in the machine; where CI=true it
// fails.
func missing(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// whyNoExec returns why exec does not work on this machine; "" if it does.
var whyNoExec = sync.OnceValue(func() string {
	cmd := exec.Command("/proc/self/exe", "exec", "--", "true")
	cmd.Args[0] = "tunroute" // by which TestMain knows what to be
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Sprintf("exec does not work here: %v\n%s", err, out)
	}
	return ""
})

// TestScripts runs the transcripts in testdata/script.
func TestScripts(t *testing.T) {
	if why := whyNoExec(); why != "" {
		if os.Getenv("CI") == "true" {
			t.Error(why)
		}
		t.Logf("without the scripts that need it: %s", why)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"status": status},
		// With the race detector each process would wait for a second at
		// its end.
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", "atexit_sleep_ms=10")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "works:exec":
				return whyNoExec() == "", nil
			case "root":
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// status runs a command and checks its exit status, as a shell has it:
//
//	status 127 tunroute exec -- nope
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			got = 128 + int(ws.Signal())
		}
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// dial is a program that connects to each of its arguments, NETWORK HOST:PORT, all
// at once, and prints how connect(2) ends: "connected" or the name of an errno. Of
// a UDP socket it is how an exchange ends, and of a network with "+read" at its end
// how what comes over the connection does: "EOF" or an errno.
func dial() {
	args := os.Args[1:]
	said := make([]string, len(args)/2)
	var dials sync.WaitGroup
	for i := range said {
		dials.Go(func() { said[i] = connect(args[2*i], args[2*i+1]) })
	}
	dials.Wait()
	for i, s := range said {
		fmt.Println(args[2*i], args[2*i+1], s)
	}
}

func connect(network, address string) string {
	network, read := strings.CutSuffix(network, "+read")
	c, err := net.Dial(network, address)
	said := "connected"
	if err == nil {
		defer c.Close()
		if _, udp := c.(*net.UDPConn); udp {
			if _, err = c.Write([]byte("hello")); err == nil {
				_, err = c.Read(make([]byte, 100))
			}
		} else if read {
			_, err = io.Copy(io.Discard, c)
			said = "EOF"
		}
	}
	var errno syscall.Errno
	switch {
	case err == nil:
		return said
	case errors.As(err, &errno):
		for name, e := range map[string]syscall.Errno{
			"ECONNREFUSED": syscall.ECONNREFUSED, "ECONNRESET": syscall.ECONNRESET, "EHOSTUNREACH": syscall.EHOSTUNREACH,
			"ENETUNREACH": syscall.ENETUNREACH, "EACCES": syscall.EACCES, "ETIMEDOUT": syscall.ETIMEDOUT,
		} {
			if e == errno {
				return name
			}
		}
	}
	return err.Error()
}
