package enginetest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/stack/stacktest"
)

// Patience is how long a test waits for what must happen. It ends a test that
// has failed; no test that passes waits for it.
const Patience = 30 * time.Second

// Loopback is where servers of tests listen.
var Loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// AnyServer is a DNS server that a client machine was told of by somebody; it
// does not exist.
var AnyServer = netip.MustParseAddrPort("203.0.113.53:53")

// Within returns a context that ends with the test, or with Patience.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits until ok holds, for what nothing tells.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := Within(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// Receive returns the next value of ch.
func Receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-Within(t).Done():
		t.Fatalf("never: %s", what)
		panic("not reached")
	}
}

// Parse reads a config; args are put into it as by Sprintf.
func Parse(t testing.TB, text string, args ...any) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test.yaml", fmt.Appendf(nil, text, args...))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Lab is a client machine and an engine that runs.
type Lab struct {
	t      testing.TB
	Host   *stacktest.Host // nil after StartOn
	Engine *engine.Engine

	flows  chan Record
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // of Run, when ended is closed
}

// Start runs an engine with a config, see [Parse], until the end of the test,
// which fails if that is not in order.
func Start(t testing.TB, text string, args ...any) *Lab {
	t.Helper()
	host := stacktest.NewHost(0)
	t.Cleanup(host.Close)
	l := StartOn(t, host.Device(), Parse(t, text, args...))
	l.Host = host
	return l
}

// StartOn is Start with a test in place of the client machine.
func StartOn(t testing.TB, wire *stacktest.Wire, cfg *config.Config) *Lab {
	t.Helper()
	l := &Lab{t: t, flows: make(chan Record, 4096), ended: make(chan struct{})}
	var err error
	l.Engine, err = engine.New(cfg, engine.Options{Device: wire, Logger: slog.New(flowLog{l.flows, slog.Level(cfg.Log.Level)})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() {
		defer close(l.ended)
		l.err = l.Engine.Run(ctx)
	}()
	t.Cleanup(l.Stop)
	return l
}

// Stop ends the engine and waits until it has. The test fails if that is not in
// order.
func (l *Lab) Stop() {
	l.t.Helper()
	l.cancel()
	Receive(l.t, "Run returns", l.ended)
	if l.err != nil {
		l.t.Errorf("Run: %v", l.err)
	}
}

// Record is a line of the log about a flow, as the log has it.
type Record map[string]string

// Next returns the record of the next flow that ends.
func (l *Lab) Next() Record {
	l.t.Helper()
	return Receive(l.t, "the record of a flow", l.flows)
}

// Has fails the test unless the record has these keys and values; the value ""
// is a key that is not there. Of err a part is enough.
func (r Record) Has(t testing.TB, want Record) {
	t.Helper()
	for k, v := range want {
		if got := r[k]; got != v && (k != "err" || v == "" || !strings.Contains(got, v)) {
			t.Errorf("%s=%q, want %q\nin %v", k, got, v, r)
		}
	}
}

// flowLog is a slog.Handler that keeps the records of flows.
type flowLog struct {
	to    chan<- Record
	least slog.Level
}

func (h flowLog) Enabled(_ context.Context, l slog.Level) bool { return l >= h.least }
func (h flowLog) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h flowLog) WithGroup(string) slog.Handler                { return h }
func (h flowLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "flow" {
		return nil
	}
	rec := make(Record)
	r.Attrs(func(a slog.Attr) bool {
		rec[a.Key] = a.Value.String()
		return true
	})
	select {
	case h.to <- rec:
	default: // more than a test looks at
	}
	return nil
}

// Resolver returns a resolver of the client machine that asks server, by "udp"
// or "tcp".
func (l *Lab) Resolver(network string, server netip.AddrPort) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if network == "udp" {
			return l.Host.DialUDP(netip.AddrPort{}, server)
		}
		return l.Host.DialTCP(ctx, netip.AddrPort{}, server)
	}}
}

// Lookup returns the address of a name as the client machine sees it. network is
// "ip4" or "ip6".
func (l *Lab) Lookup(network, name string) netip.Addr {
	l.t.Helper()
	// The dot keeps the search list of this machine out of it.
	addrs, err := l.Resolver("udp", AnyServer).LookupNetIP(Within(l.t), network, name+".")
	if err != nil || len(addrs) != 1 {
		l.t.Fatalf("%s of %s: %v, %v, want one address", network, name, addrs, err)
	}
	return addrs[0].Unmap()
}

// Dial connects to a name as a program of the client machine would.
func (l *Lab) Dial(network, name string, port uint16) (*stacktest.Conn, error) {
	l.t.Helper()
	return l.Host.DialTCP(Within(l.t), netip.AddrPort{}, netip.AddrPortFrom(l.Lookup(network, name), port))
}

// MustDial is Dial where nothing else than success is expected. The connection
// is closed at the end of the test.
func (l *Lab) MustDial(network, name string, port uint16) *stacktest.Conn {
	l.t.Helper()
	c, err := l.Dial(network, name, port)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}
