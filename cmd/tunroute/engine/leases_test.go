package engine_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/stack/stacktest"
)

// A range with fewer addresses than there are live names: who comes too late is
// told so, flows that are open do not notice, and when some have ended and their
// quarantine has, there are addresses again.
func TestMoreNamesThanAddresses(t *testing.T) {
	const names, room = 300, 239 // of a /24
	echo := echo(t)
	far := outboundtest.Names{}
	name := func(i int) string { return fmt.Sprintf("n%d.test", i) }
	for i := range names {
		far[name(i)] = []netip.Addr{enginetest.Loopback}
	}
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: far})
	l := enginetest.Start(t, `
upstreams: {far: socks5h://%s}
rules: [{via: far}]
dns: {range4: 10.99.0.0/24, quarantine: 1s}
`, server.Target())
	live := make([]*stacktest.Conn, names)
	for i := range names {
		if i < room {
			live[i] = l.MustDial("ip4", name(i), echo.Port())
			continue
		}
		got, err := l.Resolver("udp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", name(i))
		if err == nil || isNotFound(err) {
			t.Fatalf("name %d: %v, %v, want that the server fails", i, got, err)
		}
	}
	if s := l.Engine.Stats().Pool; s.Capacity != room || s.Leases != room || s.Pins != room || s.Evicted != 0 || s.Exhausted < names-room {
		t.Errorf("stats %+v", s)
	}
	check := func(i int) {
		t.Helper()
		word := fmt.Appendf(nil, "word of %d", i)
		got := make([]byte, len(word))
		if _, err := live[i].Write(word); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
		if _, err := io.ReadFull(live[i], got); err != nil || !bytes.Equal(got, word) {
			t.Fatalf("flow %d: %q, %v, want %q", i, got, err, word)
		}
	}
	for i := range room {
		check(i)
	}
	for i := range names - room {
		if err := live[i].CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, live[i]); err != nil {
			t.Fatal(err)
		}
	}
	// After a second and that of the TTL the addresses of the first ones are free.
	for i := room; i < names; i++ {
		enginetest.Eventually(t, "an address for name "+name(i), func() bool {
			_, err := l.Resolver("udp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", name(i))
			return err == nil
		})
		live[i] = l.MustDial("ip4", name(i), echo.Port())
	}
	for i := names - room; i < names; i++ {
		check(i)
	}
	if s := l.Engine.Stats().Pool; s.Leases != room || s.Evicted != names-room || s.Pins != room {
		t.Errorf("stats %+v", s)
	}
}

// An engine keeps its leases in a file, and gives it back when it ends, or cannot
// begin; another one is refused meanwhile, or warned of.
func TestLeasesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	const text = "rules: [{via: reject}]\n"
	start := func(text string, o engine.Options) (*engine.Engine, *stacktest.Host, error) {
		host := stacktest.NewHost(0)
		t.Cleanup(host.Close)
		o.Device, o.Leases = host.Device(), path
		e, err := engine.New(enginetest.Parse(t, "%s", text), o)
		return e, host, err
	}
	run := func(e *engine.Engine, host *stacktest.Host, f func(l *enginetest.Lab)) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(&enginetest.Lab{Host: host, Engine: e})
		stop()
		running.Wait()
	}
	look := func(l *enginetest.Lab) netip.Addr {
		t.Helper()
		got, err := l.Resolver("udp", enginetest.AnyServer).LookupNetIP(enginetest.Within(t), "ip4", "a.test")
		if err != nil || len(got) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		return got[0]
	}
	var first netip.Addr
	e, host, err := start("dns: {key: one}\n"+text, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	run(e, host, func(l *enginetest.Lab) {
		first = look(l)
		if _, _, err := start(text, engine.Options{LeasesGiven: true}); err == nil || !strings.Contains(err.Error(), "dns.state: leases in "+path+": another tunroute") {
			t.Errorf("a second one: %v", err)
		}
		var log bytes.Buffer
		e, host, err := start("dns: {key: two}\n"+text, engine.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil || !strings.Contains(log.String(), "level=WARN") {
			t.Fatalf("a second one that nobody has given a file: %v, log %s", err, &log)
		}
		run(e, host, func(l *enginetest.Lab) {
			if other := look(l); other == first {
				t.Errorf("another key gives the same address %v", other)
			}
		})
	})
	// One that cannot begin gives it back too.
	taken := echoTCP(t)
	e, _, err = start(fmt.Sprintf("dns: {listen: ['%v']}\n%s", taken, text), engine.Options{LeasesGiven: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); err == nil {
		t.Error("it runs where somebody else listens")
	}
	e, host, err = start("dns: {key: other}\n"+text, engine.Options{LeasesGiven: true})
	if err != nil {
		t.Fatal(err)
	}
	run(e, host, func(l *enginetest.Lab) {
		if again := look(l); again != first {
			t.Errorf("a.test was at %v, is at %v", first, again)
		}
	})
}

// What a client of dns.listen is told of while an engine ends is in the file.
func TestLeasesOfTheLastMomentAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	for round := range 5 {
		at := outboundtest.ClosedPort(t, enginetest.Loopback)
		start := func(key string) *engine.Engine {
			t.Helper()
			cfg := enginetest.Parse(t, "tun: off\nrules: [{via: reject}]\ndns: {listen: ['%s'], key: '%s%d'}\n", at, key, round)
			e, err := engine.New(cfg, engine.Options{Leases: path, LeasesGiven: true})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		e := start("one")
		ctx, stop := context.WithCancel(t.Context())
		var running, asking sync.WaitGroup
		running.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		var mu sync.Mutex
		told := make(map[string]netip.Addr)
		for g := range 8 {
			asking.Go(func() {
				r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", at.String())
				}}
				for i := 0; ; i++ {
					name := fmt.Sprintf("n%d-%d-%d.test", round, g, i)
					got, err := r.LookupNetIP(enginetest.Within(t), "ip4", name+".")
					if err != nil {
						if ctx.Err() != nil {
							return
						}
						continue // it does not listen yet
					}
					mu.Lock()
					told[name] = got[0].Unmap()
					if len(told) == 100 {
						stop()
					}
					mu.Unlock()
				}
			})
		}
		asking.Wait()
		running.Wait()
		again := start("two")
		for name, addr := range told {
			if l, ok := again.FindLease(name); !ok || l.V4 != addr {
				t.Errorf("round %d: %s was told to be at %v, is at %+v, %v", round, name, addr, l, ok)
			}
		}
		ctx, stop = context.WithCancel(t.Context())
		stop()
		if err := again.Run(ctx); err != nil {
			t.Fatal(err)
		}
	}
}
