package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// tellPeer answers a connection with the address that it comes from.
func tellPeer(conn *net.TCPConn) { io.WriteString(conn, conn.RemoteAddr().String()) }

// Where nobody resolves names, none are resolved; not by the system either.
func TestDirectWithoutResolver(t *testing.T) {
	d := newDirect(t, nil)
	target := flow.Target{Name: "localhost", Port: 9}
	if conn, err := d.DialTCP(t.Context(), target); err == nil || !strings.Contains(err.Error(), "no resolver") {
		t.Errorf("DialTCP: %v, %v, want an error", conn, err)
	}
	c := must(d.OpenUDP(t.Context()))(t)
	defer c.Close()
	if got, err := c.Prepare(t.Context(), target); err == nil {
		t.Errorf("Prepare: %v, want an error", got)
	}
	if err := c.WriteTo([]byte("hello"), target); err == nil {
		t.Error("WriteTo took a name that was not prepared")
	}
}

func TestDirectUnknownName(t *testing.T) {
	silent := outbound.DirectOptions{Resolver: emptyResolver{}}
	for _, d := range []*outbound.Direct{
		newDirect(t, outboundtest.Names{}),
		must(outbound.NewDirect(silent))(t),
	} {
		_, err := d.DialTCP(t.Context(), flow.Target{Name: "nowhere.test", Port: 80})
		if got := outbound.Errno(err); err == nil || got != syscall.EHOSTUNREACH {
			t.Errorf("Errno of %v is %v, want EHOSTUNREACH", err, got)
		}
	}
}

// emptyResolver finds nothing and says nothing.
type emptyResolver struct{}

func (emptyResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, nil
}

// An address that means nothing outside is not dialled: not if it is asked for,
// not in the clothes of IPv6, not if a name leads to it. What else the name has
// is.
func TestDirectDeny(t *testing.T) {
	peer := outboundtest.Serve(t, loopback, tellPeer)
	other := netip.MustParseAddr("127.0.0.66")
	d := must(outbound.NewDirect(outbound.DirectOptions{
		Deny: func(a netip.Addr) bool { return a == other },
		Resolver: outboundtest.Names{
			"bad.test":   {other, netip.MustParseAddr("::ffff:127.0.0.66")},
			"mixed.test": {other, loopback},

			"nowhere.test": {netip.IPv4Unspecified(), netip.MustParseAddr("::ffff:0.0.0.0"), netip.IPv6Unspecified()},
		},
	}))(t)
	udp := must(d.OpenUDP(t.Context()))(t)
	defer udp.Close()
	mapped := netip.MustParseAddr("::ffff:127.0.0.66")
	for _, target := range []flow.Target{
		{Addr: other, Port: peer.Port()},
		{Addr: mapped, Port: peer.Port()},
		{Name: "bad.test", Port: peer.Port()},
		{Name: "::ffff:127.0.0.66", Port: peer.Port()},
	} {
		if conn, err := d.DialTCP(t.Context(), target); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("DialTCP %v: %v, %v, want ErrDenied", target, conn, err)
		}
		if got, err := udp.Prepare(t.Context(), target); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("Prepare %v: %v, %v, want ErrDenied", target, got, err)
		}
	}
	for _, a := range []netip.Addr{other, mapped} {
		if err := udp.WriteTo([]byte("hello"), flow.Target{Addr: a, Port: 9}); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("WriteTo %v: %v, want ErrDenied", a, err)
		}
	}
	// What the kernel would take for loopback.
	for _, host := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0", "nowhere.test"} {
		target := must(flow.NewTarget(host, peer.Port()))(t)
		if conn, err := d.DialTCP(t.Context(), target); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("DialTCP %v: %v, %v, want ErrDenied", target, conn, err)
		}
		if got, err := udp.Prepare(t.Context(), target); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("Prepare %v: %v, %v, want ErrDenied", target, got, err)
		}
		if err := udp.WriteTo([]byte("hello"), flow.Target{Addr: netip.IPv6Unspecified(), Port: 9}); !errors.Is(err, outbound.ErrDenied) {
			t.Errorf("WriteTo [::]: %v, want ErrDenied", err)
		}
	}
	conn := must(d.DialTCP(t.Context(), flow.Target{Name: "mixed.test", Port: peer.Port()}))(t)
	conn.Close()
	if got := must(udp.Prepare(t.Context(), flow.Target{Name: "mixed.test", Port: 9}))(t); got.Addr != loopback {
		t.Errorf("Prepare of a name with a denied address: %v, want %v", got.Addr, loopback)
	}
}

func TestDirectBind(t *testing.T) {
	bind := netip.MustParseAddr("127.0.0.5")
	d := must(outbound.NewDirect(outbound.DirectOptions{Bind: bind, Resolver: outboundtest.Names{
		"both.test": {netip.IPv6Loopback(), loopback},
	}}))(t)
	target := outboundtest.Serve(t, loopback, tellPeer)
	for _, target := range []flow.Target{flow.AddrTarget(target), {Name: "both.test", Port: target.Port()}} {
		conn := must(d.DialTCP(t.Context(), target))(t)
		b := must(io.ReadAll(conn))(t)
		conn.Close()
		if got := netip.MustParseAddrPort(string(b)).Addr(); got != bind {
			t.Errorf("%v was reached from %v, want %v", target, got, bind)
		}
	}

	_, err := d.DialTCP(t.Context(), flow.Target{Addr: netip.IPv6Loopback(), Port: 9})
	if outbound.Errno(err) != syscall.ENETUNREACH {
		t.Errorf("Errno of an IPv6 target from an IPv4 address: %v, want ENETUNREACH", err)
	}

	from := make(chan netip.AddrPort, 1)
	remote := outboundtest.ServeUDP(t, loopback, func(_ *net.UDPConn, src netip.AddrPort, _ []byte) { from <- src })
	udp := must(d.OpenUDP(t.Context()))(t)
	defer udp.Close()
	if err := udp.WriteTo([]byte("hello"), flow.AddrTarget(remote)); err != nil {
		t.Fatal(err)
	}
	if got := <-from; got.Addr() != bind {
		t.Errorf("a datagram came from %v, want %v", got, bind)
	}
	if got := must(udp.Prepare(t.Context(), flow.Target{Name: "both.test", Port: 9}))(t); got.Addr != loopback {
		t.Errorf("Prepare chose %v, which cannot be reached from %v", got.Addr, bind)
	}
}

// One address that does not answer does not hold up the others, and the attempt
// on it ends with the race: goleak would see it.
func TestDirectTriesAllAddresses(t *testing.T) {
	full, _ := outboundtest.FullPort(t) // on 127.0.0.1
	port := full.Port()
	works := netip.MustParseAddr("127.0.0.2")
	refuses := netip.MustParseAddr("127.0.0.3")
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(works, port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })

	tests := []struct {
		name  string
		addrs []netip.Addr
		limit time.Duration
		want  syscall.Errno // 0: works
	}{
		{"the second answers", []netip.Addr{loopback, works}, 0, 0},
		{"the first answers", []netip.Addr{works, loopback}, 0, 0},
		{"the first refuses", []netip.Addr{refuses, works}, 0, 0},
		{"all refuse", []netip.Addr{refuses, netip.MustParseAddr("127.0.0.4")}, 0, syscall.ECONNREFUSED},
		{"silence and refusal", []netip.Addr{loopback, refuses}, 5 * time.Second, syscall.ECONNREFUSED},
		{"silence", []netip.Addr{loopback}, 50 * time.Millisecond, syscall.EHOSTUNREACH},
		{"silence of two", []netip.Addr{loopback, loopback}, 50 * time.Millisecond, syscall.EHOSTUNREACH},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := must(outbound.NewDirect(outbound.DirectOptions{
				Connect:  tt.limit,
				Resolver: outboundtest.Names{"name.test": tt.addrs},
			}))(t)
			conn, err := d.DialTCP(t.Context(), flow.Target{Name: "name.test", Port: port})
			if err == nil {
				defer conn.Close()
			}
			if got := outbound.Errno(err); got != tt.want {
				t.Fatalf("Errno of %v is %v, want %v", err, got, tt.want)
			}
			if err == nil && conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() != works {
				t.Errorf("connected to %v, want %v", conn.RemoteAddr(), works)
			}
		})
	}
}

// A name with an address to which there is no way does not cost its datagrams.
func TestDirectPrepareWantsARoute(t *testing.T) {
	// From 127.0.0.1 the kernel sends nothing to another machine.
	elsewhere := netip.MustParseAddr("192.0.2.1")
	d := must(outbound.NewDirect(outbound.DirectOptions{
		Bind:     loopback,
		Resolver: outboundtest.Names{"name.test": {elsewhere, loopback}, "elsewhere.test": {elsewhere, elsewhere}},
	}))(t)
	c := must(d.OpenUDP(t.Context()))(t)
	defer c.Close()
	for name, want := range map[string]netip.Addr{"name.test": loopback, "elsewhere.test": elsewhere} {
		target := flow.Target{Name: name, Port: 53}
		got := must(c.Prepare(t.Context(), target))(t)
		target.Addr = want
		if got != target {
			t.Errorf("Prepare: %+v, want %+v", got, target)
		}
	}
}
