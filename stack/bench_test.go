package stack_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// The benchmarks have a Host as the client, in the same process: what they show is
// the work of two netstacks and of what lies between, not of one.

// benchHost runs a stack with a client machine in front of it.
func benchHost(b *testing.B, mtu int, h *handler) (*stacktest.Host, *stack.Stack) {
	host := stacktest.NewHost(mtu)
	b.Cleanup(host.Close)
	s, _ := start(b, stack.Options{Device: host.Device(), Handler: h}, nil)
	return host, s
}

// BenchmarkTCPEcho is one round trip at a time.
func BenchmarkTCPEcho(b *testing.B) {
	for _, size := range []int{64, 1400, 16 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			host, _ := benchHost(b, 1500, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
				c, err := r.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}})
			c, err := host.DialTCP(within(b), netip.AddrPort{}, families()[0].server)
			if err != nil {
				b.Fatal(err)
			}
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
	}
}

// BenchmarkThroughput sends one way as fast as it goes; an operation is 64 KiB.
func BenchmarkThroughput(b *testing.B) {
	const chunk = 64 << 10
	for _, mtu := range []int{1500, 65535} {
		b.Run(fmt.Sprintf("dir=up/mtu=%d", mtu), func(b *testing.B) {
			got := make(chan int64, 1)
			host, _ := benchHost(b, mtu, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
				c, err := r.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				n, _ := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, chunk))
				got <- n
			}})
			c, err := host.DialTCP(context.Background(), netip.AddrPort{}, families()[0].server)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ReportAllocs()
			sent := int64(0)
			for b.Loop() {
				n, err := c.Write(buf)
				if err != nil {
					b.Fatal(err)
				}
				sent += int64(n)
			}
			c.CloseWrite()
			if n := <-got; n != sent {
				b.Errorf("%d of %d bytes have come", n, sent)
			}
		})
		b.Run(fmt.Sprintf("dir=down/mtu=%d", mtu), func(b *testing.B) {
			host, _ := benchHost(b, mtu, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
				c, err := r.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				buf := make([]byte, chunk)
				for err == nil {
					_, err = c.Write(buf)
				}
			}})
			c, err := host.DialTCP(context.Background(), netip.AddrPort{}, families()[0].server)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Reset()
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// onlyReader and onlyWriter hide what io.Copy would rather use.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// BenchmarkUDPEcho is one round trip at a time, and 32 at a time.
func BenchmarkUDPEcho(b *testing.B) {
	for _, window := range []int{1, 32} {
		for _, size := range []int{64, 1400} {
			b.Run(fmt.Sprintf("window=%d/size=%d", window, size), func(b *testing.B) {
				var s atomic.Pointer[stack.Stack]
				host, running := benchHost(b, 1500, echoUDP(&s))
				s.Store(running)
				c, err := host.DialUDP(netip.AddrPort{}, families()[0].server)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				buf := make([]byte, size)
				send := func() {
					if _, err := c.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				receive := func() {
					if n, err := c.Read(buf); n != size || err != nil {
						b.Fatal(n, err)
					}
				}
				for range window - 1 {
					send()
				}
				b.SetBytes(int64(2 * size))
				b.ReportAllocs()
				for b.Loop() {
					send()
					receive()
				}
				for range window - 1 {
					receive()
				}
			})
		}
	}
}

// BenchmarkWriteUDP is what the stack does for a datagram on its way out.
func BenchmarkWriteUDP(b *testing.B) {
	for _, size := range []int{64, 1400} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			s, _ := start(b, stack.Options{Device: &sink{Wire: stacktest.NewWire(1500)}, Handler: &handler{}, Headroom: 16}, nil)
			fam, payload := families()[0], make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.WriteUDP(payload, fam.server, fam.client); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkConnectClose opens a connection and closes it, first from the client's
// side, then, in the other half, from the stack's, where it stays in TIME-WAIT.
func BenchmarkConnectClose(b *testing.B) {
	for _, first := range []string{"client", "server"} {
		b.Run("closes="+first, func(b *testing.B) {
			host, _ := benchHost(b, 1500, &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
				c, err := r.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				if first == "client" {
					c.Read(make([]byte, 1))
				}
				c.Close()
			}})
			b.ReportAllocs()
			for b.Loop() {
				c, err := host.DialTCP(context.Background(), netip.AddrPort{}, families()[0].server)
				if err != nil {
					b.Fatal(err)
				}
				if first == "server" {
					c.Read(make([]byte, 1))
				}
				c.Close()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
		})
	}
}
