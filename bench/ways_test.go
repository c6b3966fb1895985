package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack"
	"tunroute/stack/stacktest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "__") {
		os.Exit(run(os.Args[1:])) // the rig has started this program again
	}
	goleak.VerifyTestMain(m)
}

// conn is a connection of either kind of client.
type conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// datagrams is a UDP socket of either kind of client, connected to a server.
type datagrams interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// way is how a client reaches the servers.
type way struct {
	name string
	tcp  func(s service) (conn, error)
	udp  func() (datagrams, error) // to a server that sends everything back
}

// service is what a server does with a connection; as a number it is a port too.
type service uint16

const (
	sink     service = iota + 1 // reads to the end, then says so by a byte
	source                      // writes until the client goes
	echo                        // repeats
	datagram                    // by UDP: sends back
)

func (s service) serve(c net.Conn) {
	switch s {
	case sink:
		if _, err := io.Copy(io.Discard, onlyReader{c}); err == nil {
			c.Write([]byte{'.'})
		}
	case source:
		block := blocks.Get().(*[blockSize]byte)
		defer blocks.Put(block)
		for {
			if _, err := c.Write(block[:]); err != nil {
				return
			}
		}
	case echo:
		// Not io.Copy, which would splice: the same work for every way.
		block := blocks.Get().(*[blockSize]byte)
		defer blocks.Put(block)
		for {
			n, err := c.Read(block[:])
			if err != nil {
				return
			}
			if _, err := c.Write(block[:n]); err != nil {
				return
			}
		}
	}
}

// blocks are the servers' buffers: not what is measured.
const blockSize = 64 << 10

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

// onlyReader hides that a connection can splice.
type onlyReader struct{ io.Reader }

// ways returns what is compared:
//
//	direct           sockets of the kernel on both sides, nothing between
//	netstack         the client machine and tunroute's stack, but a server
//	                 right behind the stack: what packets cost without a
//	                 router and sockets
//	tunroute-direct  tunroute, with the rule "via: direct" and a resolver
//	tunroute-socks5  tunroute, through a SOCKS5 server; for TCP the server is
//	                 the target too
func ways(b *testing.B) []way {
	return []way{direct(b), netstack(b), tunrouteDirect(b), tunrouteSOCKS(b)}
}

// echoUDP returns a server that sends every datagram back.
func echoUDP(b *testing.B) netip.AddrPort {
	return outboundtest.ServeUDP(b, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, p []byte) {
		c.WriteToUDPAddrPort(p, from)
	})
}

// servers returns a TCP server for each service.
func servers(b *testing.B) map[service]netip.AddrPort {
	all := make(map[service]netip.AddrPort)
	for _, s := range []service{sink, source, echo} {
		all[s] = outboundtest.Serve(b, enginetest.Loopback, func(c *net.TCPConn) { s.serve(c) })
	}
	return all
}

func direct(b *testing.B) way {
	tcp, udp := servers(b), echoUDP(b)
	return way{
		name: "direct",
		tcp: func(s service) (conn, error) {
			c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(tcp[s]))
			return c, err
		},
		udp: func() (datagrams, error) {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(udp))
			return c, err
		},
	}
}

// answerer is a stack.Handler that is the servers itself.
type answerer struct{ stack *stack.Stack }

func (a *answerer) ServeTCP(_ context.Context, r *stack.TCPRequest) {
	if c, err := r.Accept(); err == nil {
		service(r.Destination().Port()).serve(c)
		c.Close()
	}
}

func (a *answerer) ServeUDP(src, dst netip.AddrPort, p []byte) bool {
	_ = a.stack.WriteUDP(p, dst, src)
	return true
}

func (a *answerer) ServeEcho(context.Context, *stack.EchoRequest) {}

func netstack(b *testing.B) way {
	host, h := stacktest.NewHost(0), new(answerer)
	b.Cleanup(host.Close)
	s, err := stack.New(stack.Options{Device: host.Device(), Handler: h})
	if err != nil {
		b.Fatal(err)
	}
	h.stack = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx)
	}()
	b.Cleanup(func() {
		cancel()
		<-ended
	})
	return fromHost("netstack", host, func(s service) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(s))
	})
}

// fromHost is the way of a client machine, to which where says where a service is.
func fromHost(name string, host *stacktest.Host, where func(service) netip.AddrPort) way {
	return way{
		name: name,
		tcp: func(s service) (conn, error) {
			c, err := host.DialTCP(context.Background(), netip.AddrPort{}, where(s))
			return c, err
		},
		udp: func() (datagrams, error) {
			c, err := host.DialUDP(netip.AddrPort{}, where(datagram))
			return c, err
		},
	}
}

func tunrouteDirect(b *testing.B) way {
	ports := servers(b)
	ports[datagram] = echoUDP(b)
	dns := enginetest.StartDNS(b, map[string]netip.Addr{"server.test": enginetest.Loopback})
	l := enginetest.Start(b, "rules: [{via: direct}]\ndns: {resolvers: ['%s']}\nlog: {level: error}\n", dns.Addr)
	addr := l.Lookup("ip4", "server.test")
	return fromHost("tunroute-direct", l.Host, func(s service) netip.AddrPort { return netip.AddrPortFrom(addr, ports[s].Port()) })
}

func tunrouteSOCKS(b *testing.B) way {
	target := enginetest.StartScripted(b, func(r socks.Request) enginetest.Script {
		return enginetest.Script{Serve: service(r.Addr.Port).serve}
	})
	relay := outboundtest.StartServer(b, outboundtest.ServerOptions{
		Resolver: outboundtest.Names{"server.test": {enginetest.Loopback}},
	})
	udp := echoUDP(b)
	l := enginetest.Start(b, `
upstreams: {tcp: 'socks5h://%s', udp: 'socks5h://%s'}
rules: [{proto: tcp, via: tcp}, {via: udp}]
log: {level: error}
`, target, relay.Target())
	addr := l.Lookup("ip4", "server.test")
	return fromHost("tunroute-socks5", l.Host, func(s service) netip.AddrPort {
		if s == datagram {
			return netip.AddrPortFrom(addr, udp.Port())
		}
		return netip.AddrPortFrom(addr, uint16(s))
	})
}
