package engine_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// lie is what a server does with one connection.
type lie struct {
	name string
	do   func(*net.TCPConn)
	// What a program sees whose flow ends at that server: the errno of its connect,
	// or of its read where it was connected, and what it read.
	connect, read syscall.Errno
	said          string
	silent        bool // it goes on until we give up, which takes time
}

// answers writes one text for each message that it gets, in single bytes if bytewise
// is set, and then ends.
func answers(bytewise bool, end func(*net.TCPConn), texts ...string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		b := make([]byte, 1024)
		for _, text := range texts {
			if _, err := c.Read(b); err != nil {
				return
			}
			n := len(text)
			if bytewise {
				n = 1
			}
			for ; text != ""; text = text[min(n, len(text)):] {
				io.WriteString(c, text[:min(n, len(text))])
			}
		}
		end(c)
	}
}

// liar is a server that passes connections on to an honest one, but for the first that
// comes when it has a lie.
type liar struct {
	addr netip.AddrPort
	lie  atomic.Pointer[told]
}

// told is a lie to one connection.
type told struct {
	do          func(*net.TCPConn)
	begun, over chan struct{} // closed
}

func startLiar(t *testing.T, honest netip.AddrPort) *liar {
	s := new(liar)
	s.addr = outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		if l := s.lie.Swap(nil); l != nil {
			close(l.begun)
			l.do(c)
			close(l.over)
			return
		}
		conn, err := net.Dial("tcp", honest.String())
		if err != nil {
			return
		}
		defer conn.Close()
		var up sync.WaitGroup
		up.Go(func() {
			io.Copy(conn, c)
			conn.(*net.TCPConn).CloseWrite()
		})
		io.Copy(c, conn)
		c.CloseWrite()
		up.Wait()
	})
	return s
}

// openSockets returns how many sockets this process has open, 0 where nobody says. Pipes
// are not counted: package net keeps some for later.
func openSockets() (n int) {
	const dir = "/proc/self/fd/"
	list, _ := os.ReadDir(dir)
	for _, f := range list {
		if to, _ := os.Readlink(dir + f.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// TestLiesCostTheirOwnFlow: while a server lies to one flow, or says nothing at all,
// others go on, through other servers and through the same one; the flow that it lies
// to ends as its program should see it, or works where the lie is none; and nothing is
// left of it. All that as the last server, and in the middle of a chain, where a lie
// breaks the way whatever it is.
func TestLiesCostTheirOwnFlow(t *testing.T) {
	const (
		welcome  = "220 welcome\r\n"
		none     = "\x05\x00"
		granted  = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
		granted4 = "\x00\x5a\x00\x00\x00\x00\x00\x00"
		ok       = "HTTP/1.1 200 OK\r\n\r\n"
		sick     = syscall.EHOSTUNREACH
	)
	long := "\x05\x00\x00\x03\xff" + strings.Repeat("a", 255) + "\x00\x50"
	hangUp := func(*net.TCPConn) {}
	wait := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	reset := func(c *net.TCPConn) { c.SetLinger(0) }
	for _, p := range []struct {
		scheme string
		lies   []lie
	}{
		{"socks5h", []lie{
			{name: "wrong version", do: answers(false, wait, "\x04\x00"), connect: sick},
			{name: "wrong method", do: answers(false, wait, "\x05\x02"), connect: sick},
			{name: "wrong version of the reply", do: answers(false, wait, none, "\x04\x00\x00\x01"), connect: sick},
			{name: "single bytes", do: answers(true, hangUp, none, granted+welcome), said: welcome},
			{name: "262 bytes", do: answers(false, hangUp, none, long+welcome), said: welcome},
			{name: "payload in the same segment", do: answers(false, hangUp, none, granted+welcome), said: welcome},
			{name: "silence", do: wait, silent: true, connect: sick},
			{name: "silence behind the method", do: answers(false, wait, none), silent: true, connect: sick},
			{name: "silence in the reply", do: answers(false, wait, none, long[:100]), silent: true, connect: sick},
			{name: "success then RST", do: answers(false, reset, none, granted), read: syscall.ECONNRESET},
			{name: "refused", do: answers(false, wait, none, "\x05\x05"), connect: syscall.ECONNREFUSED},
		}},
		{"socks4a", []lie{
			{name: "wrong version", do: answers(false, wait, "\x05\xff"), connect: sick},
			{name: "single bytes", do: answers(true, hangUp, granted4+welcome), said: welcome},
			{name: "payload in the same segment", do: answers(false, hangUp, granted4+welcome), said: welcome},
			{name: "silence", do: wait, silent: true, connect: sick},
			{name: "silence in the reply", do: answers(false, wait, granted4[:4]), silent: true, connect: sick},
			{name: "success then RST", do: answers(false, reset, granted4), read: syscall.ECONNRESET},
		}},
		{"http", []lie{
			{name: "another protocol", do: answers(false, wait, "SSH-2.0-x\r\n"), connect: sick},
			{name: "no end of the head", do: answers(false, wait, ok[:17]+strings.Repeat("X: y\r\n", 4000)), connect: sick},
			{name: "single bytes", do: answers(true, hangUp, ok+welcome), said: welcome},
			{name: "payload in the same segment", do: answers(false, hangUp, ok+welcome), said: welcome},
			{name: "silence", do: wait, silent: true, connect: sick},
			{name: "silence in the reply", do: answers(false, wait, ok[:12]), silent: true, connect: sick},
			{name: "success then RST", do: answers(false, reset, ok), read: syscall.ECONNRESET},
		}},
	} {
		t.Run(p.scheme, func(t *testing.T) {
			echo := echoTCP(t)
			names := outboundtest.Names{"echo.test": {enginetest.Loopback}, "last.test": {enginetest.Loopback}, "middle.test": {enginetest.Loopback}}
			honest := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names}).Target().AddrPort()
			behind := honest
			if p.scheme == "http" {
				behind = outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names, HTTP: true}).Target().AddrPort()
			}
			server := startLiar(t, behind)
			l := enginetest.Start(t, `
upstreams:
  honest: socks5h://%[1]s
  liar:   %[2]s://%[3]s
  middle: {url: "%[2]s://%[3]s", via: honest}
  after:  {url: "socks5h://%[1]s", via: middle}
rules:
  - {to: last.test, via: liar}
  - {to: middle.test, via: after}
  - {via: honest}
timeouts: {negotiate: 5s, request: 5s}
`, honest, p.scheme, server.addr)
			others := func(t *testing.T) {
				t.Helper()
				for _, name := range []string{"echo.test", "last.test", "middle.test"} {
					if got := exchange(t, l.MustDial("ip4", name, echo.Port()), "others"); got != "hello others" {
						t.Errorf("%s: %q, want %q", name, got, "hello others")
					}
				}
			}
			others(t)
			settled := func() bool {
				s := l.Engine.Stats()
				return s.Pool.Pins == 0 && s.Router.Flows == 0
			}
			enginetest.Eventually(t, "the first flows are over", settled)
			sockets := openSockets()
			// begin has the server lie to a flow. What comes back waits for its end.
			begin := func(t *testing.T, tt lie, at string) (end func(*testing.T)) {
				want := tt
				if at == "middle" {
					want.connect, want.read, want.said = sick, 0, ""
				}
				lied := &told{tt.do, make(chan struct{}), make(chan struct{})}
				to := netip.AddrPortFrom(l.Lookup("ip4", at+".test"), 80)
				ctx := enginetest.Within(t)
				type result struct {
					connect, read error
					said          string
				}
				results := make(chan result, 1)
				server.lie.Store(lied)
				go func() {
					var r result
					c, err := l.Host.DialTCP(ctx, netip.AddrPort{}, to)
					if r.connect = err; err == nil {
						c.SetDeadline(time.Now().Add(enginetest.Patience))
						var b []byte
						b, r.read = io.ReadAll(c)
						r.said = string(b)
						c.Close()
					}
					results <- r
				}()
				enginetest.Receive(t, "the lie", lied.begun)
				return func(t *testing.T) {
					t.Helper()
					got := enginetest.Receive(t, "the end of the flow", results)
					enginetest.Receive(t, "the end of its connection", lied.over)
					if errors.Is(want.read, syscall.ECONNRESET) && errors.Is(got.connect, syscall.ECONNRESET) {
						return // the RST came before the client had looked
					}
					if !sameErrno(got.connect, want.connect) || !sameErrno(got.read, want.read) || got.said != want.said {
						t.Errorf("%s, %s: connect: %v, read: %q, %v, want connect: %v, read: %q, %v", tt.name, at,
							got.connect, got.said, got.read, want.connect, want.said, want.read)
					}
				}
			}
			var silences []func(*testing.T)
			for _, tt := range p.lies {
				for _, at := range []string{"last", "middle"} {
					if tt.silent {
						silences = append(silences, begin(t, tt, at))
						others(t)
					}
				}
			}
			for _, tt := range p.lies {
				for _, at := range []string{"last", "middle"} {
					if !tt.silent {
						end := begin(t, tt, at)
						others(t)
						end(t)
					}
				}
			}
			for _, end := range silences {
				end(t)
			}
			enginetest.Eventually(t, "nothing is left of the flows", func() bool { return settled() && openSockets() <= sockets })
		})
	}
}

// sameErrno tells whether err is an errno, or nil for 0.
func sameErrno(err error, want syscall.Errno) bool {
	if want == 0 {
		return err == nil
	}
	return errors.Is(err, want)
}

// TestRelayThatLies: what a server's relay sends that is no answer is dropped, and
// neither ends the conversation nor comes to another.
func TestRelayThatLies(t *testing.T) {
	relay := outboundtest.ServeUDP(t, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, b []byte) {
		for _, junk := range []string{
			"", "\x00\x00\x00",
			"\x00\x00\x00\x03\xffa name that is not as long", // an oversized header
			"\x00\x00\x00\x04\x20\x01\x0d\xb8",               // an address that is cut
			"\x00\x00\x00\x09\xc0\x00\x02\x50\x00\x35what",   // of no type
			"\x00\x00\x01\x01\xc0\x00\x02\x50\x00\x35what",   // a fragment
			strings.Repeat("\xff", 9000),
		} {
			c.WriteToUDPAddrPort([]byte(junk), from)
		}
		c.WriteToUDPAddrPort(b, from) // as if the target had said it
	})
	server := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		answers(false, func(c *net.TCPConn) { io.Copy(io.Discard, c) }, "\x05\x00",
			string(socks.AppendReply(nil, socks.ReplySucceeded, relay)))(c)
	})
	echo := echoUDP(t)
	honest := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: outboundtest.Names{"echo.test": {enginetest.Loopback}}})
	l := enginetest.Start(t, `
upstreams: {liar: "socks5h://%s", honest: "socks5h://%s"}
rules: [{to: 192.0.2.80, via: liar}, {via: honest}]
`, server, honest.Target())
	for _, to := range []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.80:500"), netip.AddrPortFrom(l.Lookup("ip4", "echo.test"), echo.Port()),
		netip.MustParseAddrPort("192.0.2.80:501"),
	} {
		c, err := l.Host.DialUDP(netip.AddrPort{}, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(enginetest.Patience))
		for _, said := range []string{"first", "second", "third"} {
			io.WriteString(c, said)
			b := make([]byte, 100)
			if n, err := c.Read(b); err != nil || string(b[:n]) != said {
				t.Errorf("%v: %q, %v, want %q", to, b[:n], err, said)
			}
		}
	}
}
