package hosts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/tun/nstest"
)

// The test binary plays all the parts: the first argument says which.
//
//	test ── in namespaces of its own, which play the machine
//	└── parent NAME ── P
//	    └── world NAME ── D: worlds[NAME]
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "parent":
			w, err := Start([]string{"world", os.Args[2]})
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(w.Wait())
		case "world":
			err := Enter("somewhere", resolver)
			if err == nil {
				err = worlds[os.Args[2]]()
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	nstest.Enter()
	if err := nstest.OpenTUN(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var resolver = netip.MustParseAddr("192.0.2.53")

// worlds are what is done in D.
var worlds = map[string]func() error{
	"networks": networks,
	"manners":  manners,
	"stays":    stays,
}

// asEverybody runs a test as root and as an unprivileged user.
func asEverybody(t *testing.T, test func(t *testing.T, cred *syscall.Credential)) {
	nstest.NeedTUN(t)
	t.Run("root", func(t *testing.T) { test(t, nil) })
	t.Run("nobody", func(t *testing.T) {
		nstest.NeedRoot(t)
		test(t, &syscall.Credential{Uid: 65534, Gid: 65534})
	})
}

func command(cred *syscall.Credential, world string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "parent", world)
	cmd.Args[0] = "hosts"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGKILL}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = "/"
	return cmd
}

// world runs a world, which has to end well.
func world(t *testing.T, cred *syscall.Credential, name string) string {
	t.Helper()
	cmd := command(cred, name)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", name, err, out, &errs)
	}
	return string(out)
}

// Hosts of one network reach each other, and no others; a host of two networks is seen
// by its address there; the kernel counts what is accepted.
func TestNetworks(t *testing.T) {
	asEverybody(t, func(t *testing.T, cred *syscall.Credential) {
		want := `a to b: hello 10.1.0.1
b to c: hello 10.2.0.2
a to c: network is unreachable
a to nobody: no route to host
a program on a: hello 10.1.0.1
accepted at b 2, at c 1, at a 0
`
		if got := world(t, cred, "networks"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func networks() error {
	sw, err := NewSwitch("one", "two")
	if err != nil {
		return err
	}
	all := make(map[string]*Host)
	for name, interfaces := range map[string]map[string]string{
		"a": {"one": "10.1.0.1/24"},
		"b": {"one": "10.1.0.2/24", "two": "10.2.0.2/24"},
		"c": {"two": "10.2.0.3/24"},
	} {
		h, err := New(name)
		if err != nil {
			return err
		}
		all[name] = h
		for network, addr := range interfaces {
			if err := sw.Attach(h, network, netip.MustParsePrefix(addr)); err != nil {
				return err
			}
		}
	}
	a, b, c := all["a"], all["b"], all["c"]
	// Nobody knows the switch any more, and it has to be there.
	sw = nil
	runtime.GC()
	runtime.GC()
	nobody := netip.MustParseAddr("10.1.0.9")
	if err := a.Unreachable(nobody); err != nil {
		return err
	}
	// Each says who has come.
	for _, l := range []struct {
		h  *Host
		at string
	}{{b, "10.1.0.2:80"}, {c, "10.2.0.3:80"}} {
		l, err := l.h.Listen(netip.MustParseAddrPort(l.at))
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "hello %v", conn.RemoteAddr().(*net.TCPAddr).IP)
				conn.Close()
			}
		}()
	}
	for _, way := range []struct {
		what string
		from *Host
		to   string
	}{
		{"a to b", a, "10.1.0.2:80"},
		{"b to c", b, "10.2.0.3:80"},
		{"a to c", a, "10.2.0.3:80"},
		{"a to nobody", a, "10.1.0.9:80"},
	} {
		said := ""
		err := way.from.Do(func() error {
			conn, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(way.to)))
			if err != nil {
				return err
			}
			defer conn.Close()
			b, err := io.ReadAll(conn)
			said = string(b)
			return err
		})
		var errno syscall.Errno
		if errors.As(err, &errno) {
			said = errno.Error()
		} else if err != nil {
			return err
		}
		fmt.Printf("%s: %s\n", way.what, said)
	}
	program := exec.Command("bash", "-c", "cat </dev/tcp/10.1.0.2/80")
	var out bytes.Buffer
	program.Stdout, program.Stderr = &out, &out
	if err := a.Start(program); err != nil {
		return err
	}
	program.Wait()
	fmt.Printf("a program on a: %s\n", out.String())
	var n [3]int
	for i, h := range []*Host{b, c, a} {
		if n[i], err = h.Accepted(); err != nil {
			return err
		}
	}
	fmt.Printf("accepted at b %d, at c %d, at a %d\n", n[0], n[1], n[2])
	return nil
}

// Names are asked at the given server only, the user stays who it is, and what is
// mounted is seen nowhere else.
func TestManners(t *testing.T) {
	asEverybody(t, func(t *testing.T, cred *syscall.Credential) {
		got := world(t, cred, "manners")
		dir, rest, _ := strings.Cut(got, "\n")
		uid := os.Getuid()
		if cred != nil {
			uid = int(cred.Uid)
		}
		if want := fmt.Sprintf("nameserver %v\nuser %d on somewhere, process 1\n", resolver, uid); rest != want {
			t.Errorf("got %q, want %q", rest, want)
		}
		if _, err := os.Stat(filepath.Join(dir, "secret")); !errors.Is(err, os.ErrNotExist) || dir == "" {
			t.Errorf("what was written in %q is seen here: %v", dir, err)
		}
		if b, _ := os.ReadFile("/etc/resolv.conf"); strings.Contains(string(b), resolver.String()) {
			t.Error("/etc/resolv.conf is covered here")
		}
	})
}

func manners() error {
	dir, err := Scratch()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600)
	}
	var conf []byte
	if err == nil {
		conf, err = os.ReadFile("/etc/resolv.conf")
	}
	if err != nil {
		return err
	}
	_, server, _ := strings.Cut(string(conf), "\n")
	name, err := os.Hostname()
	fmt.Printf("%s\n%suser %d on %s, process %d\n", dir, server, os.Getuid(), name, os.Getpid())
	return err
}

// When P or D is killed, everything in the world is: also what a program on a host has
// left in a session of its own.
func TestNothingIsLeft(t *testing.T) {
	asEverybody(t, func(t *testing.T, cred *syscall.Credential) {
		cmd := command(cred, "stays")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd.Stdout, cmd.Stderr = w, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		r.SetReadDeadline(time.Now().Add(time.Minute))
		out := bufio.NewReader(r)
		if line, err := out.ReadString('\n'); line != "stays\n" {
			t.Errorf("got %q, %v", line, err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		// The end of the pipe is that of all who have it.
		if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
			t.Errorf("after SIGKILL of the parent: %q, %v", rest, err)
		}
	})
}

// stays starts a program on a host that has our standard output and does not end.
func stays() error {
	h, err := New("host")
	if err != nil {
		return err
	}
	cmd := exec.Command("setsid", "sh", "-c", "trap '' TERM HUP; echo stays; sleep 3600")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := h.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

func TestPassiveOpens(t *testing.T) {
	const snmp = "Ip: Forwarding DefaultTTL\nIp: 2 64\nTcp: RtoAlgorithm ActiveOpens PassiveOpens\nTcp: 1 25 7\nUdp: InDatagrams\nUdp: 3\n"
	if n, err := passiveOpens(snmp); n != 7 || err != nil {
		t.Errorf("got %d, %v, want 7", n, err)
	}
	for _, s := range []string{"", "Tcp: PassiveOpens\n", "Tcp: ActiveOpens\nTcp: 3\n", "Tcp: PassiveOpens\nTcp:\n"} {
		if n, err := passiveOpens(s); err == nil {
			t.Errorf("%q: got %d, want an error", s, n)
		}
	}
}

// What was started by hand says so.
func TestEnterWantsStart(t *testing.T) {
	if err := Enter("x"); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("got %v", err)
	}
}
