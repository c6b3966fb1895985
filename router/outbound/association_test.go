package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// grantedAt is a success with a bound address.
func grantedAt(bound netip.AddrPort) string {
	return string(socks.AppendReply(nil, socks.ReplySucceeded, bound))
}

// relayed is a datagram as a relay sends it.
func relayed(t testing.TB, from socks.Addr, payload string) []byte {
	t.Helper()
	return append(must(socks.AppendUDPHeader(nil, from))(t), payload...)
}

// open opens a UDP conversation that ends with the test.
func open(t testing.TB, d outbound.PacketDialer) outbound.PacketConn {
	t.Helper()
	c := must(d.OpenUDP(t.Context()))(t)
	t.Cleanup(func() { c.Close() })
	return c
}

// A datagram with these headers comes from the relay itself, or from beside it.
func TestAssociationTakesOnlyWhatTheRelaySays(t *testing.T) {
	from := socks.Addr{IP: where.Addr, Port: 53}
	stranger := must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	defer stranger.Close()
	relay := outboundtest.ServeUDP(t, loopback, func(conn *net.UDPConn, client netip.AddrPort, _ []byte) {
		stranger.WriteToUDPAddrPort(relayed(t, from, "from a stranger"), client)
		fragment := relayed(t, from, "a fragment")
		fragment[2] = 1
		for _, datagram := range [][]byte{
			{}, []byte("no header"), {0, 0, 0, 9, 1, 2, 3, 4}, // malformed
			fragment, append([]byte{0, 0, 0x80}, fragment[3:]...), // FRAG 1, and the last of them
			relayed(t, from, "good"),
			relayed(t, socks.Addr{IP: netip.MustParseAddr("2001:db8::1"), Port: 54}, "good, IPv6"),
			relayed(t, socks.Addr{Name: "example.org", Port: 55}, "good, a name"),
			relayed(t, socks.Addr{Name: "192.0.2.99", Port: 56}, "good, a literal"),
		} {
			conn.WriteToUDPAddrPort(datagram, client)
		}
	})
	for _, batches := range []bool{false, true} {
		s := scripted(t, v5, say(wait, one(takesNone), one(grantedAt(relay))))
		takesOnly(t, s, batches)
	}
}

func takesOnly(t *testing.T, s *outbound.Socks, inBatches bool) {
	t.Helper()
	c := open(t, s)
	if err := c.WriteTo([]byte("go"), where); err != nil {
		t.Fatal(err)
	}
	read := c.ReadFrom
	if inBatches {
		read = outboundtest.ReadBatches(c)
	}
	for i, want := range []struct{ from, payload string }{
		{"192.0.2.80:53", "good"},
		{"[2001:db8::1]:54", "good, IPv6"},
		{"0.0.0.0:55", "good, a name"},
		{"192.0.2.99:56", "good, a literal"},
	} {
		// A buffer that holds any datagram is read into, another is not.
		b := make([]byte, []int{1 << 16, 100}[i%2])
		n, from, err := read(b)
		if err != nil || string(b[:n]) != want.payload || from.String() != want.from {
			t.Errorf("got %q from %v, %v, want %q from %s", b[:n], from, err, want.payload, want.from)
		}
	}
	if got, want := s.Stats(), (outbound.SocksStats{Fragments: 2, Strangers: 1, Malformed: 3}); got != want {
		t.Errorf("dropped %+v, want %+v", got, want)
	}
}

// A datagram longer than the buffer is cut, the header not counted.
func TestAssociationCutsLongDatagrams(t *testing.T) {
	relay := outboundtest.ServeUDP(t, loopback, echoDatagram)
	c := open(t, scripted(t, v5, say(wait, one(takesNone), one(grantedAt(relay)))))
	payload := strings.Repeat("0123456789", 10)
	for _, size := range []int{0, 1, 99, 100, 101} {
		if err := c.WriteTo([]byte(payload), where); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		n, from, err := c.ReadFrom(b)
		want := payload[:min(size, len(payload))]
		if err != nil || string(b[:n]) != want || from != where.AddrPort() {
			t.Errorf("a buffer of %d bytes got %q from %v, %v, want %q", size, b[:n], from, err, want)
		}
	}
	if err := c.WriteTo(make([]byte, 65535), where); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("WriteTo of 65535 bytes: %v, want EMSGSIZE", err)
	}
}

// echoDatagram sends a datagram back, header and all: for a relay that is the
// answer of the target.
func echoDatagram(conn *net.UDPConn, from netip.AddrPort, datagram []byte) {
	conn.WriteToUDPAddrPort(datagram, from)
}

// Where the datagrams go, for all that BND may be.
func TestAssociationRelayAddress(t *testing.T) {
	names := outboundtest.Names{"localhost": {loopback}}
	as := func(a socks.Addr) func(netip.AddrPort) socks.Addr {
		return func(relay netip.AddrPort) socks.Addr { a.Port = relay.Port(); return a }
	}
	tests := []struct {
		name   string
		listen netip.Addr
		bound  func(netip.AddrPort) socks.Addr
	}{
		{"its address", loopback, nil},
		{"0.0.0.0", loopback, as(socks.Addr{IP: netip.IPv4Unspecified()})},
		{"[::]", loopback, as(socks.Addr{IP: netip.IPv6Unspecified()})},
		{"0.0.0.0 of a server on IPv6", netip.IPv6Loopback(), as(socks.Addr{IP: netip.IPv4Unspecified()})},
		{"a name", loopback, as(socks.Addr{Name: "localhost"})},
		{"a literal as a name", loopback, as(socks.Addr{Name: "127.0.0.1"})},
	}
	target := flow.AddrTarget(outboundtest.ServeUDP(t, loopback, echoDatagram))
	check := func(t *testing.T, s *outbound.Socks) {
		t.Helper()
		c := open(t, s)
		if err := c.WriteTo([]byte("hello"), target); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, from, err := c.ReadFrom(b)
		if err != nil || string(b[:n]) != "hello" || from != target.AddrPort() {
			t.Errorf("got %q from %v, %v, want the echo of %v", b[:n], from, err, target)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := outboundtest.StartServer(t, outboundtest.ServerOptions{Listen: tt.listen, Bound: tt.bound})
			check(t, newSocks(t, link{scheme: "socks5"}.options("s", server.Target(), newDirect(t, names), nil)))
			want := socks.Request{Command: socks.UDPAssociate, Addr: socks.Addr{IP: netip.IPv4Unspecified()}}
			if tt.listen.Is6() { // danted refuses the other family
				want.Addr.IP = netip.IPv6Unspecified()
			}
			if got := server.Requests(); len(got) != 1 || got[0] != want {
				t.Errorf("the server was asked for %v, want %v: no target", got, want)
			}
		})
		t.Run(tt.name+" behind another hop", func(t *testing.T) {
			first := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names})
			second := outboundtest.StartServer(t, outboundtest.ServerOptions{Listen: tt.listen, Bound: tt.bound})
			// The second server's own name, where it has one, is the
			// first server's to resolve.
			at := second.Target()
			if tt.listen == loopback {
				at = flow.Target{Name: "localhost", Port: at.Port}
			}
			a := newSocks(t, link{scheme: "socks5h"}.options("a", first.Target(), newDirect(t, nil), nil))
			check(t, newSocks(t, link{scheme: "socks5"}.options("b", at, a, nil)))
		})
	}
}

// The association is over when the server says so, and says so to whoever waits.
func TestAssociationEndsWithItsConnection(t *testing.T) {
	for _, links := range [][]link{
		{{"socks5", ""}},
		{{"socks5", ""}, {"socks5", ""}},
	} {
		// All servers of a chain are the same one.
		server := outboundtest.StartServer(t, outboundtest.ServerOptions{})
		var d outbound.Dialer = newDirect(t, nil)
		for _, l := range links {
			d = newSocks(t, l.options("s", server.Target(), d, nil))
		}
		c := open(t, d.(outbound.PacketDialer))
		server.EndAssociations()
		_, _, err := c.ReadFrom(make([]byte, 100))
		if err == nil || errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "server ended the UDP association") {
			t.Errorf("chain of %d: ReadFrom: %v, want an error that names the server", len(links), err)
		}
		if err := c.WriteTo([]byte("hello"), where); err == nil {
			t.Errorf("chain of %d: WriteTo an association that has ended", len(links))
		}
		if err := c.Close(); err != nil {
			t.Errorf("chain of %d: Close: %v", len(links), err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("chain of %d: another Close: %v", len(links), err)
		}
	}
}

// Which failures mean that there is no UDP, and which mean something else.
func TestAssociationRefused(t *testing.T) {
	reply := func(c socks.ReplyError) string { return string(socks.AppendReply(nil, c, netip.AddrPort{})) }
	tests := []struct {
		name   string
		opts   outbound.SocksOptions
		script func(*net.TCPConn)
		noUDP  bool
		want   error
	}{
		{"command not supported", v5, say(hangUp, one(takesNone), one(reply(socks.ReplyCommand))), true, socks.ReplyCommand},
		{"command not supported, in 4 bytes", v5, say(hangUp, one(takesNone), one("\x05\x07\x00\x01")), true, socks.ReplyCommand},
		{"hangs up", v5, say(hangUp, one(takesNone), nil), true, io.EOF},
		{"SOCKS4", v4, say(hangUp), true, outbound.ErrNoUDP},
		{"hangs up before the request", v5, say(hangUp, nil), false, io.EOF},
		{"ruleset", v5, say(hangUp, one(takesNone), one(reply(socks.ReplyRuleset))), false, socks.ReplyRuleset},
		{"no method", v5, say(hangUp, one("\x05\xff")), false, socks.ErrNoMethod},
		{"port 0", v5, say(wait, one(takesNone), one(granted)), false, socks.ErrProtocol},
		{"a name that nobody knows", v5, say(wait, one(takesNone), one("\x05\x00\x00\x03\x01a\x04\x38")), false, nil},
		{"a name that is none", v5, say(wait, one(takesNone), one("\x05\x00\x00\x03\x03a b\x04\x38")), false, flow.ErrBadName},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := scripted(t, tt.opts, tt.script).OpenUDP(t.Context())
			if err == nil {
				c.Close()
				t.Fatal("OpenUDP succeeded")
			}
			if got := errors.Is(err, outbound.ErrNoUDP); got != tt.noUDP {
				t.Errorf("%q is an ErrNoUDP: %v, want %v", err, got, tt.noUDP)
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
}

// A server that has given an association and hangs up another time has a bad day, and
// does not lack UDP.
func TestHangUpOfAServerWithUDP(t *testing.T) {
	var well atomic.Bool
	s := scripted(t, v5, func(c *net.TCPConn) {
		if well.Load() {
			say(wait, one(takesNone), one(grantedAt(netip.MustParseAddrPort("127.0.0.1:9"))))(c)
		} else {
			say(hangUp, one(takesNone), nil)(c)
		}
	})
	if _, err := s.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) || !outbound.HungUp(err) {
		t.Errorf("before: %v, want an ErrNoUDP that is a hang-up", err)
	}
	well.Store(true)
	c, err := s.OpenUDP(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	well.Store(false)
	if _, err := s.OpenUDP(t.Context()); errors.Is(err, outbound.ErrNoUDP) || !outbound.HungUp(err) {
		t.Errorf("after: %v, want a hang-up that is no ErrNoUDP", err)
	}
}

// A chain carries UDP if every hop does; otherwise the hop that does not says so,
// by its number, and no other server is troubled.
func TestChainWithoutUDP(t *testing.T) {
	withUDP := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	without := outboundtest.StartServer(t, outboundtest.ServerOptions{NoUDP: true})
	tests := []struct {
		name  string
		links []link
		at    []*outboundtest.Server
		hop   int
	}{
		{"the first", []link{{"socks5", ""}, {"socks5", ""}}, []*outboundtest.Server{without, withUDP}, 1},
		{"the last", []link{{"socks5", ""}, {"socks5", ""}}, []*outboundtest.Server{withUDP, without}, 2},
		{"the first is SOCKS4", []link{{"socks4", ""}, {"socks5", ""}}, []*outboundtest.Server{withUDP, withUDP}, 1},
		{"the last is SOCKS4", []link{{"socks5", ""}, {"socks4", ""}}, []*outboundtest.Server{withUDP, withUDP}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d outbound.Dialer = newDirect(t, nil)
			for i, l := range tt.links {
				d = newSocks(t, l.options(string(rune('a'+i)), tt.at[i].Target(), d, nil))
			}
			_, err := d.(outbound.PacketDialer).OpenUDP(t.Context())
			checkHop(t, err, outbound.HopError{Hop: tt.hop, Hops: 2, Upstream: string(rune('a' + tt.hop - 1)), Op: "request", Err: outbound.ErrNoUDP})
		})
	}

	t.Run("the middle is HTTP", func(t *testing.T) {
		near, last := outboundtest.StartServer(t, outboundtest.ServerOptions{}), outboundtest.StartServer(t, outboundtest.ServerOptions{})
		middle := outboundtest.StartServer(t, outboundtest.ServerOptions{HTTP: true})
		a := newSocks(t, link{scheme: "socks5"}.options("a", near.Target(), newDirect(t, nil), nil))
		b := newHTTP(t, outbound.HTTPOptions{Name: "b", Server: middle.Target(), Via: a})
		c := newSocks(t, link{scheme: "socks5"}.options("c", last.Target(), b, nil))
		_, err := c.OpenUDP(t.Context())
		checkHop(t, err, outbound.HopError{Hop: 2, Hops: 3, Upstream: "b", Op: "request", Err: outbound.ErrNoUDP})
		for _, s := range []*outboundtest.Server{near, middle, last} {
			if got := s.Requests(); len(got) != 0 {
				t.Errorf("a server was asked for %v", got)
			}
		}
	})

	t.Run("a way without UDP", func(t *testing.T) {
		type tcpOnly struct{ outbound.Dialer }
		s := newSocks(t, link{scheme: "socks5"}.options("s", withUDP.Target(), tcpOnly{newDirect(t, nil)}, nil))
		if _, err := s.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) {
			t.Errorf("OpenUDP: %v, want ErrNoUDP", err)
		}
	})
}

func TestAssociationCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := scripted(t, v5, func(c *net.TCPConn) {
		say(func(c *net.TCPConn) { c.Read(make([]byte, 100)); cancel(); wait(c) }, one(takesNone))(c)
	})
	if c, err := s.OpenUDP(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenUDP: %v, %v, want context.Canceled", c, err)
	}
}

// Names and addresses in a UDP header, as in a request.
func TestAssociationWhatIsSent(t *testing.T) {
	fake := netip.MustParseAddr("198.18.0.7")
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	names := outboundtest.Names{"both.test": {v6, v4}, "six.test": {v6}, "fake.test": {fake}}
	name := func(n string) flow.Target { return flow.Target{Name: n, Port: 53} }
	tests := []struct {
		name   string
		remote bool
		target flow.Target
		want   socks.Addr // the zero Addr: Prepare refuses
	}{
		{"an address", false, flow.Target{Addr: v6, Port: 53}, socks.Addr{IP: v6, Port: 53}},
		{"a name, resolved here", false, name("both.test"), socks.Addr{IP: v4, Port: 53}},
		{"a name with IPv6 only", false, name("six.test"), socks.Addr{IP: v6, Port: 53}},
		{"a name, resolved there", true, name("both.test"), socks.Addr{Name: "both.test", Port: 53}},
		{"a name with an address, resolved there", true, flow.Target{Name: "both.test", Addr: v6, Port: 53}, socks.Addr{Name: "both.test", Port: 53}},
		{"a literal as a name", true, name("192.0.2.1"), socks.Addr{IP: v4, Port: 53}},
		{"an unknown name", false, name("nowhere.test"), socks.Addr{}},
		{"a fake address", true, flow.Target{Addr: fake, Port: 53}, socks.Addr{}},
		{"a name with a fake address", false, name("fake.test"), socks.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sent := make(chan string, 1)
			relay := outboundtest.ServeUDP(t, loopback, func(_ *net.UDPConn, _ netip.AddrPort, p []byte) { sent <- string(p) })
			o := v5
			o.Resolver, o.RemoteNames = names, tt.remote
			o.Deny = func(a netip.Addr) bool { return a == fake }
			c := open(t, scripted(t, o, say(wait, one(takesNone), one(grantedAt(relay)))))
			prepared, err := c.Prepare(t.Context(), tt.target)
			if tt.want == (socks.Addr{}) {
				if err == nil {
					t.Errorf("Prepare %v: %v, want an error", tt.target, prepared)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.remote && prepared != tt.target && tt.want.Name != "" {
				t.Errorf("Prepare changed %+v to %+v", tt.target, prepared)
			}
			if err := c.WriteTo([]byte("hello"), prepared); err != nil {
				t.Fatal(err)
			}
			if got, want := <-sent, string(relayed(t, tt.want, "hello")); got != want {
				t.Errorf("the relay got %q, want %q", got, want)
			}
		})
	}

	t.Run("unprepared", func(t *testing.T) {
		o := v5
		o.Deny = func(a netip.Addr) bool { return a == fake }
		c := open(t, scripted(t, o, say(wait, one(takesNone), one(grantedAt(netip.AddrPortFrom(loopback, 9))))))
		if err := c.WriteTo(nil, name("both.test")); err == nil {
			t.Error("WriteTo took a name that is to be resolved here")
		}
		for _, a := range []netip.Addr{fake, netip.AddrFrom16(fake.As16())} {
			if err := c.WriteTo(nil, flow.Target{Addr: a, Port: 53}); !errors.Is(err, outbound.ErrDenied) {
				t.Errorf("WriteTo the fake address %v: %v, want ErrDenied", a, err)
			}
		}
	})
}

// Many writers, one reader, one association.
func TestAssociationConcurrentUse(t *testing.T) {
	relay := outboundtest.ServeUDP(t, loopback, echoDatagram)
	c := open(t, scripted(t, v5, say(wait, one(takesNone), one(grantedAt(relay)))))
	const n = 16
	turn := make(chan struct{}, n) // at most n datagrams are under way: none is lost
	var writers sync.WaitGroup
	for i := range n {
		writers.Go(func() {
			payload := []byte(strings.Repeat(string(rune('a'+i)), 1000+i))
			for range 20 {
				turn <- struct{}{}
				if err := c.WriteTo(payload, flow.Target{Addr: where.Addr, Port: uint16(i + 1)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	b := make([]byte, 2000)
	for range 20 * n {
		k, from, err := c.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		<-turn
		i := int(from.Port()) - 1
		if want := strings.Repeat(string(rune('a'+i)), 1000+i); string(b[:k]) != want {
			t.Errorf("%d bytes %.10q... came from %v, want %d", k, b[:k], from, len(want))
		}
	}
	writers.Wait()
}

// At packet tempo nothing is allocated.
func TestUDPAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector changes what is allocated")
	}
	echo := flow.AddrTarget(outboundtest.ServeUDP(t, loopback, echoDatagram))
	associated := func(remote bool) outbound.PacketConn {
		o := v5
		o.RemoteNames = remote
		o.Deny = func(a netip.Addr) bool { return false }
		return open(t, scripted(t, o, say(wait, one(takesNone), one(grantedAt(echo.AddrPort())))))
	}
	tests := []struct {
		name   string
		conn   outbound.PacketConn
		target flow.Target
		buffer int
	}{
		{"direct", open(t, newDirect(t, nil)), echo, 1 << 16},
		{"SOCKS, address", associated(false), where, 1 << 16},
		{"SOCKS, name", associated(true), flow.Target{Name: "example.org", Port: 53}, 1 << 16},
		{"SOCKS, small buffer", associated(false), where, 1500},
	}
	payload := make([]byte, 1200)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := make([]byte, tt.buffer)
			if got := testing.AllocsPerRun(200, func() {
				if err := tt.conn.WriteTo(payload, tt.target); err != nil {
					t.Fatal(err)
				}
				if n, _, err := tt.conn.ReadFrom(b); err != nil || n != len(payload) {
					t.Fatal(n, err)
				}
			}); got != 0 {
				t.Errorf("%v allocations for a datagram there and back, want 0", got)
			}
			const row = 20
			queue, batches := outbound.Queue(tt.conn), outbound.Batches(tt.conn)
			came := 0
			take := func(payloads [][]byte, _ []netip.AddrPort) { came += len(payloads) }
			if got := testing.AllocsPerRun(200, func() {
				for range row {
					if err := queue.Queue(payload, tt.target); err != nil {
						t.Fatal(err)
					}
				}
				queue.Flush()
				for came = 0; came < row; {
					if err := batches.ReadBatch(take); err != nil {
						t.Fatal(err)
					}
				}
			}); got != 0 {
				t.Errorf("%v allocations for a row of datagrams there and back, want 0", got)
			}
		})
	}
}

// BenchmarkAssociation is a datagram to a relay on this machine and back.
func BenchmarkAssociation(b *testing.B) {
	relay := outboundtest.ServeUDP(b, loopback, echoDatagram)
	server := outboundtest.Serve(b, loopback, say(wait, one(takesNone), one(grantedAt(relay))))
	o := v5
	o.Server, o.Via = flow.AddrTarget(server), newDirect(b, nil)
	c := open(b, newSocks(b, o))
	payload, buf := make([]byte, 1200), make([]byte, 1<<16)
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if err := c.WriteTo(payload, where); err != nil {
			b.Fatal(err)
		}
		if _, _, err := c.ReadFrom(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAssociationRow is datagrams to a relay on this machine and back, 32 at a
// time; an operation is one of them.
func BenchmarkAssociationRow(b *testing.B) {
	const row = 32
	relay := outboundtest.ServeUDP(b, loopback, echoDatagram)
	server := outboundtest.Serve(b, loopback, say(wait, one(takesNone), one(grantedAt(relay))))
	o := v5
	o.Server, o.Via = flow.AddrTarget(server), newDirect(b, nil)
	c := open(b, newSocks(b, o))
	queue, batches := outbound.Queue(c), outbound.Batches(c)
	payload := make([]byte, 1200)
	came := 0
	take := func(payloads [][]byte, _ []netip.AddrPort) { came += len(payloads) }
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	b.ResetTimer()
	for left := b.N; left > 0; left -= row {
		n := min(left, row)
		for range n {
			if err := queue.Queue(payload, where); err != nil {
				b.Fatal(err)
			}
		}
		queue.Flush()
		for came = 0; came < n; {
			if err := batches.ReadBatch(take); err != nil {
				b.Fatal(err)
			}
		}
	}
}
