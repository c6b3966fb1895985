package engine_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
	"tunroute/stack/stacktest"
)

// TestDeviceFails: an interface that somebody has removed ends Run, with the
// reason.
func TestDeviceFails(t *testing.T) {
	w := stacktest.NewWire(0)
	e, err := engine.New(enginetest.Parse(t, "rules: [{via: direct}]\n"), engine.Options{Device: w})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	w.Close()
	if err := enginetest.Receive(t, "Run returns", ended); !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "device") {
		t.Errorf("Run: %v, want that the device is closed", err)
	}
}

// TestRunEndsWithEverythingOpen: flows of every kind and in every state, and Run
// returns at once when it is told to; nothing that it has started is left
// (TestMain), clients hear of it by a RST, and leases are given back.
func TestRunEndsWithEverythingOpen(t *testing.T) {
	names := map[string]netip.Addr{"open.test": enginetest.Loopback}
	dns := enginetest.StartDNS(t, names)
	over := make(chan struct{})
	hold := func(c net.Conn) {
		io.Copy(io.Discard, c)
		<-over
	}
	open := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) { hold(c) })
	scripted := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		return enginetest.Script{Silent: r.Addr.Name == "slow.test", Serve: hold}
	})
	udp := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: outboundtest.Names{"open.test": {enginetest.Loopback}}})
	l := enginetest.Start(t, `
upstreams: {scripted: 'socks5h://%s', udp: 'socks5h://%s'}
rules:
  - {to: open.test, proto: tcp, via: direct}
  - {to: open.test, proto: udp, via: udp}
  - {to: 192.0.2.0/24, via: direct}
  - {via: scripted}
names: {local: [silent.test]}
dns: {resolvers: ['%s'], listen: ['%s']}
`, scripted, udp.Target(), dns.Addr, outboundtest.ClosedPort(t, enginetest.Loopback))
	echo := echoUDP(t)
	t.Cleanup(func() { close(over) }) // before the servers wait for their last

	var conns []*stacktest.Conn
	for range 10 {
		conns = append(conns,
			l.MustDial("ip4", "open.test", open.Port()),
			l.MustDial("ip6", "far.test", 80))
	}
	half := l.MustDial("ip4", "far.test", 80)
	half.CloseWrite()
	c := listen(t, l, true)
	say(t, c, netip.AddrPortFrom(l.Lookup("ip4", "open.test"), echo.Port()), "hello")
	if got, _ := hear(t, c); got != "hello" {
		t.Errorf("the UDP echo said %q", got)
	}
	// What is waited for, in the background: dials, a query, a ping.
	ctx, cancel := context.WithCancel(context.Background())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	slow := netip.AddrPortFrom(l.Lookup("ip4", "slow.test"), 80)
	for range 5 {
		background.Go(func() {
			if c, err := l.Host.DialTCP(ctx, netip.AddrPort{}, slow); err == nil {
				c.Close()
			}
		})
	}
	for _, transport := range []string{"udp", "tcp"} {
		background.Go(func() {
			_, _ = l.Resolver(transport, enginetest.AnyServer).LookupNetIP(ctx, "ip4", "silent.test.")
		})
	}
	background.Go(func() { _ = l.Host.Ping(ctx, netip.MustParseAddr("192.0.2.1"), 56) })
	enginetest.Eventually(t, "everything waits", func() bool {
		s := l.Engine.Stats()
		return s.Stack.HalfOpen == 5 && s.Router.Flows == 26 && s.Router.Sessions == 1 && s.DNS.Waiting == 2
	})

	began := time.Now()
	l.Stop()
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("Run took %s to end", took)
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(enginetest.Patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client's connection: %v, want ECONNRESET", err)
			break
		}
	}
	if s := l.Engine.Stats(); s.Router.Flows != 0 || s.Router.Sessions != 0 || s.Pool.Pins != 0 {
		t.Errorf("%d flows, %d sessions and %d pins are left", s.Router.Flows, s.Router.Sessions, s.Pool.Pins)
	}
}

// TestNothingIsLeftOfFlows: what 10,000 flows were made of is given back: no
// goroutine, no file, no memory.
func TestNothingIsLeftOfFlows(t *testing.T) {
	flows := 10_000
	if testing.Short() {
		flows = 1_000
	}
	far := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		switch r.Addr.Port % 4 {
		case 0:
			return enginetest.Script{Reply: socks.ReplyRefused}
		case 1:
			return enginetest.Script{EOF: true}
		}
		return enginetest.Script{Serve: func(c net.Conn) { io.Copy(c, c) }}
	})
	// Without the records of flows, which the test would keep.
	l := enginetest.Start(t, "upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\nlog: {level: error}\n", far)
	addr := l.Lookup("ip4", "www.test")
	ctx, cancel := context.WithTimeout(context.Background(), 10*enginetest.Patience)
	defer cancel()
	var failed atomic.Int64
	// What a flow does depends on its port: two in four are connected, one of
	// them is closed in order and one reset, one is refused, one is lost.
	do := func(n int) {
		var workers sync.WaitGroup
		ports := make(chan uint16)
		for range 32 {
			workers.Go(func() {
				for port := range ports {
					c, err := l.Host.DialTCP(ctx, netip.AddrPort{}, netip.AddrPortFrom(addr, port))
					if (err == nil) != (port%4 > 1) {
						t.Errorf("port %d: %v", port, err)
						failed.Add(1)
					}
					if err != nil {
						continue
					}
					if _, err := io.WriteString(c, "x"); err != nil || readOne(c) != nil {
						failed.Add(1)
					}
					if port%4 == 2 {
						c.Reset()
					}
					c.Close()
				}
			})
		}
		for i := range n {
			ports <- uint16(1000 + i) // beyond that of DNS
		}
		close(ports)
		workers.Wait()
		enginetest.Eventually(t, "all flows have ended", func() bool {
			s := l.Engine.Stats()
			return s.Router.Flows == 0 && s.Stack.HalfOpen == 0 && s.Stack.Established == 0
		})
	}
	do(flows / 10) // pools and maps grow to their size
	before := measure()
	do(flows)
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d flows were not as the server has them", n, flows*11/10)
	}
	// A flow that left 200 bytes would come to 2 MB. Timers of netstack hold
	// what they will not need any more for some seconds.
	var after usage
	defer func() {
		if t.Failed() {
			t.Logf("before: %+v, after: %+v", before, after)
		}
	}()
	enginetest.Eventually(t, "goroutines, files and memory are as before", func() bool {
		after = measure()
		return after.goroutines <= before.goroutines+5 && after.files <= before.files+5 &&
			after.heap <= before.heap+int64(flows)*200
	})
	if s := l.Engine.Stats(); s.Pool.Pins != 0 {
		t.Errorf("%d leases are pinned", s.Pool.Pins)
	}
}

func readOne(r io.Reader) error {
	_, err := io.ReadFull(r, make([]byte, 1))
	return err
}

// usage is what this process uses now; files is 0 where that cannot be known.
type usage struct {
	goroutines, files int
	heap              int64
}

func measure() usage {
	runtime.GC()
	runtime.GC() // what the first has put into the victims of pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, _ := os.ReadDir("/proc/self/fd")
	return usage{runtime.NumGoroutine(), len(files), int64(m.HeapAlloc)}
}

// TestServers: run must know to whom the machine itself opens connections: the
// servers that are reached directly and the resolvers, by address.
func TestServers(t *testing.T) {
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"proxy.test": netip.MustParseAddr("192.0.2.9"), "fake.test": netip.MustParseAddr("198.18.0.7")})
	text := `
upstreams:
  named:  {url: "socks5h://proxy.test", mark: 0x20}
  behind: {url: "socks5h://other.test", via: named}
  plain:  "socks4a://192.0.2.1:99"
  line2:  {url: direct}
rules: [{to: a.test, via: behind}, {to: b.test, via: plain}, {via: line2}]
dns: {resolvers: ["%s"]}
log: {to: [stderr, {syslog: "udp:192.0.2.77"}]}
`
	got, err := engine.Servers(enginetest.Within(t), enginetest.Parse(t, text, dns.Addr), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := []engine.Server{
		{Name: "upstream named", Addr: netip.MustParseAddr("192.0.2.9"), Mark: 0x20},
		{Name: "upstream plain", Addr: netip.MustParseAddr("192.0.2.1")},
		{Name: "log.to udp:192.0.2.77:514", Addr: netip.MustParseAddr("192.0.2.77")},
		{Name: "resolver " + dns.Addr.String(), Addr: enginetest.Loopback},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
	for _, c := range []struct{ name, want string }{
		{"unknown.test", "upstream named: "},
		{"fake.test", "within the range of fake addresses"},
	} {
		_, err := engine.Servers(enginetest.Within(t), enginetest.Parse(t, strings.ReplaceAll(text, "proxy.test", c.name), dns.Addr), 0)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with the server %s: %v, want %q", c.name, err, c.want)
		}
	}
}
