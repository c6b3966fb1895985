package group_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/group"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func direct(t testing.TB, r outbound.Resolver) *outbound.Direct {
	t.Helper()
	d, err := outbound.NewDirect(outbound.DirectOptions{Resolver: r})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// server returns the outbound through a SOCKS5 server.
func server(t testing.TB, name string, at flow.Target, via outbound.Dialer) *outbound.Socks {
	t.Helper()
	s, err := outbound.NewSocks(outbound.SocksOptions{
		Name: name, Version: socks.Version5, RemoteNames: true, Server: at, Via: via,
		User: "ann", Password: "nna",
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func started(t testing.TB, r outbound.Resolver) flow.Target {
	return outboundtest.StartServer(t, outboundtest.ServerOptions{User: "ann", Password: "nna", Resolver: r}).Target()
}

func newGroup(t testing.TB, o group.Options) *group.Group {
	t.Helper()
	g, err := group.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// run runs g until the end of the test.
func run(t testing.TB, g *group.Group) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// A group does all that its members do.
func TestConformance(t *testing.T) {
	const header = 10 // of a SOCKS UDP header with an IPv4 address
	members := func(t testing.TB, env outboundtest.Env) []group.Member {
		var list []group.Member
		for _, name := range []string{"a", "b"} {
			list = append(list, group.Member{Name: name, Dialer: server(t, name, started(t, env.Resolver), direct(t, nil))})
		}
		return list
	}
	for name, policy := range map[string]group.Policy{"round-robin": group.RoundRobin, "least-flows": group.LeastFlows} {
		t.Run(name, func(t *testing.T) {
			outboundtest.Run(t, outboundtest.Options{MaxUDP: 65507 - header}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				return newGroup(t, group.Options{Name: "g", Policy: policy, Members: members(t, env)})
			})
		})
		t.Run("chain through "+name, func(t *testing.T) {
			outboundtest.Run(t, outboundtest.Options{MaxUDP: 65507 - 2*header}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				g := newGroup(t, group.Options{Name: "g", Policy: policy, Members: members(t, env)})
				return server(t, "last", started(t, env.Resolver), g)
			})
		})
	}
	t.Run("direct member", func(t *testing.T) {
		outboundtest.Run(t, outboundtest.Options{}, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
			return newGroup(t, group.Options{Name: "g", Members: []group.Member{{Name: "direct", Dialer: direct(t, env.Resolver)}}})
		})
	})
}

// breakable is a way to a server in front of which something can go wrong, as it goes
// wrong with servers.
type breakable struct {
	at   flow.Target
	mode atomic.Value // string
}

// breaking starts a breakable for a server.
func breaking(t testing.TB, server flow.Target) *breakable {
	b := &breakable{}
	b.mode.Store("")
	b.at = flow.AddrTarget(outboundtest.Serve(t, loopback, func(conn *net.TCPConn) {
		answer := func(b ...byte) { // to each message, with all that is known at its place
			buf := make([]byte, 512)
			for i := 0; i < len(b); i += 2 {
				if n, _ := conn.Read(buf); n == 0 {
					return
				}
				conn.Write(b[i : i+2])
			}
			io.Copy(io.Discard, conn)
		}
		switch b.mode.Load() {
		case "reset":
			conn.SetLinger(0)
		case "EOF":
		case "silent":
			io.Copy(io.Discard, conn)
		case "password":
			answer(5, 2, 1, 1)
		case "general":
			answer(5, 2, 1, 0, 5, 1)
		case "unreachable":
			answer(5, 2, 1, 0, 5, 4)
		case "EOF for a reply":
			buf := make([]byte, 512)
			conn.Read(buf)
			conn.Write([]byte{5, 2})
			conn.Read(buf)
			conn.Write([]byte{1, 0})
			conn.Read(buf)
		case "refused":
			answer(5, 2, 1, 0, 5, 5)
		case "ruleset":
			answer(5, 2, 1, 0, 5, 2)
		default:
			up, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server.AddrPort()))
			if err != nil {
				return
			}
			defer up.Close()
			var back sync.WaitGroup
			back.Go(func() { io.Copy(conn, up); conn.CloseWrite() })
			io.Copy(up, conn)
			up.CloseWrite()
			back.Wait()
		}
	}))
	return b
}

// Flows at all times, while one of two servers fails in every way: no flow sees it,
// and the server is used again when it works, without a restart.
func TestNoFlowSeesAFailure(t *testing.T) {
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, func(conn *net.TCPConn) { io.Copy(conn, conn) }))
	b := breaking(t, started(t, nil))
	g := newGroup(t, group.Options{
		Name: "g", Policy: group.RoundRobin, BadExpire: 50 * time.Millisecond, Try: 100 * time.Millisecond,
		Members: []group.Member{
			{Name: "good", Dialer: server(t, "good", started(t, nil), direct(t, nil))},
			{Name: "failing", Dialer: server(t, "failing", b.at, direct(t, nil))},
		},
	})
	run(t, g)
	through := func() string { // which member a flow takes
		f := &outbound.Flow{Flow: flow.Flow{Target: target}}
		conn, err := g.DialTCP(outbound.WithFlow(t.Context(), f), target)
		if err != nil {
			t.Errorf("%s: %v", b.mode.Load(), err)
			return ""
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		conn.Write([]byte("hello"))
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Errorf("%s: %v", b.mode.Load(), err)
		}
		return f.Way([]string{"g"})[0]
	}
	for _, mode := range []string{"reset", "EOF", "silent", "password", "general", "unreachable", "EOF for a reply"} {
		b.mode.Store(mode)
		var flows sync.WaitGroup
		for range 4 {
			flows.Go(func() {
				for range 10 {
					if way := through(); way != "g/good" {
						t.Errorf("%s: a flow went %q", mode, way)
					}
				}
			})
		}
		flows.Wait()
		b.mode.Store("")
		deadline := time.Now().Add(30 * time.Second)
		for through() != "g/failing" {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the server works again, and is not used: %+v", mode, g.Status())
			}
		}
	}
}

// What a server refuses for the target or by its rules is not asked of another.
func TestRefusalsAreFinal(t *testing.T) {
	for mode, want := range map[string]syscall.Errno{"refused": syscall.ECONNREFUSED, "ruleset": syscall.EACCES} {
		b := breaking(t, flow.Target{})
		b.mode.Store(mode)
		var other atomic.Int64
		spy := flow.AddrTarget(outboundtest.Serve(t, loopback, func(*net.TCPConn) { other.Add(1) }))
		g := newGroup(t, group.Options{Name: "g", Members: []group.Member{
			{Name: "a", Dialer: server(t, "a", b.at, direct(t, nil))},
			{Name: "b", Dialer: server(t, "b", spy, direct(t, nil))},
		}})
		conn, err := g.DialTCP(t.Context(), flow.Target{Name: "example.org", Port: 80})
		if conn != nil || outbound.Errno(err) != want || other.Load() != 0 {
			t.Errorf("%s: %v, %v, and %d connections to another", mode, conn, err, other.Load())
		}
		for _, s := range g.Status() {
			if s.Bad {
				t.Errorf("%s: %s is bad: %v", mode, s.Member, s.Cause)
			}
		}
	}
}

// The error of a chain through a group is of a hop, and names the members.
func TestErrorOfAChainThroughAGroup(t *testing.T) {
	closed := flow.AddrTarget(outboundtest.ClosedPort(t, loopback))
	b := breaking(t, flow.Target{})
	b.mode.Store("refused")
	a, c := server(t, "a", closed, direct(t, nil)), server(t, "c", b.at, direct(t, nil))
	g := newGroup(t, group.Options{Name: "g", Members: []group.Member{{Name: "a", Dialer: a}, {Name: "c", Dialer: c}}})
	last := server(t, "last", flow.Target{Name: "last.example", Port: 1080}, g)
	_, err := last.DialTCP(t.Context(), flow.Target{Name: "example.org", Port: 80})
	var hop *outbound.HopError
	if !errors.As(err, &hop) || hop.Hop != 2 || hop.Hops != 2 || hop.Op != "connect" {
		t.Fatalf("%v: %+v", err, hop)
	}
	if got := outbound.Errno(err); got != syscall.EHOSTUNREACH { // the way is broken, not the target
		t.Errorf("Errno %v of %v", got, err)
	}

	// All of the group are down: that is of hop 1.
	down := newGroup(t, group.Options{Name: "g", Members: []group.Member{{Name: "a", Dialer: a}}})
	last = server(t, "last", flow.Target{Name: "last.example", Port: 1080}, down)
	_, err = last.DialTCP(t.Context(), flow.Target{Name: "example.org", Port: 80})
	if !errors.As(err, &hop) || hop.Hop != 1 || hop.Hops != 2 || hop.Upstream != "g" {
		t.Errorf("%v: %+v", err, hop)
	}
}

// A chain through a group has its association, the connection and the datagrams,
// through one member: the server behind may take datagrams from the address of the
// connection only.
func TestAssociationThroughOneMember(t *testing.T) {
	var members []*outboundtest.Server
	o := group.Options{Name: "g", Policy: group.RoundRobin}
	for _, name := range []string{"a", "b"} {
		m := outboundtest.StartServer(t, outboundtest.ServerOptions{User: "ann", Password: "nna"})
		members = append(members, m)
		o.Members = append(o.Members, group.Member{Name: name, Dialer: server(t, name, m.Target(), direct(t, nil))})
	}
	g := newGroup(t, o)
	far := started(t, nil)
	last := server(t, "last", far, g)
	// Now TCP and UDP do not have the same turn.
	conn, err := g.DialTCP(t.Context(), far)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	for range 4 {
		before := []int{len(members[0].Requests()), len(members[1].Requests())}
		f := &outbound.Flow{Flow: flow.Flow{Network: flow.UDP}}
		c, err := last.OpenUDP(outbound.WithFlow(t.Context(), f))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		for i, m := range members {
			if n := len(m.Requests()) - before[i]; n != 0 && n != 2 {
				t.Errorf("member %d had %d requests for an association, want none or both", i, n)
			}
		}
	}
}

// Probe speaks with the server and asks it for nothing.
func TestProbe(t *testing.T) {
	s := outboundtest.StartServer(t, outboundtest.ServerOptions{User: "ann", Password: "nna"})
	if err := server(t, "a", s.Target(), direct(t, nil)).Probe(t.Context(), true); err != nil {
		t.Error(err)
	}
	if n := len(s.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	b := breaking(t, flow.Target{})
	for _, mode := range []string{"EOF", "password"} {
		b.mode.Store(mode)
		err := server(t, "a", b.at, direct(t, nil)).Probe(t.Context(), true)
		var hop *outbound.HopError
		if !errors.As(err, &hop) || hop.Upstream != "a" {
			t.Errorf("%s: %v", mode, err)
		}
		if mode == "password" && !errors.Is(err, socks.ErrAuth) {
			t.Errorf("%s: %v", mode, err)
		}
		if err := server(t, "a", b.at, direct(t, nil)).Probe(t.Context(), false); err != nil {
			t.Errorf("%s, connect only: %v", mode, err)
		}
	}
	b.mode.Store("silent")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := server(t, "a", b.at, direct(t, nil)).Probe(ctx, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
}
