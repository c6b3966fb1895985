package outbound_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// Where a server can be connected to, from what it says and from where it is.
func TestBoundAddress(t *testing.T) {
	tests := []struct {
		name  string
		bound string // what the server says; its port is 700
		peer  string
		via   bool // a chain, in which the server is known by a name
		want  string
	}{
		{"its own", "203.0.113.9", "198.51.100.7", false, "203.0.113.9"},
		{"unspecified", "0.0.0.0", "198.51.100.7", false, "127.0.0.1"},
		{"unspecified, IPv6", "::", "198.51.100.7", false, "127.0.0.1"},
		{"a name", "here.example", "198.51.100.7", false, "127.0.0.1"},
		{"private, of a server that is as private", "10.0.0.9", "198.51.100.7", false, "10.0.0.9"},
		{"unspecified, where we cannot know", "0.0.0.0", "198.51.100.7", true, ""},
		{"its own, through a chain", "203.0.113.9", "198.51.100.7", true, "203.0.113.9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			names := outboundtest.Names{"last.example": {loopback}}
			last := outboundtest.StartServer(t, outboundtest.ServerOptions{Bound: func(netip.AddrPort) socks.Addr {
				a := socks.Addr{Port: 700}
				var err error
				if a.IP, err = netip.ParseAddr(tt.bound); err != nil {
					a.Name = tt.bound
				}
				return a
			}})
			o := link{scheme: "socks5"}.options("last", last.Target(), newDirect(t, nil), nil)
			if tt.via {
				first := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names})
				o.Via = newSocks(t, link{scheme: "socks5h"}.options("first", first.Target(), newDirect(t, nil), nil))
				o.Server = flow.Target{Name: "last.example", Port: last.Target().Port}
			}
			b, err := newSocks(t, o).Bind(t.Context(), flow.Target{Addr: netip.MustParseAddr(tt.peer), Port: 21})
			if tt.want == "" {
				checkHop(t, err, outbound.HopError{Hop: 2, Hops: 2, Upstream: "last", Op: "request", Err: socks.ErrProtocol})
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if want := netip.AddrPortFrom(netip.MustParseAddr(tt.want), 700); b.Addr() != want {
				t.Errorf("bound at %v, want %v", b.Addr(), want)
			}
		})
	}
}

// Who does not do BIND says so by reply 7, as microsocks, or hangs up, as ssh -D; what a
// server's rules forbid may be allowed the next time.
func TestNoBind(t *testing.T) {
	from := flow.Target{Addr: loopback, Port: 21}
	for _, tt := range []struct {
		name   string
		opts   outbound.SocksOptions
		script func(*net.TCPConn)
		noBind bool
		err    error
	}{
		{"command", v5, say(hangUp, one(takesNone), one("\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00")), true, socks.ReplyCommand},
		{"hangs up", v5, say(hangUp, one(takesNone), one("")), true, nil},
		{"ruleset", v5, say(hangUp, one(takesNone), one("\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00")), false, socks.ReplyRuleset},
		{"port 0", v5, say(wait, one(takesNone), one(granted)), false, socks.ErrProtocol},
		{"SOCKS4", v4, say(hangUp, one("\x00\x5b\x00\x00\x00\x00\x00\x00")), false, socks.Reply4Rejected},
	} {
		b, err := scripted(t, tt.opts, tt.script).Bind(t.Context(), from)
		if b != nil || err == nil || errors.Is(err, outbound.ErrNoBind) != tt.noBind || tt.err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, %v, want an ErrNoBind: %v, and %v", tt.name, b, err, tt.noBind, tt.err)
		}
	}
}

// What becomes of a BIND after the first reply.
func TestSecondReply(t *testing.T) {
	const first = "\x05\x00\x00\x01\xcb\x00\x71\x09\x02\xbc" // 203.0.113.9:700
	from := flow.Target{Addr: loopback, Port: 21}
	for _, tt := range []struct {
		name   string
		script func(*net.TCPConn)
		peer   string
		err    error
	}{
		{"with the first", say(wait, one(takesNone), one(first+"\x05\x00\x00\x01\xc6\x33\x64\x07\x00\x14")), "198.51.100.7:20", nil},
		{"byte by byte", say(wait, one(takesNone), bytewise(first+"\x05\x00\x00\x01\xc6\x33\x64\x07\x00\x14")), "198.51.100.7:20", nil},
		{"of a name", say(wait, one(takesNone), one(first+"\x05\x00\x00\x03\x01a\x00\x14")), "0.0.0.0:20", nil},
		{"refused", say(wait, one(takesNone), one(first+"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")), "", socks.ReplyRefused},
		{"hung up", say(hangUp, one(takesNone), one(first)), "", nil},
	} {
		b, err := scripted(t, v5, tt.script).Bind(t.Context(), from)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		conn, peer, err := b.Accept(t.Context())
		if err == nil {
			conn.Close()
		}
		if (err == nil) != (tt.peer != "") || tt.err != nil && !errors.Is(err, tt.err) || err == nil && peer.String() != tt.peer {
			t.Errorf("%s: peer %v, %v, want %s, %v", tt.name, peer, err, tt.peer, tt.err)
		}
		b.Close()
	}
}

// A flow says which of its target's addresses was reached: that one is let in.
func TestReached(t *testing.T) {
	names := outboundtest.Names{"ftp.example": {loopback, netip.MustParseAddr("127.0.0.2")}}
	at := outboundtest.Serve(t, netip.MustParseAddr("127.0.0.2"), func(*net.TCPConn) {})
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	target := flow.Target{Name: "ftp.example", Port: at.Port()}
	for name, d := range map[string]outbound.Dialer{
		"direct": newDirect(t, names),
		"socks5": newSocks(t, link{scheme: "socks5"}.options("a", server.Target(), newDirect(t, nil), names)),
	} {
		f := &outbound.Flow{Flow: flow.Flow{Network: flow.TCP, Target: target}}
		if f.From() != target {
			t.Errorf("%s: from %v before it was reached", name, f.From())
		}
		conn, err := d.DialTCP(outbound.WithFlow(context.Background(), f), target)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		conn.Close()
		if want := (flow.Target{Name: target.Name, Addr: at.Addr(), Port: at.Port()}); f.From() != want {
			t.Errorf("%s: from %+v, want %+v", name, f.From(), want)
		}
	}
}

// Direct listens where its own connections come from, and at no other address.
func TestDirectBindsItsOwnAddress(t *testing.T) {
	source := netip.MustParseAddr("127.0.0.3")
	d, err := outbound.NewDirect(outbound.DirectOptions{Bind: source})
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Bind(t.Context(), flow.Target{Addr: loopback, Port: 21})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Addr().Addr() != source {
		t.Errorf("bound at %v, want %v", b.Addr(), source)
	}
	_, err = d.Bind(t.Context(), flow.Target{Addr: netip.IPv6Loopback(), Port: 21})
	if !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("Bind of IPv4 for an IPv6 peer: %v", err)
	}
	deny := func(a netip.Addr) bool { return a == loopback }
	if d, err = outbound.NewDirect(outbound.DirectOptions{Deny: deny}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Bind(t.Context(), flow.Target{Addr: loopback}); !errors.Is(err, outbound.ErrDenied) {
		t.Errorf("Bind for an address that must not leave: %v", err)
	}
}
