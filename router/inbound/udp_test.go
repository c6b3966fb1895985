package inbound_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// associated is a client of UDP ASSOCIATE, by hand.
type associated struct {
	control *net.TCPConn
	relay   netip.AddrPort
}

// udpServer starts a server that sends all directly, with names by r.
func udpServer(t *testing.T, r outbound.Resolver) string {
	t.Helper()
	direct, err := outbound.NewDirect(outbound.DirectOptions{Resolver: r})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveRouter(t, direct, inbound.Listener{Listener: l, Name: "lan", Methods: []inbound.Method{inbound.None{}}})
	return l.Addr().String()
}

func associate(t *testing.T, addr string) associated {
	return associateFrom(t, addr, netip.MustParseAddrPort("0.0.0.0:0"))
}

// associateFrom is associate of a client that says where it will send from.
func associateFrom(t *testing.T, addr string, from netip.AddrPort) associated {
	t.Helper()
	c := dial(t, addr)
	request, err := socks.AppendRequest([]byte(hello(0)), socks.UDPAssociate, socks.Addr{IP: from.Addr(), Port: from.Port()})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(request)
	if _, err := socks.ReadMethod(c, socks.MethodNone); err != nil {
		t.Fatal(err)
	}
	bound, err := socks.ReadReply(c)
	if err != nil {
		t.Fatal(err)
	}
	if bound.IP != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("the relay is at %v, want it at the address of the connection", bound)
	}
	return associated{c, netip.AddrPortFrom(bound.IP, bound.Port)}
}

// udpFrom returns a socket at an address of the loopback interface.
func udpFrom(t *testing.T, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func packet(t *testing.T, a socks.Addr, payload string) []byte {
	t.Helper()
	b, err := socks.AppendUDPHeader(nil, a)
	if err != nil {
		t.Fatal(err)
	}
	return append(b, payload...)
}

// TestAssociation: the first sender's port is the client, fragments are dropped, names
// go as names, and a reply has its real source in its header.
func TestAssociation(t *testing.T) {
	target := udpFrom(t, "127.0.0.1")
	var echo sync.WaitGroup
	echo.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := target.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			target.WriteToUDPAddrPort(b[:n], from)
		}
	})
	t.Cleanup(func() { target.Close(); echo.Wait() })
	at := target.LocalAddr().(*net.UDPAddr).AddrPort()
	a := associate(t, udpServer(t, outboundtest.Names{"a.test": {at.Addr()}}))
	client, second, stranger := udpFrom(t, "127.0.0.1"), udpFrom(t, "127.0.0.1"), udpFrom(t, "127.0.0.2")
	to := socks.Addr{IP: at.Addr(), Port: at.Port()}

	// Another machine's does not make it the client, nor does what is no datagram.
	stranger.WriteToUDPAddrPort(packet(t, to, "stranger"), a.relay)
	fragment := packet(t, to, "fragment")
	fragment[2] = 1
	for _, p := range [][]byte{fragment, []byte("nonsense")} {
		second.WriteToUDPAddrPort(p, a.relay)
	}
	for _, p := range [][]byte{fragment, []byte("nonsense"), {0, 0, 0}, packet(t, socks.Addr{Name: "no.such.test", Port: 1}, "x"), packet(t, to, "by address")} {
		client.WriteToUDPAddrPort(p, a.relay)
	}
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 1500)
		n, from, err := client.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		h, payload, err := socks.ParseUDP(b[:n])
		if err != nil || h.Name != nil || h.Addr != at || string(payload) != want || from != a.relay {
			t.Errorf("heard %q from %+v by %v, %v; want %q from %v by %v", payload, h, from, err, want, at, a.relay)
		}
	}
	hear("by address")
	second.WriteToUDPAddrPort(packet(t, to, "second"), a.relay)
	client.WriteToUDPAddrPort(packet(t, socks.Addr{Name: "A.test", Port: at.Port()}, "by name"), a.relay)
	hear("by name")
	client.WriteToUDPAddrPort(packet(t, socks.Addr{Name: "127.0.0.1", Port: at.Port()}, "a name that is an address"), a.relay)
	hear("a name that is an address")

	// What is said on the connection meanwhile is of no account; its end is the
	// association's.
	a.control.Write(bytes.Repeat([]byte("x"), 4096))
	client.WriteToUDPAddrPort(packet(t, to, "still there"), a.relay)
	hear("still there")
	a.control.CloseWrite()
	if _, err := a.control.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection ends with %v", err)
	}
	if c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a.relay)); err != nil {
		t.Errorf("the relay is still there: %v", err)
	} else {
		c.Close()
	}
	second.SetReadDeadline(time.Unix(1, 0))
	for _, c := range []*net.UDPConn{second, stranger} {
		c.SetReadDeadline(time.Unix(1, 0))
		if n, _, err := c.ReadFrom(make([]byte, 100)); !os.IsTimeout(err) {
			t.Errorf("somebody else heard %d bytes, %v", n, err)
		}
	}
}

// TestAssociationSaysItsPort: who says where it will send from has no other take its place.
// What it says of another machine's address, as behind a NAT, does not count.
func TestAssociationSaysItsPort(t *testing.T) {
	sent := make(chan string, 2)
	addr, _, _ := start(t, inbound.Options{
		Associate: func(flow.Flow, inbound.PacketClient) (inbound.Association, error) { return idle{sent}, nil },
	}, inbound.None{})
	client, other := udpFrom(t, "127.0.0.1"), udpFrom(t, "127.0.0.1")
	says := client.LocalAddr().(*net.UDPAddr).AddrPort()
	to := socks.Addr{Name: "a.test", Port: 1}
	for _, tt := range []struct {
		says netip.AddrPort
		want string
	}{
		{says, "client"},
		{netip.AddrPortFrom(netip.MustParseAddr("10.9.8.7"), says.Port()), "other"},
	} {
		a := associateFrom(t, addr, tt.says)
		other.WriteToUDPAddrPort(packet(t, to, "other"), a.relay)
		client.WriteToUDPAddrPort(packet(t, to, "client"), a.relay)
		if got := <-sent; got != tt.want {
			t.Errorf("who says %v: %s was taken, want %s", tt.says, got, tt.want)
		}
		a.control.Close()
	}
}

// TestRelaysWhereTheyMayBe: each relay has a port of its own of those that there are, and
// clients are told another address; one too many is refused, and an end makes room.
func TestRelaysWhereTheyMayBe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Two ports in a row that are free: one may be anybody's.
	var first uint16
	for range 100 {
		a := udpFrom(t, "127.0.0.1")
		first = a.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		b, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), first+1)))
		a.Close()
		if err == nil {
			b.Close()
			break
		}
	}
	direct, err := outbound.NewDirect(outbound.DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	told := netip.MustParseAddr("203.0.113.1")
	serveRouter(t, direct, inbound.Listener{
		Listener: l, Name: "lan", Methods: []inbound.Method{inbound.None{}},
		Relays: inbound.Relays{First: first, Last: first + 1, Announce: told},
	})
	ask := func() (*net.TCPConn, socks.Addr, error) {
		c := dial(t, l.Addr().String())
		c.Write([]byte(hello(0) + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
		if _, err := socks.ReadMethod(c, socks.MethodNone); err != nil {
			t.Fatal(err)
		}
		at, err := socks.ReadReply(c)
		return c, at, err
	}
	ports := make(map[uint16]bool)
	var last *net.TCPConn
	for range 2 {
		c, at, err := ask()
		if err != nil || at.IP != told || at.Port < first || at.Port > first+1 {
			t.Fatalf("a relay at %v, %v; want it at %v and %d or the next", at, err, told, first)
		}
		ports[at.Port], last = true, c
	}
	if len(ports) != 2 {
		t.Errorf("two relays at %v", ports)
	}
	if _, _, err := ask(); err != socks.ReplyGeneral {
		t.Errorf("one too many: %v, want reply 1", err)
	}
	last.CloseWrite()
	io.ReadAll(last)
	if _, _, err := ask(); err != nil {
		t.Errorf("when one had ended: %v", err)
	}
}

// TestAssociationsAreBounded: at the limit, who has been silent for longest makes room.
func TestAssociationsAreBounded(t *testing.T) {
	sent := make(chan string)
	addr, _, s := start(t, inbound.Options{
		MaxAssociations: 2,
		Associate:       func(flow.Flow, inbound.PacketClient) (inbound.Association, error) { return idle{sent}, nil },
	}, inbound.None{})
	busy := associate(t, addr)
	silent := associate(t, addr)
	from := udpFrom(t, "127.0.0.1")
	from.WriteToUDPAddrPort(packet(t, socks.Addr{Name: "a.test", Port: 1}, "x"), busy.relay)
	<-sent
	associate(t, addr)
	if _, err := silent.control.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("who was silent has %v, want the end", err)
	}
	busy.control.SetReadDeadline(time.Unix(1, 0))
	if _, err := busy.control.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("who has sent has %v, want to be there still", err)
	}
	if n := s.Stats().Evicted; n != 1 {
		t.Errorf("%d made room, want one", n)
	}
}

// idle is an association that says what it is sent.
type idle struct{ sent chan string }

func (idle) Run(ctx context.Context)                     { <-ctx.Done() }
func (i idle) Send(_ []byte, _ netip.AddrPort, b []byte) { i.sent <- string(b) }
func (idle) Flush()                                      {}
