package router

import (
	"bufio"
	"context"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
)

// bindDialer is a fakeDialer whose far end can be connected to, at 203.0.113.9.
type bindDialer struct {
	*fakeDialer
	from  []flow.Target // who may connect
	err   error
	bound chan *fakeBound
}

func (d *bindDialer) Bind(_ context.Context, from flow.Target) (outbound.Bound, error) {
	if d.err != nil {
		return nil, d.err
	}
	d.from = append(d.from, from)
	b := &fakeBound{come: make(chan outbound.Conn), closed: make(chan struct{})}
	d.bound <- b
	return b, nil
}

type fakeBound struct {
	come   chan outbound.Conn
	once   sync.Once
	closed chan struct{}
}

func (b *fakeBound) Addr() netip.AddrPort { return netip.MustParseAddrPort("203.0.113.9:50000") }
func (b *fakeBound) Close() error         { b.once.Do(func() { close(b.closed) }); return nil }

func (b *fakeBound) Accept(ctx context.Context) (outbound.Conn, netip.AddrPort, error) {
	select {
	case c := <-b.come:
		return c, netip.MustParseAddrPort("192.0.2.1:20"), nil
	case <-b.closed:
		return nil, netip.AddrPort{}, net.ErrClosed
	case <-ctx.Done():
		return nil, netip.AddrPort{}, ctx.Err()
	}
}

// fakeClients connects to the ends that it hands out.
type fakeClients struct {
	mu    sync.Mutex
	errs  []error // of the next dials
	dials []string
	far   chan net.Conn
}

func (c *fakeClients) DialTCP(_ context.Context, from, to netip.AddrPort) (relay.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dials = append(c.dials, from.String()+" "+to.String())
	if len(c.errs) > 0 {
		err := c.errs[0]
		c.errs = c.errs[1:]
		if err != nil {
			return nil, err
		}
	}
	near, far := pipe()
	c.far <- far
	return near, nil
}

// ftpSession is a control connection through a router with the helper.
type ftpSession struct {
	router         *Router
	d              *bindDialer
	clients        *fakeClients
	client, server net.Conn
	said           *bufio.Reader // what the server gets
	log            func() string // once what logs has ended
	served         sync.WaitGroup
}

func newFTPSession(t *testing.T) *ftpSession {
	t.Helper()
	s := &ftpSession{
		d:       &bindDialer{fakeDialer: newDialer(), bound: make(chan *fakeBound, 4)},
		clients: &fakeClients{far: make(chan net.Conn, 4)},
	}
	r, names, log := newRouter(t, s.d, Options{Clients: s.clients})
	table, err := rule.Compile([]rule.Rule{{Via: "out", Helper: rule.FTP, Line: 3}})
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := NewSnapshot(table, []*Outbound{{Name: "out", Dialer: s.d}})
	if err != nil {
		t.Fatal(err)
	}
	r.Swap(snapshot)
	s.router, s.log = r, func() string { return log.String() }
	s.connect()
	t.Cleanup(func() {
		s.client.Close()
		s.server.Close()
		s.served.Wait()
		r.flows.work.Wait()
		if n := names.holds(); n != 0 {
			t.Errorf("%d leases are still held", n)
		}
		if n := len(r.Flows()); n != 0 {
			t.Errorf("%d flows are left", n)
		}
	})
	return s
}

// connect makes the control connection.
func (s *ftpSession) connect() {
	q := newRequest("198.18.0.9:21")
	s.served.Go(func() { s.router.ServeTCP(context.Background(), q) })
	s.client, s.server = <-q.far, <-s.d.far
	s.said = bufio.NewReader(s.server)
}

// ask sends a command, and returns what the server gets of it.
func (s *ftpSession) ask(t *testing.T, command string) string {
	t.Helper()
	go io.WriteString(s.client, command+"\r\n")
	line, err := s.said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

const (
	portSent = "PORT 10,0,0,2,39,16" // 10.0.0.2:10000
	portGot  = "PORT 203,0,113,9,195,80"
)

// The server connects to the far end of the outbound, and the client is connected to
// from the address that it knows the server by; also where the port is taken.
func TestActiveFTP(t *testing.T) {
	s := newFTPSession(t)
	s.clients.errs = []error{nil, syscall.EADDRNOTAVAIL}
	for i, want := range []string{"198.18.0.9:20 10.0.0.2:10000", "198.18.0.9:0 10.0.0.2:10000"} {
		if got := s.ask(t, portSent); got != portGot {
			t.Fatalf("the server is told %q, want %q", got, portGot)
		}
		near, server := pipe()
		(<-s.d.bound).come <- near
		client := <-s.clients.far
		go func() {
			io.WriteString(server, "a file")
			server.Close()
		}()
		if b, err := io.ReadAll(client); string(b) != "a file" || err != nil {
			t.Errorf("the client reads %q, %v", b, err)
		}
		client.Close()
		s.router.flows.work.Wait()
		if got := s.clients.dials[len(s.clients.dials)-1]; got != want {
			t.Errorf("data connection %d is from and to %s, want %s", i, got, want)
		}
	}
	if want := (flow.Target{Name: "a.test", Port: 21}); s.d.from[0] != want {
		t.Errorf("%v may connect, want %v", s.d.from[0], want)
	}
	if log := s.log(); !strings.Contains(log, "net=tcp src=10.0.0.2:10000 dst=a.test:20 rule=1 line=3 out=out up=0 down=6") {
		t.Errorf("no record of the data connection:\n%s", log)
	}
}

// A data connection has the log and the bandwidth of its rule, and shares that with others
// of the rule; it does not count for its limits.
func TestActiveFTPHasItsRulesOptions(t *testing.T) {
	s := newFTPSession(t)
	bandwidth := limit.NewBandwidth(limit.BandwidthOptions{Up: 1 << 20, Down: 1 << 20})
	one := limit.New(limit.Options{Name: "the rule", Sessions: 1})
	s.client.Close()
	s.server.Close()
	s.served.Wait()
	before := s.log()
	s.router.Swap(s.router.snap.Load().With(SnapshotOptions{Rules: []RuleOptions{{Log: LogNone, Bandwidth: bandwidth, Limit: one}}}))
	s.connect()
	if got := s.ask(t, portSent); got != portGot {
		t.Fatalf("the server is told %q, want %q", got, portGot)
	}
	near, server := pipe()
	(<-s.d.bound).come <- near
	client := <-s.clients.far
	for f := range s.flows() {
		if f.pipe == nil || f.counters.UpLimit != f.pipe.Up || f.counters.DownLimit != f.pipe.Down {
			t.Errorf("%v has no bandwidth", f.rec.Flow.Target)
		}
	}
	if n := len(s.flows()); n != 2 || bandwidth.Pipes() != 1 {
		t.Errorf("%d flows with %d bandwidths, want 2 with one", n, bandwidth.Pipes())
	}
	server.Close()
	client.Close()
	s.router.flows.work.Wait()
	if now := s.log(); now != before {
		t.Errorf("log: none, and it has\n%s", now[len(before):])
	}
}

// flows returns those that are open.
func (s *ftpSession) flows() map[*tcpFlow]struct{} {
	s.router.flows.mu.Lock()
	defer s.router.flows.mu.Unlock()
	return maps.Clone(s.router.flows.flows)
}

// A client that does not listen, and an outbound without BIND.
func TestActiveFTPFails(t *testing.T) {
	s := newFTPSession(t)
	s.clients.errs = []error{syscall.ECONNREFUSED}
	s.ask(t, portSent)
	near, server := pipe()
	(<-s.d.bound).come <- near
	if _, err := server.Read(make([]byte, 1)); err == nil {
		t.Error("the server's connection lives")
	}
	s.router.flows.work.Wait()
	if !near.reset || !strings.Contains(s.log(), "client does not take the connection that is for it: connection refused") {
		t.Errorf("reset: %v, log:\n%s", near.reset, s.log())
	}
	s.d.err = outbound.ErrNoBind
	if got := s.ask(t, portSent); got != "PORT" {
		t.Errorf("without BIND the server is told %q, want PORT alone", got)
	}
	if !strings.Contains(s.log(), `msg="an FTP client is refused active mode" src=10.0.0.2:4000 dst=a.test:21 out=out err="PORT: no BIND through this outbound"`) {
		t.Errorf("log:\n%s", s.log())
	}
}

// What waits for the server ends with the control connection; what does not wait any
// more lives on.
func TestActiveFTPEndsWithItsControl(t *testing.T) {
	s := newFTPSession(t)
	s.ask(t, portSent)
	near, server := pipe()
	(<-s.d.bound).come <- near
	client := <-s.clients.far
	s.ask(t, portSent)
	waits := <-s.d.bound
	s.client.Close()
	s.server.Close()
	select {
	case <-waits.closed:
	case <-time.After(30 * time.Second):
		t.Fatal("the address is open after the end of the control connection")
	}
	go io.WriteString(server, "x")
	if n, err := client.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("the transfer has ended: %v", err)
	}
	server.Close()
	client.Close()
	s.served.Wait()
	s.router.flows.work.Wait()
	if strings.Contains(s.log(), "does not reach") {
		t.Errorf("log:\n%s", s.log())
	}
}

// Only flows of the device have a client that the helper can connect to.
func TestHelperIsForTheDevice(t *testing.T) {
	r, _, _ := newRouter(t, newDialer(), Options{Clients: &fakeClients{}})
	near, far := pipe()
	defer near.Close()
	defer far.Close()
	for inbound, want := range map[string]bool{flow.Tun: true, "socks": false} {
		f := &tcpFlow{r: r, rec: Record{Flow: flow.Flow{Inbound: inbound, Source: client}, Verdict: rule.Verdict{Helper: rule.FTP}}}
		got := r.help(t.Context(), f, nil, byDefault, near)
		if helped := got != relay.Conn(near); helped != want {
			t.Errorf("from %s: helped: %v, want %v", inbound, helped, want)
		}
	}
}

// A control connection is not idle while something is transferred.
func TestTransferKeepsItsControl(t *testing.T) {
	var g registry
	g.init(1, time.Second, 0)
	cut := false
	f := &tcpFlow{rec: Record{Start: time.Now()}}
	f.relayed.Store(true)
	f.data.Store(1)
	g.add(f, func(error) { cut = true })
	for i := range 10 {
		g.look(f.rec.Start.Add(time.Duration(i) * time.Minute))
	}
	if cut {
		t.Fatal("it was ended during a transfer")
	}
	f.data.Store(0)
	for i := range 3 {
		g.look(f.rec.Start.Add(time.Hour + time.Duration(i)*time.Minute))
	}
	if !cut {
		t.Error("it was not ended after the transfer")
	}
}
