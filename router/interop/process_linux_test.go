package interop

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// The host is as it was while exec runs and after it, and inside there is no way
// out but the TUN.
func TestExecLeavesNothing(t *testing.T) {
	l := newLab(t)
	mounts := func() string { return must(t, l.Host, "cat", "/proc/self/mountinfo") }
	asEverybody(t, func(t *testing.T, u user) {
		before, mounted := l.Host.State(t), mounts()
		sh := startShell(t, l.Host, u.exec(nil, "sh")...)
		var links []struct{ Ifname string }
		if err := json.Unmarshal([]byte(sh.Must(t, "ip -j link")), &links); err != nil {
			t.Fatal(err)
		}
		if len(links) != 2 || links[0].Ifname != "lo" || links[1].Ifname != "tunroute0" {
			t.Errorf("inside are the interfaces %v, want lo and tunroute0", links)
		}
		if out := sh.Must(t, "bash -c 'exec 3<>/dev/tcp/%s/%d; head -c 1 <&3'", lab.Target4(1), lab.ShortPort); out != "x" {
			t.Errorf("the server sent %q, want x", out)
		}
		if during := l.Host.State(t); during != before {
			t.Errorf("while exec runs:\n%s\nbefore:\n%s", during, before)
		}
		router := lab.Child(t, sh.Process(), "exec-router")
		if status := sh.Close(t); status != 0 {
			t.Errorf("status %d, want 0", status)
		}
		router.Wait(t)
		if after := l.Host.State(t); after != before {
			t.Errorf("after exec:\n%s\nbefore:\n%s", after, before)
		}
		if now := mounts(); now != mounted {
			t.Errorf("after exec:\n%s\nbefore:\n%s", now, mounted)
		}
	})
}

// Whoever survives tunroute is cut off: nothing of it arrives anywhere.
func TestNoWayOutWhenTunrouteIsKilled(t *testing.T) {
	lab.Need(t, "bash", "bash")
	lab.Need(t, "ping", "iputils-ping")
	lab.Need(t, "dig", "bind9-dnsutils")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	asEverybody(t, func(t *testing.T, u user) {
		for _, victim := range []string{"parent", "router"} {
			t.Run(victim, func(t *testing.T) {
				w := l.Watch(t)
				sh := startShell(t, l.Host, u.exec([]string{"socks5h://" + danted}, "bash")...)
				sh.Must(t, "true") // it has started
				router := lab.Child(t, sh.Process(), "exec-router")
				sh.Must(t, "exec 3<>/dev/tcp/%s/%d", lab.Target4(1), lab.EchoPort)
				if out := sh.Must(t, "echo before >&3; read -t 10 said <&3; echo $said"); out != "before\n" {
					t.Fatalf("the echo says %q", out)
				}
				if victim == "parent" {
					sh.Process().Kill()
				} else {
					router.Signal(t, unix.SIGKILL)
				}
				router.Wait(t)

				w.Arrived(t, func(lab.Packet) bool { return false })
				if out, status := sh.Run(t, "echo after >&3 && read -t 1 said <&3 && echo $said"); status == 0 {
					t.Errorf("a connection from before still says %q", out)
				}
				for _, try := range []string{
					fmt.Sprintf("timeout 1 bash -c 'exec 4<>/dev/tcp/%s/%d'", lab.Target4(2), lab.WebPort),
					fmt.Sprintf("timeout 1 bash -c 'exec 4<>/dev/tcp/%s/%d'", lab.Target6(2), lab.WebPort),
					fmt.Sprintf("dig +tries=1 +time=1 %s", lab.PublicName),
					fmt.Sprintf("dig +tries=1 +time=1 @%s %s", lab.Target4(2), lab.PublicName),
					fmt.Sprintf("ping -c 1 -W 1 %s", lab.Target4(2)),
					fmt.Sprintf("ping -c 1 -W 1 %s", lab.Target6(2)),
				} {
					if out, status := sh.Run(t, "%s", try); status == 0 {
						t.Errorf("%s succeeds: %s", try, out)
					}
				}
				out := sh.Must(t, "ip -o link")
				if strings.Count(out, "\n") != 1 || !strings.Contains(out, ": lo: ") {
					t.Errorf("inside are interfaces, want only lo:\n%s", out)
				}
				for _, p := range w.Arrived(t, func(p lab.Packet) bool { return p.Proto == unix.IPPROTO_UDP || isTarget(p.Dst.Addr()) }) {
					t.Errorf("out came %v", p)
				}
			})
		}
	})
}

// isTarget says whether an address is a target's or near it.
func isTarget(a netip.Addr) bool {
	return netip.PrefixFrom(lab.Target4(1), 24).Masked().Contains(a) || netip.PrefixFrom(lab.Target6(1), 48).Masked().Contains(a)
}

// What a program leaves running is served until it ends, and nobody has to wait
// for it.
func TestExecReturnsAtOnceAndServesWhatIsLeft(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	asEverybody(t, func(t *testing.T, u user) {
		dir := lab.Dir(t)
		gate, result := fifo(t, dir, "gate"), fifo(t, dir, "result")
		// It waits at the gate until exec has returned.
		script := fmt.Sprintf("{ read go <%s; curl -s http://%s/ >%s; } </dev/null >/dev/null 2>&1 & echo left",
			gate.Name(), lab.SecretName, result.Name())
		r := run(t, l.Host, u.exec([]string{"socks5h://" + danted}, "sh", "-c", script)...)
		if r.Status != 0 || r.Stdout != "left\n" || r.Stderr != "" {
			t.Fatalf("exec: status %d, %q, %q", r.Status, r.Stdout, r.Stderr)
		}
		t.Logf("exec returned after %v", r.Took)
		if _, err := gate.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
		result.SetReadDeadline(time.Now().Add(30 * time.Second))
		page := make([]byte, 200)
		n, err := result.Read(page)
		if want := lab.Page(lab.SecretName, lab.Proxy4.String()); err != nil || string(page[:n]) != want && !strings.HasPrefix(string(page[:n]), "the page of "+lab.SecretName) {
			t.Errorf("what was left running got %q, %v, want %q", page[:n], err, want)
		}
	})
}

// fifo makes a named pipe that everybody can open; the file is both its ends.
func fifo(t *testing.T, dir, name string) *os.File {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestExitStatus(t *testing.T) {
	l := newLab(t)
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range []struct {
			name string
			args []string // of exec
			want int
		}{
			{"success", []string{"true"}, 0},
			{"the program's", []string{"sh", "-c", "exit 3"}, 3},
			{"the largest", []string{"--", "sh", "-c", "exit 255"}, 255},
			{"no program", nil, 125},
			{"wrong option", []string{"--proxy", "http://192.0.2.1", "true"}, 125},
			{"no config", []string{"-c", "/nowhere", "true"}, 125},
			{"not executable", []string{"/etc/passwd"}, 126},
			{"a directory", []string{"/etc"}, 126},
			{"not found", []string{"no-such-program"}, 127},
			{"not found by its path", []string{"/no/such/program"}, 127},
			{"killed", []string{"sh", "-c", "kill -KILL $$"}, 128 + 9},
			{"ended by a signal", []string{"sh", "-c", "kill -TERM $$"}, 128 + 15},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := run(t, l.Host, u.tunroute(append([]string{"exec"}, tt.args...)...)...)
				if r.Status != tt.want {
					t.Errorf("status %d, want %d; %q", r.Status, tt.want, r.Stderr)
				}
				// One line says what is wrong with what is ours, and
				// nothing is said of what is the program's.
				if lines := strings.Count(r.Stderr, "\n"); (tt.want >= 125 && tt.want <= 127) != (lines > 0) {
					t.Errorf("it says %q", r.Stderr)
				}
			})
		}
	})
}

// A signal to tunroute reaches the program, and one that it ignores is ignored.
func TestSignals(t *testing.T) {
	l := newLab(t)
	asEverybody(t, func(t *testing.T, u user) {
		t.Run("caught", func(t *testing.T) {
			sh := startShell(t, l.Host, u.exec(nil, "sh")...)
			sh.Must(t, "trap 'exit 7' TERM")
			sh.Send(t, "while :; do sleep 0.1; done") // dash looks for signals between commands
			if err := sh.Process().Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if status := sh.Wait(t); status != 7 {
				t.Errorf("status %d, want 7", status)
			}
		})
		t.Run("hangup", func(t *testing.T) {
			sh := startShell(t, l.Host, u.exec(nil, "sh")...)
			sh.Must(t, "true")
			if err := sh.Process().Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			if status := sh.Wait(t); status != 128+1 {
				t.Errorf("status %d, want 129", status)
			}
		})
		t.Run("nohup", func(t *testing.T) {
			sh := startShell(t, l.Host, append([]string{"nohup"}, u.exec(nil, "sh")...)...)
			sh.Must(t, "true")
			for range 3 {
				if err := sh.Process().Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
				if out := sh.Must(t, "echo still here"); out != "still here\n" {
					t.Errorf("it says %q", out)
				}
			}
			if status := sh.Close(t); status != 0 {
				t.Errorf("status %d, want 0", status)
			}
		})
		t.Run("background", func(t *testing.T) {
			args := strings.Join(u.exec(nil, "sh", "-c", "'exit 4'"), " ")
			if r := run(t, l.Host, "sh", "-c", args+" & wait $!; echo $?"); r.Stdout != "4\n" {
				t.Errorf("it printed %q, want 4", r.Stdout)
			}
		})
	})
}

// At a terminal a program is what it would be without us.
func TestTerminal(t *testing.T) {
	l := newLab(t)
	asEverybody(t, func(t *testing.T, u user) {
		exec := strings.Join(u.exec(nil), " ")
		// What is typed comes back from a program that runs and reads: from cat
		// and not from a shell that is about to start one, which would lose a
		// ^C between.
		reads := func(t *testing.T, term *lab.Terminal, line string) {
			t.Helper()
			term.Type(t, line+"\n")
			term.Expect(t, line)
		}
		t.Run("^C ends the program", func(t *testing.T) {
			term := lab.NewTerminal(t, l.Host.Command(u.exec(nil, "cat")...))
			reads(t, term, "one")
			term.Type(t, lab.CtrlC)
			if status := term.Wait(t); status != 128+2 {
				t.Errorf("status %d, want 130", status)
			}
		})
		t.Run("^C is the program's to catch", func(t *testing.T) {
			term := lab.NewTerminal(t, l.Host.Command(u.exec(nil, "sh", "-c", `trap 'echo "ca""ught"; exit 6' INT; echo started; while :; do sleep 0.1; done`)...))
			term.Expect(t, "started")
			term.Type(t, lab.CtrlC)
			term.Expect(t, "caught")
			if status := term.Wait(t); status != 6 {
				t.Errorf("status %d, want 6", status)
			}
		})
		t.Run("a shell outside stops and goes on", func(t *testing.T) {
			term := lab.NewTerminal(t, l.Host.Command("env", "PS1=> ", "sh", "-i"))
			jobControl(t, term, exec+" cat", reads)
		})
		t.Run("a shell inside has job control", func(t *testing.T) {
			term := lab.NewTerminal(t, l.Host.Command(u.exec(nil, "env", "PS1=> ", "sh", "-i")...))
			jobControl(t, term, "cat", reads)
		})
	})
}

// jobControl stops a cat in an interactive shell, lets it go on and ends it.
func jobControl(t *testing.T, term *lab.Terminal, cat string, reads func(*testing.T, *lab.Terminal, string)) {
	t.Helper()
	term.Expect(t, "> ")
	term.Type(t, cat+"\n")
	reads(t, term, "one")
	term.Type(t, lab.CtrlZ)
	term.Expect(t, "Stopped")
	term.Expect(t, "> ")
	term.Type(t, "fg\n")
	reads(t, term, "two")
	term.Type(t, lab.CtrlC)
	term.Expect(t, "> ")
	if status := term.WaitFor(t, "exit 5\n"); status != 5 {
		t.Errorf("status %d, want 5", status)
	}
}
