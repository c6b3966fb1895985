//go:build unix

package group_test

import (
	"io"
	"net"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/interop/servers"
	"tunroute/router/outbound"
	"tunroute/router/outbound/group"
	"tunroute/router/outbound/outboundtest"
)

// process is a microsocks that can be stopped and started again at its port.
type process struct {
	t    testing.TB
	port string
	args []string
	cmd  *exec.Cmd
}

// start returns when the server listens.
func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command("microsocks", append([]string{"-i", "127.0.0.1", "-p", p.port}, p.args...)...)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		conn, err := net.Dial("tcp", "127.0.0.1:"+p.port)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			p.kill()
			p.t.Fatal(err)
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Error(err)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// Flows under load while one of two real servers is stopped (it takes connections and
// says nothing), killed, and started again with another password: none sees it, and it
// is used again each time.
func TestFailoverOfMicrosocks(t *testing.T) {
	servers.Need(t, servers.Microsocks)
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, func(conn *net.TCPConn) { io.Copy(conn, conn) }))
	user := []string{"-u", "ann", "-P", "nna"} // as server has it
	var all []*process
	o := group.Options{Name: "g", Policy: group.RoundRobin, BadExpire: 100 * time.Millisecond, Try: 200 * time.Millisecond}
	for _, name := range []string{"int1", "int2"} {
		at := outboundtest.ClosedPort(t, loopback)
		p := &process{t: t, port: strconv.Itoa(int(at.Port())), args: user}
		p.start()
		t.Cleanup(func() { p.kill() })
		all = append(all, p)
		o.Members = append(o.Members, group.Member{Name: name, Dialer: server(t, name, flow.AddrTarget(at), direct(t, nil))})
	}
	g := newGroup(t, o)
	run(t, g)
	through := func(what string) string {
		f := &outbound.Flow{Flow: flow.Flow{Target: target}}
		conn, err := g.DialTCP(outbound.WithFlow(t.Context(), f), target)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return ""
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		conn.Write([]byte("hello"))
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return f.Way([]string{"g"})[0]
	}
	until := func(what string) { // int2 is used
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); through(what) != "g/int2"; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: int2 works, and is not used: %+v", what, g.Status())
			}
		}
	}
	int2 := all[1]
	for _, c := range []struct {
		what        string
		spoil, mend func()
	}{
		{"stopped", func() { int2.signal(syscall.SIGSTOP) }, func() { int2.signal(syscall.SIGCONT) }},
		{"killed", int2.kill, int2.start},
		{"wrong password", func() {
			int2.kill()
			int2.args = []string{"-u", "ann", "-P", "changed"}
			int2.start()
		}, func() {
			int2.kill()
			int2.args = user
			int2.start()
		}},
	} {
		until(c.what + ", before")
		c.spoil()
		var flows sync.WaitGroup
		for range 4 {
			flows.Go(func() {
				for range 10 {
					if way := through(c.what); way != "g/int1" {
						t.Errorf("%s: a flow went %q", c.what, way)
					}
				}
			})
		}
		flows.Wait()
		c.mend()
		until(c.what + ", and back")
	}
}
