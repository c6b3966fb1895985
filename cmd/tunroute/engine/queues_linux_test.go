package engine_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/tun"
	"tunroute/tun/nstest"
)

// The topology of these tests, in a namespace of their own:
//
//	sockets of the test ── 198.18.0.2, tunN ── engine ── lo ── SOCKS5 server, targets

// countedQueues counts the packets of each queue.
type countedQueues struct {
	tun.OffloadDevice
	packets []atomic.Int64
}

func (d *countedQueues) ReadQueue(queue int, bufs [][]byte) (int, error) {
	n, err := d.OffloadDevice.ReadQueue(queue, bufs)
	if err == nil {
		d.packets[queue].Add(1)
	}
	return n, err
}

// startOnQueues runs an engine on a TUN with so many queues, which sends all to a
// SOCKS5 server that knows server.test. The channel gets what Run returns.
func startOnQueues(t *testing.T, queues int) (d *countedQueues, stop func(), ended <-chan error) {
	t.Helper()
	nstest.NeedTUN(t)
	dev, err := tun.Open(tun.Config{Name: "tun%d", Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	nstest.IP(t, "link set "+dev.Name()+" addrgenmode none")
	nstest.IP(t, "addr add 198.18.0.2/15 dev "+dev.Name())
	nstest.IP(t, "link set "+dev.Name()+" up")
	d = &countedQueues{dev.(tun.OffloadDevice), make([]atomic.Int64, queues)}
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{
		Resolver: outboundtest.Names{"server.test": {enginetest.Loopback}},
	})
	cfg := enginetest.Parse(t, "upstreams: {up: 'socks5h://%s'}\nrules: [{via: up}]\n", server.Target())
	e, err := engine.New(cfg, engine.Options{Device: d})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	errs := make(chan error, 1)
	go func() { errs <- e.Run(ctx) }()
	return d, stop, errs
}

// lookupServer asks the engine, by the TUN, for the address of server.test.
func lookupServer(t *testing.T) netip.Addr {
	t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", "198.18.0.1:53")
	}}
	addrs, err := r.LookupNetIP(enginetest.Within(t), "ip4", "server.test.")
	if err != nil || len(addrs) != 1 {
		t.Fatalf("address of server.test: %v, %v", addrs, err)
	}
	return addrs[0].Unmap()
}

// Streams and datagrams of many programs at once, each both ways, come through a
// TUN of several queues unharmed and in order, and all queues are used.
func TestFlowsByAllQueues(t *testing.T) {
	const streams, bytesEach = 16, 512 << 10
	const sockets, datagrams, window = 16, 150, 4
	for _, queues := range []int{1, 3} {
		d, stop, ended := startOnQueues(t, queues)
		host := lookupServer(t)
		echo := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
			io.Copy(c, c)
			c.CloseWrite()
		})
		echoed := echoUDP(t)
		deadline := time.Now().Add(enginetest.Patience)
		var clients sync.WaitGroup
		for i := range streams {
			clients.Go(func() {
				c, err := net.Dial("tcp", netip.AddrPortFrom(host, echo.Port()).String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(deadline)
				sent := make([]byte, bytesEach)
				rand.NewChaCha8([32]byte{byte(i)}).Read(sent)
				var writing sync.WaitGroup
				defer writing.Wait()
				writing.Go(func() {
					if _, err := c.Write(sent); err != nil {
						t.Errorf("stream %d: %v", i, err)
					}
					c.(*net.TCPConn).CloseWrite()
				})
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
					t.Errorf("stream %d: %d bytes came back, %v, want the %d that were sent", i, len(got), err, len(sent))
				}
			})
		}
		for i := range sockets {
			clients.Go(func() {
				c, err := net.Dial("udp", netip.AddrPortFrom(host, echoed.Port()).String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(deadline)
				payload := func(n int) []byte {
					p := make([]byte, 8+n%1300)
					rand.NewChaCha8([32]byte{byte(i), byte(n), byte(n >> 8)}).Read(p)
					binary.BigEndian.PutUint32(p, uint32(i))
					binary.BigEndian.PutUint32(p[4:], uint32(n))
					return p
				}
				got := make([]byte, 2000)
				for n := range datagrams + window {
					if n < datagrams {
						if _, err := c.Write(payload(n)); err != nil {
							t.Errorf("socket %d: %v", i, err)
							return
						}
					}
					if n < window {
						continue
					}
					size, err := c.Read(got)
					if want := payload(n - window); err != nil || !bytes.Equal(got[:size], want) {
						t.Errorf("socket %d: answer %d is % x…, %v, want % x…", i, n-window, got[:min(size, 8)], err, want[:8])
						return
					}
				}
			})
		}
		clients.Wait()
		for queue := range d.packets {
			// One queue alone is read by ReadSuper.
			if n := d.packets[queue].Load(); (n == 0) != (queues == 1) {
				t.Errorf("%d packets came by queue %d of %d", n, queue, queues)
			}
		}
		stop()
		if err := enginetest.Receive(t, "Run returns", ended); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// The end of the interface is the end of the engine, with one error.
func TestQueuesEndTogether(t *testing.T) {
	d, _, ended := startOnQueues(t, 3)
	lookupServer(t)
	nstest.IP(t, "link del "+d.Name())
	err := enginetest.Receive(t, "Run returns", ended)
	if err == nil || !strings.Contains(err.Error(), "removed") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Run: %v, want one error, that the interface was removed", err)
	}
}

// What the config takes is what package tun does.
func TestConfigKnowsMaxQueues(t *testing.T) {
	for queues, want := range map[int]bool{tun.MaxQueues: true, tun.MaxQueues + 1: false} {
		_, err := config.Parse("test.yaml", fmt.Appendf(nil, "tun: {queues: %d}", queues))
		if (err == nil) != want {
			t.Errorf("%d queues: %v, want taken %v", queues, err, want)
		}
	}
}
