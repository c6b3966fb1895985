package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/outbound/outboundtest"
	"tunroute/stack/stacktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// conn is a connection of either kind of client.
type conn interface {
	net.Conn
	CloseWrite() error
}

// client is what opens connections: a machine behind an engine, or this one.
type client struct {
	dial func(netip.AddrPort) (conn, error)
	udp  func(netip.AddrPort) (net.Conn, error)
}

// direct connects without tunroute.
var direct = client{
	dial: func(to netip.AddrPort) (conn, error) {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		return c, nil
	},
	udp: func(to netip.AddrPort) (net.Conn, error) {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		return c, nil
	},
}

// name stands for this machine. A client behind an engine cannot name 127.0.0.1
// itself: that would be the client.
const name = "bench.test"

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// resolver is a DNS server that says of every name that it is this machine.
func resolver(b *testing.B) netip.AddrPort {
	return outboundtest.ServeUDP(b, loopback, func(conn *net.UDPConn, from netip.AddrPort, query []byte) {
		var m dnsmessage.Message
		if m.Unpack(query) != nil || len(m.Questions) != 1 {
			return
		}
		m.Response, m.Additionals = true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
				Body:   &dnsmessage.AResource{A: loopback.As4()},
			}}
		}
		if answer, err := m.Pack(); err == nil {
			conn.WriteToUDPAddrPort(answer, from)
		}
	})
}

// behind returns a machine behind an engine that sends all flows by this config.
// What it is told to connect to it calls by name.
func behind(b *testing.B, text string) client {
	b.Helper()
	cfg, err := config.Parse("bench.yaml", []byte(text))
	if err != nil {
		b.Fatal(err)
	}
	host := stacktest.NewHost(0)
	b.Cleanup(host.Close)
	e, err := engine.New(cfg, engine.Options{Device: host.Device()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	var addr netip.Addr // the fake one
	called := func(to netip.AddrPort) netip.AddrPort {
		if !to.Addr().IsLoopback() {
			return to
		}
		return netip.AddrPortFrom(addr, to.Port())
	}
	ask := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return host.DialUDP(netip.AddrPort{}, anyServer)
	}}
	addrs, err := ask.LookupNetIP(ctx, "ip4", name+".")
	if err != nil {
		b.Fatal(err)
	}
	addr = addrs[0].Unmap()
	return client{
		dial: func(to netip.AddrPort) (conn, error) {
			c, err := host.DialTCP(context.Background(), netip.AddrPort{}, called(to))
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		udp: func(to netip.AddrPort) (net.Conn, error) {
			c, err := host.DialUDP(netip.AddrPort{}, called(to))
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
}

// paths runs f for each way to a server: without tunroute, through it directly,
// and through it and a SOCKS5 server.
func paths(b *testing.B, f func(b *testing.B, c client)) {
	b.Run("direct", func(b *testing.B) { f(b, direct) })
	b.Run("tunroute", func(b *testing.B) {
		f(b, behind(b, fmt.Sprintf("dns: {resolvers: ['%v']}\nrules: [{via: direct}]", resolver(b))))
	})
	b.Run("tunroute-socks5", func(b *testing.B) {
		s := outboundtest.StartServer(b, outboundtest.ServerOptions{Resolver: outboundtest.Names{name: {loopback}}})
		f(b, behind(b, fmt.Sprintf("upstreams: {p: 'socks5h://%v'}\nrules: [{via: p}]", s.Target())))
	})
}

// anyServer is a DNS server that does not exist: port 53 is answered whoever it is
// meant for.
var anyServer = netip.MustParseAddrPort("203.0.113.53:53")

// serve starts a TCP server that hands each connection to f, and returns its
// address.
func serve(b *testing.B, f func(c *net.TCPConn)) netip.AddrPort {
	b.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	b.Cleanup(func() { ln.Close(); <-ended })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func must[T any](b *testing.B) func(v T, err error) T {
	return func(v T, err error) T {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

// BenchmarkTCPUp sends one way, in writes of 64 KiB.
func BenchmarkTCPUp(b *testing.B) {
	paths(b, func(b *testing.B, cl client) {
		got := make(chan int64, 1)
		to := serve(b, func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			got <- n
		})
		c := must[conn](b)(cl.dial(to))
		defer c.Close()
		buf := make([]byte, 64<<10)
		b.SetBytes(int64(len(buf)))
		b.ReportAllocs()
		var sent int64
		for b.Loop() {
			n, err := c.Write(buf)
			if err != nil {
				b.Fatal(err)
			}
			sent += int64(n)
		}
		c.CloseWrite()
		if n := <-got; n != sent {
			b.Errorf("%d bytes arrived of %d", n, sent)
		}
	})
}

// BenchmarkTCPDown reads what the server sends as fast as it can.
func BenchmarkTCPDown(b *testing.B) {
	paths(b, func(b *testing.B, cl client) {
		to := serve(b, func(c *net.TCPConn) {
			buf := make([]byte, 64<<10)
			for {
				if _, err := c.Write(buf); err != nil {
					return
				}
			}
		})
		c := must[conn](b)(cl.dial(to))
		defer c.Close()
		buf := make([]byte, 64<<10)
		b.SetBytes(int64(len(buf)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkTCPEcho sends a request and reads the answer, of the same size.
func BenchmarkTCPEcho(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			paths(b, func(b *testing.B, cl client) {
				to := serve(b, func(c *net.TCPConn) { io.Copy(c, c) })
				c := must[conn](b)(cl.dial(to))
				defer c.Close()
				buf := make([]byte, size)
				b.SetBytes(int64(2 * size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.Write(buf); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(c, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkConnect opens a connection, has 64 bytes echoed and closes it in
// order, the server first.
func BenchmarkConnect(b *testing.B) {
	paths(b, func(b *testing.B, cl client) {
		to := serve(b, func(c *net.TCPConn) {
			var buf [64]byte
			if _, err := io.ReadFull(c, buf[:]); err == nil {
				c.Write(buf[:])
			}
		})
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			var buf [64]byte
			for pb.Next() {
				c, err := cl.dial(to)
				if err != nil {
					b.Error(err)
					return
				}
				c.Write(buf[:])
				if _, err := io.ReadFull(c, buf[:]); err != nil {
					b.Error(err)
				}
				if _, err := c.Read(buf[:1]); err != io.EOF {
					b.Errorf("after the answer: %v, want EOF", err)
				}
				c.Close()
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
	})
}

// BenchmarkUDPEcho sends a datagram and reads the answer.
func BenchmarkUDPEcho(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			paths(b, func(b *testing.B, cl client) {
				s := must[*net.UDPConn](b)(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					buf := make([]byte, 64<<10)
					for {
						n, from, err := s.ReadFromUDPAddrPort(buf)
						if err != nil {
							return
						}
						s.WriteToUDPAddrPort(buf[:n], from)
					}
				}()
				defer func() { s.Close(); <-ended }()
				c := must[net.Conn](b)(cl.udp(s.LocalAddr().(*net.UDPAddr).AddrPort()))
				defer c.Close()
				buf := make([]byte, size)
				b.SetBytes(int64(2 * size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.Write(buf); err != nil {
						b.Fatal(err)
					}
					if _, err := c.Read(buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// BenchmarkDNS asks for the address of a name that has a lease.
func BenchmarkDNS(b *testing.B) {
	cl := behind(b, "rules: [{via: direct}]")
	c := must[net.Conn](b)(cl.udp(anyServer))
	defer c.Close()
	query := []byte("\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01")
	answer := make([]byte, 512)
	id := uint16(0)
	b.ReportAllocs()
	for b.Loop() {
		id++
		binary.BigEndian.PutUint16(query, id)
		if _, err := c.Write(query); err != nil {
			b.Fatal(err)
		}
		n, err := c.Read(answer)
		if err != nil {
			b.Fatal(err)
		}
		if n < 12 || binary.BigEndian.Uint16(answer) != id || binary.BigEndian.Uint16(answer[6:]) != 1 {
			b.Fatalf("answer % x", answer[:n])
		}
	}
}
