package inbound_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router"
	"tunroute/router/flow"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/rule"
	"tunroute/router/socks"
)

// noUDP is a router's way back to a TUN that there is not.
type noUDP struct{}

func (noUDP) WriteUDP([]byte, netip.AddrPort, netip.AddrPort) error        { return nil }
func (noUDP) RefuseUDP(netip.AddrPort, netip.AddrPort, int, syscall.Errno) {}

// hopTo is a server of ours and how its client speaks to it.
type hopTo struct {
	scheme string // socks4, socks4a, socks5h or http; with +unix or +tls behind it
	user   bool
}

// serveRouter runs a router that sends all by d, with a server in front of it, until the
// test ends.
func serveRouter(t testing.TB, d outbound.Dialer, l inbound.Listener) {
	t.Helper()
	table, err := rule.Compile([]rule.Rule{{Via: "out"}})
	if err != nil {
		t.Fatal(err)
	}
	out := &router.Outbound{Name: "out", Dialer: d}
	if c, ok := d.(outbound.Chain); ok {
		out.Hops = c.Hops()
	}
	snapshot, err := router.NewSnapshot(table, []*router.Outbound{out})
	if err != nil {
		t.Fatal(err)
	}
	r, err := router.New(router.Options{Snapshot: snapshot, Names: router.NoNames{}, UDP: noUDP{}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := inbound.New(inbound.Options{
		Serve:     func(ctx context.Context, f flow.Flow, c inbound.Call) { r.ServeCall(ctx, f, c) },
		Associate: func(f flow.Flow, c inbound.PacketClient) (inbound.Association, error) { return r.Associate(f, c) },
		Admits:    r.Admits,
	})
	if err != nil {
		t.Fatal(err)
	}
	// The server ends first, and its flows with it.
	behind, stopBehind := context.WithCancel(context.Background())
	front, stopFront := context.WithCancel(context.Background())
	var runs, fronts sync.WaitGroup
	runs.Go(func() { r.Run(behind) })
	fronts.Go(func() {
		if err := s.Run(front, []inbound.Listener{l}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stopFront()
		fronts.Wait()
		stopBehind()
		runs.Wait()
	})
}

// ourChain starts a server of ours for each hop, each sending all directly, and returns
// the outbound through all of them.
func ourChain(t testing.TB, env outboundtest.Env, hops []hopTo) outbound.Dialer {
	t.Helper()
	direct, err := outbound.NewDirect(outbound.DirectOptions{Resolver: env.Resolver})
	if err != nil {
		t.Fatal(err)
	}
	var way outbound.Dialer = direct
	for i, h := range hops {
		scheme, over, _ := strings.Cut(h.scheme, "+")
		l := inbound.Listener{Name: "lan", Methods: []inbound.Method{inbound.None{}}}
		user, password := "", ""
		if h.user {
			l.Methods, user, password = []inbound.Method{inbound.Password{Checker: users{}}}, "alice", "secret"
		}
		o := outbound.SocksOptions{Name: string(rune('a' + i)), Version: socks.Version5, RemoteNames: scheme != "socks4", Via: way, User: user, Password: password, Resolver: env.Resolver}
		if strings.HasPrefix(scheme, "socks4") {
			o.Version = socks.Version4
		}
		if over == "unix" {
			path := filepath.Join(t.TempDir(), "socks")
			if l.Listener, err = net.Listen("unix", path); err != nil {
				t.Fatal(err)
			}
			if o.Via, err = outbound.NewUnix(path, 0); err != nil {
				t.Fatal(err)
			}
		} else {
			if l.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
			o.Server = flow.AddrTarget(l.Addr().(*net.TCPAddr).AddrPort())
		}
		if over == "tls" {
			cert, trust, _ := outboundtest.Certificate(t, "localhost")
			l.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			o.TLS = &tls.Config{RootCAs: trust, ServerName: "localhost"}
		}
		serveRouter(t, direct, l)
		if scheme == "http" {
			way, err = outbound.NewHTTP(outbound.HTTPOptions{Name: o.Name, Server: o.Server, Via: o.Via, TLS: o.TLS, User: user, Password: password})
		} else {
			way, err = outbound.NewSocks(o)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return way
}

// TestBrokenFlow: a target that breaks is not taken for one that has ended, whatever the
// client's connection is made of. (A unix socket has no RST.)
func TestBrokenFlow(t *testing.T) {
	for _, hop := range []hopTo{{"socks4a", false}, {"socks5h", true}, {"http", true}, {"socks5h+tls", false}, {"http+tls", true}} {
		t.Run(hop.scheme, func(t *testing.T) {
			way := ourChain(t, outboundtest.Env{}, []hopTo{hop})
			target := outboundtest.Serve(t, netip.MustParseAddr("127.0.0.1"), func(c *net.TCPConn) {
				io.Copy(c, io.LimitReader(c, 1))
				c.SetLinger(0)
				c.Close()
			})
			c, err := way.DialTCP(t.Context(), flow.AddrTarget(target))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Write([]byte("x"))
			if b, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q and %v, want ECONNRESET", b, err)
			}
		})
	}
}

// TestConformance: what our own outbounds expect of a server they find in ours, alone
// and behind one another.
func TestConformance(t *testing.T) {
	const header = 10 // of a SOCKS UDP header with an IPv4 address
	socks4 := outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoIPv6: true, NoUDP: true}
	noUDP := outboundtest.Options{NoUDP: true}
	http := outboundtest.Options{NoUDP: true, NoBind: true}
	for _, tt := range []struct {
		name    string
		hops    []hopTo
		options outboundtest.Options
	}{
		{"socks4", []hopTo{{"socks4", false}}, socks4},
		{"socks4a", []hopTo{{"socks4a", false}}, socks4},
		{"socks5h", []hopTo{{"socks5h", false}}, outboundtest.Options{MaxUDP: 65507 - header}},
		{"socks5h user", []hopTo{{"socks5h", true}}, outboundtest.Options{MaxUDP: 65507 - header}},
		{"http user", []hopTo{{"http", true}}, http},
		{"unix", []hopTo{{"socks5h+unix", false}}, noUDP},
		{"tls", []hopTo{{"socks5h+tls", true}}, noUDP},
		{"chain of 3", []hopTo{{"socks5h", false}, {"socks5h", true}, {"socks5h", false}}, outboundtest.Options{MaxUDP: 65507 - 3*header}},
		{"chain of 3 kinds", []hopTo{{"http+tls", true}, {"socks5h", false}, {"socks5h+tls", false}}, noUDP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outboundtest.Run(t, tt.options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				return ourChain(t, env, tt.hops)
			})
		})
	}
}
