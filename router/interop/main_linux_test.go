package interop

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tunroute/router/interop/binary"
	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role := roles[os.Args[1]]; role != nil {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	lab.Enter(binary.Build)
	goleak.VerifyTestMain(m)
}

// newLab is lab.New, and makes go test notice a binary that has changed.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if err := lookAtSources(); err != nil {
		t.Fatal(err)
	}
	return lab.New(t)
}

var lookAtSources = sync.OnceValue(func() error { return binary.Sources("../..") })

// heavy skips a test that is about amounts, where these would take too long.
func heavy(t *testing.T) {
	t.Helper()
	if light() {
		t.Skip("takes too long for -short and for the race detector")
	}
}

func light() bool { return testing.Short() || binary.Race }

// user is who runs tunroute.
type user struct {
	name   string
	become []string // stands before the command
}

var (
	rootUser = user{name: "root"}
	nobody   = user{name: "nobody", become: []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"}}
)

// asEverybody runs a test as root and as an unprivileged user.
func asEverybody(t *testing.T, test func(t *testing.T, u user)) {
	for _, u := range []user{rootUser, nobody} {
		t.Run(u.name, func(t *testing.T) {
			u.need(t)
			test(t, u)
		})
	}
}

// need skips or fails the test if there is no such user.
func (u user) need(t *testing.T) {
	t.Helper()
	if u.become != nil {
		lab.NeedRoot(t)
		lab.Need(t, "setpriv", "util-linux")
	}
}

// tunroute returns the command line of tunroute as a user.
func (u user) tunroute(args ...string) []string {
	return append(append(u.become[:len(u.become):len(u.become)], lab.Bin+"/tunroute"), args...)
}

// exec returns the command line of tunroute exec through a chain of servers.
func (u user) exec(proxies []string, command ...string) []string {
	args := []string{"exec"}
	for _, p := range proxies {
		args = append(args, "--proxy", p)
	}
	return u.tunroute(append(append(args, "--"), command...)...)
}

// run runs a command on a node and looks at what the race detector says.
func run(t *testing.T, n *lab.Node, args ...string) lab.Result {
	t.Helper()
	r := n.Run(t, args...)
	checkRaces(t, r.Stderr)
	return r
}

// must is run of what has to succeed; it returns the standard output.
func must(t *testing.T, n *lab.Node, args ...string) string {
	t.Helper()
	r := run(t, n, args...)
	if r.Status != 0 {
		t.Fatalf("%s: status %d\n%s%s", strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

func checkRaces(t *testing.T, log string) {
	t.Helper()
	if strings.Contains(log, "DATA RACE") {
		t.Errorf("in tunroute:\n%s", log)
	}
}

// startShell starts a shell on a node; args end in running sh.
func startShell(t *testing.T, n *lab.Node, args ...string) *lab.Shell {
	t.Helper()
	s := lab.NewShell(t, n.Command(args...))
	t.Cleanup(func() { checkRaces(t, s.Log()) })
	return s
}

// startServer starts a SOCKS server on srv, at lab.Proxy4 if the options say
// nothing else, and returns HOST:PORT.
func startServer(t *testing.T, l *lab.Lab, kind servers.Kind, o servers.Options) string {
	t.Helper()
	if kind == servers.OpenSSH {
		lab.NeedRoot(t) // sshd changes to other users
	}
	o.Within = l.Srv.Within()
	if !o.Listen.IsValid() {
		o.Listen = lab.Proxy4
	}
	return servers.Start(t, kind, o).String()
}

// dante is a danted whose own connections come from lab.Proxy4 and lab.Proxy6,
// and whose UDP relay hears everybody.
var dante = servers.Options{External: []netip.Addr{lab.Proxy4, lab.Proxy6}, Config: "udp.connectdst: no"}
