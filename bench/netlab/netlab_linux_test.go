package netlab

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/tun/nstest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == GuardArg {
		os.Exit(Guard(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

// newHost makes a host that lives until the test ends.
func newHost(t *testing.T, name string) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		nstest.Missing(t, "needs to run as root")
	}
	h, err := NewHost(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestAWire(t *testing.T) {
	a, b := newHost(t, "a"), newHost(t, "b")
	if err := Wire(
		End{a, "wire0", []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30"), netip.MustParsePrefix("2001:db8::1/64")}},
		End{b, "wire1", []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30"), netip.MustParsePrefix("2001:db8::2/64")}},
	); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"192.0.2.2", "2001:db8::2"} {
		out, err := a.Run(t.Context(), "ip", "route", "get", to)
		if err != nil || !strings.Contains(out, "dev wire0") {
			t.Errorf("the way to %s: %q, %v", to, out, err)
		}
	}
	if out, err := b.Run(t.Context(), "sh", "-c", "cat /proc/sys/net/ipv4/tcp_tw_reuse /proc/sys/net/ipv4/ip_local_port_range"); err != nil || strings.Join(strings.Fields(out), " ") != "1 1024 65535" {
		t.Errorf("settings: %q, %v", out, err)
	}
	if err := a.IP("link show dev wire1"); err == nil || !strings.Contains(err.Error(), "wire1") {
		t.Errorf("an interface of the other host: %v", err)
	}
}

// TestWhatAProgramHasStartedEndsWithIt: also what has left its process group,
// and ignores signals.
func TestWhatAProgramHasStartedEndsWithIt(t *testing.T) {
	h := newHost(t, "a")
	for _, how := range []string{"stopped", "ended"} {
		t.Run(how, func(t *testing.T) {
			in, inW := pipe(t)
			out, outW := pipe(t)
			p, err := h.Start(Program{
				Args:    []string{"sh", "-c", `setsid sh -c 'trap "" TERM HUP; echo; while :; do sleep 1000; done' & read line`},
				Guarded: true, Stdin: in, Stdout: outW,
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			if how == "ended" {
				inW.Close()
				select {
				case <-p.Ended():
				case <-time.After(10 * time.Second):
					t.Error("it does not end with its standard input")
				}
			}
			p.Stop()
			// Processes of the host are those in its network namespace.
			if left := processes(t, h); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// processes lists the processes on a host.
func processes(t *testing.T, h *Host) []string {
	t.Helper()
	want, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(h.net.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	var list []string
	for _, file := range all {
		if ns, err := os.Readlink(file); err == nil && ns == want {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(file)), "cmdline"))
			list = append(list, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return list
}

func TestHowAProgramEnds(t *testing.T) {
	h := newHost(t, "a")
	for script, want := range map[string]string{"exit 0": "", "exit 7": "exit status 7", "kill -9 $$": "exit status 1"} {
		p, err := h.Start(Program{Args: []string{"sh", "-c", script}, Guarded: true})
		if err != nil {
			t.Fatal(err)
		}
		<-p.Ended()
		if got := p.Err(); got == nil && want != "" || got != nil && got.Error() != want {
			t.Errorf("%s: %v, want %q", script, got, want)
		}
		p.Stop() // what has ended can be stopped
	}
}

func TestTheTailOfWhatAProgramPrints(t *testing.T) {
	var tail Tail
	for range 100 {
		tail.Write([]byte(strings.Repeat("x", 100) + "\n"))
	}
	tail.Write([]byte("the end\n"))
	if got := tail.String(); len(got) > tailSize || !strings.HasSuffix(got, "x\nthe end") {
		t.Errorf("%d bytes that end in %q", len(got), got[len(got)-20:])
	}
}
