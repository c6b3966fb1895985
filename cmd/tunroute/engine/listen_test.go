package engine_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/flow"
	"tunroute/router/inbound/users"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// freePort returns a port at which nobody listens.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// serve runs an engine without a device until the test ends. SELF in its config
// is where it listens, which is returned.
func serve(t *testing.T, cfg string) netip.AddrPort {
	t.Helper()
	return serveWith(t, cfg, engine.Options{})
}

// serveWith is serve with options but Ready.
func serveWith(t *testing.T, cfg string, o engine.Options) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(enginetest.Loopback, freePort(t))
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	e, err := engine.New(enginetest.Parse(t, "%s", strings.ReplaceAll(cfg, "SELF", at.String())), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); run.Wait() })
	enginetest.Receive(t, "ready", ready)
	return at
}

// clientOf returns a client of a SOCKS5 server.
func clientOf(t *testing.T, at netip.AddrPort) *outbound.Socks {
	t.Helper()
	direct, err := outbound.NewDirect(outbound.DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := outbound.NewSocks(outbound.SocksOptions{Name: "us", Version: socks.Version5, RemoteNames: true, Server: flow.AddrTarget(at), Via: direct})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// echo serves until the test ends.
func echo(t *testing.T) netip.AddrPort {
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
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestLimitsOfListeners: a client of a listener is held to the limits of its rule, and told
// of a general failure where it is one too many.
func TestLimitsOfListeners(t *testing.T) {
	target := echo(t)
	c := clientOf(t, serve(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
rules:
- {to: 127.0.0.1, port: %d, via: direct, limits: {sessions: 1}, bandwidth: {up: 200kB/s}}
`, target.Port())))
	conn, err := c.DialTCP(enginetest.Within(t), flow.AddrTarget(target))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := c.DialTCP(enginetest.Within(t), flow.AddrTarget(target)); !errors.Is(err, socks.ReplyGeneral) {
		t.Errorf("one too many: %v, want a general failure", err)
	}
	const size = 60_000 // with a burst of 20,000 and a quantum: a fifth of a second less
	began := time.Now()
	go func() { conn.Write(make([]byte, size)); conn.CloseWrite() }()
	if n, err := io.Copy(io.Discard, conn); n != size || err != nil {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("%d bytes at 200 kB/s took %v", size, took)
	}
}

// TestServerAlone: without an interface, clients of a listener go by the rules, and
// hear what became of their requests.
func TestServerAlone(t *testing.T) {
	target := echo(t)
	c := clientOf(t, serve(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
rules:
- {to: [127.0.0.1, localhost], port: %d, via: direct}
- {to: 127.0.0.3, via: drop}
- {to: 127.0.0.2, via: direct}
`, target.Port())))
	for _, host := range []string{"127.0.0.1", "localhost"} {
		to, _ := flow.NewTarget(host, target.Port())
		conn, err := c.DialTCP(enginetest.Within(t), to)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
			t.Errorf("%s: got %q, %v", host, got, err)
		}
		conn.Close()
	}
	for addr, want := range map[string]error{
		"127.0.0.1": socks.ReplyRuleset, // another port
		"127.0.0.2": socks.ReplyRefused,
		"127.0.0.3": io.EOF,
		// Without an interface nobody has been given a fake address.
		"198.18.0.9": socks.ReplyRuleset,
	} {
		to := flow.AddrTarget(netip.AddrPortFrom(netip.MustParseAddr(addr), freePort(t)))
		if _, err := c.DialTCP(enginetest.Within(t), to); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", addr, err, want)
		}
	}
}

// TestUnspecifiedTarget: 0.0.0.0 and [::], which are this host to connect(2), lead nowhere,
// or a rule about 127.0.0.0/8 could be passed by; of BIND they are anybody.
func TestUnspecifiedTarget(t *testing.T) {
	target := echo(t)
	at := serve(t, `
tun: off
listen: {socks: SELF}
rules: [{to: ["127.0.0.0/8", "::1"], via: reject}, {via: direct}]
`)
	// ask sends a request and returns its connection and the reply to it.
	ask := func(command socks.Command, host string, port uint16) (net.Conn, byte, netip.AddrPort) {
		t.Helper()
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		b := []byte{5, 1, 0, 5, byte(command), 0}
		if a, err := netip.ParseAddr(host); err != nil {
			b = append(append(b, 3, byte(len(host))), host...)
		} else if a.Is4() {
			b = append(append(b, 1), a.AsSlice()...)
		} else {
			b = append(append(b, 4), a.AsSlice()...)
		}
		conn.Write(append(b, byte(port>>8), byte(port)))
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		reply, bound := readReply(t, conn)
		return conn, reply, bound
	}
	for host, want := range map[string]socks.ReplyError{
		"127.0.0.1":        socks.ReplyRuleset,
		"0.0.0.0":          socks.ReplyHostUnreachable,
		"::":               socks.ReplyHostUnreachable,
		"::ffff:0.0.0.0":   socks.ReplyHostUnreachable,
		"[::ffff:0.0.0.0]": socks.ReplyHostUnreachable, // as a name
	} {
		if _, reply, _ := ask(socks.Connect, host, target.Port()); reply != byte(want) {
			t.Errorf("%s: reply %d, want %d", host, reply, want)
		}
	}
	for _, host := range []string{"0.0.0.0", "::"} {
		conn, reply, bound := ask(socks.Bind, host, 0)
		if reply != 0 {
			t.Errorf("bind %s: reply %d", host, reply)
			continue
		}
		from, err := net.Dial("tcp", netip.AddrPortFrom(enginetest.Loopback, bound.Port()).String())
		if err != nil {
			t.Fatal(err)
		}
		if reply, peer := readReply(t, conn); reply != 0 || peer.String() != from.LocalAddr().String() {
			t.Errorf("bind %s: reply %d from %v, want 0 from %v", host, reply, peer, from.LocalAddr())
		}
		from.Close()
	}
}

// readReply reads the reply to a SOCKS5 request.
func readReply(t *testing.T, r io.Reader) (reply byte, bound netip.AddrPort) {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, map[byte]int{1: 4, 4: 16}[head[3]]+2)
	if _, err := io.ReadFull(r, rest); err != nil {
		t.Fatal(err)
	}
	a, _ := netip.AddrFromSlice(rest[:len(rest)-2])
	return head[1], netip.AddrPortFrom(a.Unmap(), uint16(rest[len(rest)-2])<<8|uint16(rest[len(rest)-1]))
}

// TestChainTellsTheTruth: what becomes of a flow at the last of several servers of ours
// is what the program in front of the first hears, and so is a server in between that
// cannot be reached.
func TestChainTellsTheTruth(t *testing.T) {
	last := serve(t, `
tun: off
listen: {socks: SELF}
rules: [{to: 127.0.0.66, via: reject}, {via: direct}]
`)
	middle := serve(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
upstreams: {last: "socks5h://%s"}
rules: [{via: last}]
`, last))
	first := serve(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
upstreams:
  middle: "socks5h://%s"
  gone: "socks5h://127.0.0.1:%d"
rules: [{to: gone.invalid, via: gone}, {via: middle}]
`, middle, freePort(t)))
	for i, at := range []netip.AddrPort{last, middle, first} {
		// A program behind a TUN of yet another one hears what Errno says.
		c := clientOf(t, at)
		for host, want := range map[string]struct {
			reply socks.ReplyError
			errno syscall.Errno
		}{
			"127.0.0.1":  {socks.ReplyRefused, syscall.ECONNREFUSED},
			"nx.invalid": {socks.ReplyHostUnreachable, syscall.EHOSTUNREACH},
			"127.0.0.66": {socks.ReplyRuleset, syscall.EACCES},
		} {
			to, _ := flow.NewTarget(host, freePort(t))
			_, err := c.DialTCP(enginetest.Within(t), to)
			if !errors.Is(err, want.reply) || outbound.Errno(err) != want.errno {
				t.Errorf("%s through %d: %v, %v, want %v", host, i+1, err, outbound.Errno(err), want)
			}
		}
	}
	to, _ := flow.NewTarget("gone.invalid", 80)
	if _, err := clientOf(t, first).DialTCP(enginetest.Within(t), to); !errors.Is(err, socks.ReplyGeneral) {
		t.Errorf("a server that is gone: %v, want reply 1", err)
	}
}

// TestListenerTransports: TLS with a certificate that is replaced, and a unix socket
// where a dead one lies, with users from a file.
func TestListenerTransports(t *testing.T) {
	dir := t.TempDir()
	target := echo(t)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	newCertificate := func() *x509.CertPool {
		pair, trust, text := outboundtest.Certificate(t, "localhost")
		write("key.pem", string(outboundtest.Key(t, pair)))
		write("cert.pem", string(text))
		return trust
	}
	trust := newCertificate()
	usersFile := write("users", "alice:"+users.Hash("secret")+":staff\n")
	path := filepath.Join(dir, "socks")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	secure := serve(t, fmt.Sprintf(`
tun: off
listen:
  socks:
  - {at: SELF, name: local, users: %[2]s, tls: {cert: %[3]s/cert.pem, key: %[3]s/key.pem}}
  - {at: "unix:%[1]s", name: local, users: %[2]s, mode: 0660}
rules: [{group: staff, inbound: local, via: direct}]
`, path, usersFile, dir))
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	way, err := outbound.NewUnix(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	for password, ok := range map[string]bool{"secret": true, "wrong": false} {
		c, err := outbound.NewSocks(outbound.SocksOptions{Name: "us", Version: socks.Version5, Via: way, User: "alice", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.DialTCP(enginetest.Within(t), flow.AddrTarget(target))
		if (err == nil) != ok || err != nil && !errors.Is(err, socks.ErrAuth) {
			t.Errorf("%s: %v", password, err)
		}
		if err == nil {
			conn.Close()
		}
	}
	direct, err := outbound.NewDirect(outbound.DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	overTLS := func(trust *x509.CertPool) error {
		c, err := outbound.NewSocks(outbound.SocksOptions{
			Name: "us", Version: socks.Version5, Via: direct, Server: flow.AddrTarget(secure), User: "alice", Password: "secret", TLS: &tls.Config{RootCAs: trust},
		})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.DialTCP(enginetest.Within(t), flow.AddrTarget(target))
		if err == nil {
			conn.Close()
		}
		return err
	}
	if err := overTLS(trust); err != nil {
		t.Error(err)
	}
	trust = newCertificate()
	enginetest.Eventually(t, "the new certificate", func() bool { return overTLS(trust) == nil })

	e, err := engine.New(enginetest.Parse(t, "tun: off\nlisten: {socks: \"unix:%s\"}\nrules: [{via: direct}]\n", path), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, engine.ErrInUse) {
		t.Errorf("a second server at the socket: %v", err)
	}
}
