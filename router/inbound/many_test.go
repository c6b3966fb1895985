package inbound_test

import (
	"context"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

var idleClients = flag.Int("idle", 1500, "clients of TestIdleClientsCostLittle; 9500 for all")

var many = flag.Int("many", 2000, "connects in a row of TestManyConnectsLeaveNothing; 200000 for all")

// socksTo speaks SOCKS5 with a server of ours over c, for a target.
func socksTo(c net.Conn, to netip.AddrPort) error {
	b := socks.AppendMethods(nil, socks.MethodNone)
	b, err := socks.AppendRequest(b, socks.Connect, socks.Addr{IP: to.Addr(), Port: to.Port()})
	if err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := socks.ReadMethod(c, socks.MethodNone); err != nil {
		return err
	}
	_, err = socks.ReadReply(c)
	return err
}

// sink accepts and keeps until the other end closes.
func sink(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// direct starts a server that sends all directly.
func direct(t *testing.T) string {
	t.Helper()
	d, err := outbound.NewDirect(outbound.DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveRouter(t, d, inbound.Listener{Listener: l, Name: "lan", Methods: []inbound.Method{inbound.None{}}})
	return l.Addr().String()
}

// TestManyConnectsLeaveNothing: connection after connection, some of them broken, and
// neither goroutines nor files are left.
func TestManyConnectsLeaveNothing(t *testing.T) {
	addr, target := direct(t), sink(t)
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip("no /proc")
		}
		return len(list)
	}
	before := files()
	var work sync.WaitGroup
	const workers = 8
	for w := range workers {
		work.Go(func() {
			for i := range *many / workers {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				// With a RST: 200,000 in TIME_WAIT would take all ports.
				c.(*net.TCPConn).SetLinger(0)
				switch (i + w) % 4 {
				case 0: // leaves in the middle
					c.Write([]byte("\x05\x01"))
				default:
					if err := socksTo(c, target); err != nil {
						t.Error(err)
					}
					c.Write([]byte("hello"))
				}
				c.Close()
			}
		})
	}
	work.Wait()
	deadline := time.Now().Add(patience)
	const pipes = 128 // that are kept for the next time
	for files() > before+pipes || runtime.NumGoroutine() > 64 {
		if time.Now().After(deadline) {
			t.Fatalf("%d files, %d before; %d goroutines", files(), before, runtime.NumGoroutine())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestIdleClientsCostLittle: many clients that have connected and say no more, and as
// many that are connected and silent, take 8 KB each at most.
func TestIdleClientsCostLittle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes thousands of connections")
	}
	const most = 8 << 10
	clients := *idleClients
	memory := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	run := func(name string, connect func(net.Conn) error) {
		t.Run(name, func(t *testing.T) {
			addr := direct(t)
			// Of what is measured, the test's own end is a part: so much as a
			// connection of its own costs.
			before := memory()
			var conns []net.Conn
			for range clients {
				c := dial(t, addr)
				if err := connect(c); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
			}
			each := (memory() - before) / int64(clients)
			t.Logf("%d bytes for each of %d, with the client's own end", each, clients)
			if each > most {
				t.Errorf("%d bytes each, want %d at most", each, most)
			}
			runtime.KeepAlive(conns)
		})
	}
	target := quietSink(t)
	run("silent", func(net.Conn) error { return nil })
	run("greeted", func(c net.Conn) error {
		c.Write([]byte(hello(0)))
		_, err := io.ReadFull(c, make([]byte, 2))
		return err
	})
	run("connected", func(c net.Conn) error { return socksTo(c, target) })
}

// quietSink is a sink that has no goroutine for a connection, so that what is measured
// is not the test's.
func quietSink(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	var conns []net.Conn
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	})
	t.Cleanup(func() {
		l.Close()
		work.Wait()
		for _, c := range conns {
			c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestNeverReads: a client that asks and never reads its answers holds up nobody else.
func TestNeverReads(t *testing.T) {
	addr, target := direct(t), sink(t)
	for range 20 {
		c := dial(t, addr)
		c.SetReadBuffer(1)
		c.Write([]byte(hello(0)))
		go c.Write(make([]byte, 1<<20))
	}
	c := dial(t, addr)
	if err := socksTo(c, target); err != nil {
		t.Error(err)
	}
}

// FuzzServe has a server take any bytes at all, from clients that then close: it never
// falls over, and hands on only what is fit to be looked at.
func FuzzServe(f *testing.F) {
	for _, s := range []string{
		hello(0) + connect4, hello(0) + connectDNS, hello(0, 2) + login + connect4, hello(2) + badLogin,
		"\x04\x01\x00\x50\xc0\x00\x02\x07u\x00early", "\x04\x01\x01\xbb\x00\x00\x00\x01\x00a.test\x00",
		head + "\r\n", head + basic + "\r\n", "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01", "",
		hello(0) + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", hello(0) + "\x05\x02\x00\x01\xc0\x00\x02\x07\x00\x50",
	} {
		f.Add([]byte(s))
	}
	s, err := inbound.New(inbound.Options{
		Negotiate: 5 * time.Second,
		Serve: func(_ context.Context, fl flow.Flow, c inbound.Call) {
			if fl.Target.Name == "" && !fl.Target.Addr.IsValid() || fl.Inbound != "fuzz" {
				panic("a flow without a target")
			}
			if fl.Target.Name != "" {
				if name, err := flow.CanonicalName(fl.Target.Name); err != nil || name != fl.Target.Name {
					panic("a name that is none: " + fl.Target.Name)
				}
			}
			conn, _, err := c.Accept(netip.AddrPort{})
			if err == nil {
				conn.Close()
			}
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		s.Run(ctx, []inbound.Listener{{Listener: l, Name: "fuzz", Methods: []inbound.Method{inbound.Password{Checker: users{}}, inbound.None{}}}})
	})
	f.Cleanup(func() { stop(); run.Wait() })
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal("the server has gone, or this machine has no port left: ", err)
		}
		defer c.Close()
		c.(*net.TCPConn).SetLinger(0)
		c.SetDeadline(time.Now().Add(patience))
		c.Write(in)
		c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
			t.Fatalf("%q: the server does not end", in)
		}
	})
}
