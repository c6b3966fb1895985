package udpnat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeDialer is an outbound in memory. Its zero value opens at once.
type fakeDialer struct {
	gate    chan struct{} // nil: open at once; else when closed
	err     error         // what opening returns
	resolve map[string]netip.Addr

	mu      sync.Mutex
	prepare error // what Prepare returns
	conns   []*fakeConn
	tries   int
}

func (d *fakeDialer) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	d.mu.Lock()
	d.tries++
	d.mu.Unlock()
	if d.gate != nil {
		select {
		case <-d.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if d.err != nil {
		return nil, d.err
	}
	c := &fakeConn{dialer: d, replies: make(chan datagram, 64), closed: make(chan struct{})}
	d.mu.Lock()
	d.conns = append(d.conns, c)
	d.mu.Unlock()
	return c, nil
}

func (d *fakeDialer) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prepare = err
}

func (d *fakeDialer) opened() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tries
}

type datagram struct {
	text string
	from netip.AddrPort
}

type fakeConn struct {
	dialer  *fakeDialer
	replies chan datagram
	once    sync.Once
	closed  chan struct{}

	mu   sync.Mutex
	sent []string // "target payload"
}

func (c *fakeConn) Prepare(_ context.Context, t flow.Target) (flow.Target, error) {
	if a, ok := c.dialer.resolve[t.Name]; ok {
		t.Addr = a
	}
	c.dialer.mu.Lock()
	defer c.dialer.mu.Unlock()
	return t, c.dialer.prepare
}

func (c *fakeConn) WriteTo(p []byte, t flow.Target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, t.String()+" "+string(p))
	return nil
}

func (c *fakeConn) texts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

func (c *fakeConn) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-c.replies:
		return copy(b, d.text), d.from, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *fakeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// recorder is the client's side.
type recorder struct {
	mu      sync.Mutex
	wrote   []string // "from > to payload"
	refused []string // "src > dst errno"
	records []Record
}

func (r *recorder) WriteUDP(p []byte, from, to netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrote = append(r.wrote, fmt.Sprintf("%v > %v %s", from, to, p))
	return nil
}

func (r *recorder) RefuseUDP(src, dst netip.AddrPort, n int, e syscall.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, fmt.Sprintf("%v > %v %d bytes: %v", src, dst, n, e))
}

func (r *recorder) done(rec Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, rec)
}

func (r *recorder) told() []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

var (
	clientA = netip.MustParseAddrPort("10.0.0.2:1000")
	clientB = netip.MustParseAddrPort("10.0.0.2:1001")
	remote1 = netip.MustParseAddrPort("192.0.2.1:7")
	remote2 = netip.MustParseAddrPort("192.0.2.2:7")
	real1   = netip.MustParseAddrPort("203.0.113.1:7")
	real2   = netip.MustParseAddrPort("203.0.113.2:7")
	fake1   = netip.MustParseAddrPort("198.18.0.1:7")
	fake2   = netip.MustParseAddrPort("198.18.0.2:7")
)

// names stand behind the fake addresses of these tests.
var names = map[netip.Addr]string{fake1.Addr(): "one.test", fake2.Addr(): "two.test"}

// via sends everything to d, fake addresses by name.
func via(d outbound.PacketDialer) func(src, dst netip.AddrPort) Decision {
	return func(_, dst netip.AddrPort) Decision {
		t := flow.AddrTarget(dst)
		if name, ok := names[dst.Addr()]; ok {
			t = flow.Target{Name: name, Port: dst.Port()}
		}
		return Decision{Target: t, Way: "out", Dialer: d}
	}
}

// run runs f in a bubble of time with a table, and stops the table after it.
func run(t *testing.T, o Options, f func(*testing.T, *Table, *recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rec := new(recorder)
		o.Writer, o.Done = rec, rec.done
		tab := New(o)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { tab.Run(ctx); close(ended) }()
		f(t, tab, rec)
		cancel()
		<-ended
		if s := tab.Stats(); s.Sessions != 0 || s.Paths != 0 {
			t.Errorf("after Run: %+v, want an empty table", s)
		}
	})
}

func send(t *testing.T, tab *Table, src, dst netip.AddrPort, text string) bool {
	t.Helper()
	ok := tab.Send(src, dst, []byte(text))
	synctest.Wait()
	return ok
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestOneSessionPerSourceServesAllTargets(t *testing.T) {
	d := new(fakeDialer)
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		send(t, tab, clientA, remote1, "a1")
		send(t, tab, clientA, remote2, "a2")
		send(t, tab, clientB, remote1, "b1")
		if d.opened() != 2 {
			t.Fatalf("opened %d conversations, want one for each of two sources", d.opened())
		}
		want(t, "sent for A", d.conns[0].sent, "192.0.2.1:7 a1", "192.0.2.2:7 a2")
		// Whoever writes reaches the client, asked or not.
		stranger := netip.MustParseAddrPort("192.0.2.99:99")
		for _, from := range []netip.AddrPort{remote2, remote1, stranger} {
			d.conns[0].replies <- datagram{"r", from}
		}
		synctest.Wait()
		want(t, "written", rec.wrote,
			"192.0.2.2:7 > 10.0.0.2:1000 r", "192.0.2.1:7 > 10.0.0.2:1000 r", "192.0.2.99:99 > 10.0.0.2:1000 r")
		var open []string
		for _, o := range tab.Open() {
			open = append(open, fmt.Sprintf("%v > %v %d %d", o.Source, o.Destination, o.Up, o.Down))
		}
		slices.Sort(open)
		want(t, "open", open, fmt.Sprintf("%v > %v 2 1", clientA, remote1), fmt.Sprintf("%v > %v 2 1", clientA, remote2),
			fmt.Sprintf("%v > %v 2 0", clientB, remote1))
	})
}

func TestReplyComesFromTheFakeAddress(t *testing.T) {
	t.Run("resolved here", func(t *testing.T) {
		d := &fakeDialer{resolve: map[string]netip.Addr{"one.test": real1.Addr(), "two.test": real2.Addr()}}
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, fake1, "q1")
			send(t, tab, clientA, fake2, "q2")
			d.conns[0].replies <- datagram{"r2", real2}
			d.conns[0].replies <- datagram{"r1", real1}
			synctest.Wait()
			want(t, "written", rec.wrote, "198.18.0.2:7 > 10.0.0.2:1000 r2", "198.18.0.1:7 > 10.0.0.2:1000 r1")
		})
	})
	t.Run("resolved at the far end", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, fake1, "q1")
			d.conns[0].replies <- datagram{"r1", real1}
			synctest.Wait()
			// real1 is known to be one.test now, so real2 is two.test.
			send(t, tab, clientA, fake2, "q2")
			send(t, tab, clientA, fake1, "q1 again")
			d.conns[0].replies <- datagram{"r2", real2}
			d.conns[0].replies <- datagram{"r1", real1}
			// Another port is another conversation.
			d.conns[0].replies <- datagram{"x", netip.AddrPortFrom(real1.Addr(), 8)}
			synctest.Wait()
			want(t, "sent", d.conns[0].sent, "one.test:7 q1", "two.test:7 q2", "one.test:7 q1 again")
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1",
				"198.18.0.2:7 > 10.0.0.2:1000 r2", "198.18.0.1:7 > 10.0.0.2:1000 r1", "203.0.113.1:8 > 10.0.0.2:1000 x")
		})
	})
	t.Run("an answer of several datagrams", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, fake1, "q1")
			time.Sleep(time.Millisecond)
			send(t, tab, clientA, fake2, "q2")
			for range 3 { // nothing of it is two.test's
				time.Sleep(time.Millisecond)
				d.conns[0].replies <- datagram{"r1", real1}
				synctest.Wait()
			}
			d.conns[0].replies <- datagram{"r2", real2}
			synctest.Wait()
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1", "198.18.0.1:7 > 10.0.0.2:1000 r1",
				"198.18.0.1:7 > 10.0.0.2:1000 r1", "198.18.0.2:7 > 10.0.0.2:1000 r2")
		})
	})
	t.Run("given as a name", func(t *testing.T) { // see outbound.PacketConn
		d := new(fakeDialer)
		unspecified := netip.AddrPortFrom(netip.IPv4Unspecified(), 7)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, remote2, "q0")
			d.conns[0].replies <- datagram{"to nobody", unspecified}
			synctest.Wait()
			send(t, tab, clientA, fake1, "q1")
			d.conns[0].replies <- datagram{"r1", unspecified}
			synctest.Wait()
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1")
		})
	})
	// Two WireGuard peers have the same port, and one of them is not there.
	t.Run("a name without an answer takes no other's", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			reply := func(text string) {
				time.Sleep(time.Millisecond)
				d.conns[0].replies <- datagram{text, real1}
				synctest.Wait()
			}
			send(t, tab, clientA, fake1, "q1")
			time.Sleep(time.Millisecond)
			send(t, tab, clientA, fake2, "q2")
			reply("r1")
			send(t, tab, clientA, fake1, "thanks")
			time.Sleep(2 * stream)
			send(t, tab, clientA, fake2, "q2 again")
			reply("r1 by itself, after thanks")
			time.Sleep(2 * stream)
			reply("r1 by itself")
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1",
				"198.18.0.1:7 > 10.0.0.2:1000 r1 by itself, after thanks", "198.18.0.1:7 > 10.0.0.2:1000 r1 by itself")
		})
	})
	t.Run("nor of one that has had several", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, fake1, "q1")
			d.conns[0].replies <- datagram{"r1", real1}
			d.conns[0].replies <- datagram{"r1", real1}
			time.Sleep(2 * stream)
			send(t, tab, clientA, fake2, "q2")
			time.Sleep(time.Millisecond)
			d.conns[0].replies <- datagram{"r1 by itself", real1}
			synctest.Wait()
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1", "198.18.0.1:7 > 10.0.0.2:1000 r1",
				"198.18.0.1:7 > 10.0.0.2:1000 r1 by itself")
		})
	})
	t.Run("what was taken for shared is not", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			send(t, tab, clientA, fake1, "q1")
			d.conns[0].replies <- datagram{"r1", real1}
			time.Sleep(2 * stream)
			send(t, tab, clientA, fake2, "q2")
			for _, from := range []netip.AddrPort{real1, real2, real1, real2} { // the first could be either's
				time.Sleep(2 * stream)
				d.conns[0].replies <- datagram{"from " + from.String(), from}
				synctest.Wait()
			}
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r1",
				"198.18.0.2:7 > 10.0.0.2:1000 from 203.0.113.1:7", "198.18.0.2:7 > 10.0.0.2:1000 from 203.0.113.2:7",
				"198.18.0.1:7 > 10.0.0.2:1000 from 203.0.113.1:7", "198.18.0.2:7 > 10.0.0.2:1000 from 203.0.113.2:7")
		})
	})
	t.Run("two names share an address", func(t *testing.T) {
		d := new(fakeDialer)
		run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
			for _, ask := range []netip.AddrPort{fake1, fake2, fake1} {
				time.Sleep(2 * stream)
				send(t, tab, clientA, ask, "q")
				time.Sleep(time.Millisecond)
				d.conns[0].replies <- datagram{"r", real1}
				synctest.Wait()
			}
			want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 r",
				"198.18.0.2:7 > 10.0.0.2:1000 r", "198.18.0.1:7 > 10.0.0.2:1000 r")
		})
	})
}

func TestDatagramsWaitForTheSession(t *testing.T) {
	d := new(fakeDialer)
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		d.gate = make(chan struct{}) // of this bubble
		var sent []string
		for i := range queueDatagrams + 5 {
			text := fmt.Sprint(i)
			if !send(t, tab, clientA, remote1, text) {
				t.Fatalf("datagram %d was refused; want it queued or lost", i)
			}
			if i < queueDatagrams {
				sent = append(sent, "192.0.2.1:7 "+text)
			}
		}
		close(d.gate)
		synctest.Wait()
		want(t, "sent once open", d.conns[0].sent, sent...)
		send(t, tab, clientA, remote1, "later")
		want(t, "sent", d.conns[0].sent, append(sent, "192.0.2.1:7 later")...)
	})
}

// TestQueuesAreBounded: all queues together take so many bytes, and give them back whether
// the datagrams are sent, refused, or the session ends.
func TestQueuesAreBounded(t *testing.T) {
	const each, room = 1000, 5
	for _, end := range []string{"sent", "refused", "idle"} {
		d := new(fakeDialer)
		if end == "refused" {
			d.err = errors.New("server down")
		}
		run(t, Options{Decide: via(d), QueueBytes: room*each + 1}, func(t *testing.T, tab *Table, rec *recorder) {
			d.gate = make(chan struct{}) // of this bubble
			for i := range room + 3 {
				to := netip.AddrPortFrom(remote1.Addr(), uint16(1000+i))
				if !send(t, tab, clientA, to, strings.Repeat("x", each)) {
					t.Fatalf("%s: datagram %d was refused; want it queued or lost", end, i)
				}
			}
			if n := tab.queued.Load(); n != room*each {
				t.Errorf("%s: %d bytes wait, want %d", end, n, room*each)
			}
			if end == "idle" {
				time.Sleep(2 * DefaultIdle)
			}
			close(d.gate)
			synctest.Wait()
			if end == "sent" && len(d.conns[0].sent) != room {
				t.Errorf("%d were sent, want %d", len(d.conns[0].sent), room)
			}
			if n := tab.queued.Load(); n != 0 {
				t.Errorf("%s: %d bytes wait still", end, n)
			}
		})
	}
}

func TestFailureToOpenIsToldAndCoolsDown(t *testing.T) {
	d := &fakeDialer{err: errors.New("server down")}
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		d.gate = make(chan struct{}) // of this bubble
		send(t, tab, clientA, remote1, "four")
		close(d.gate)
		synctest.Wait()
		want(t, "refused", rec.refused, "10.0.0.2:1000 > 192.0.2.1:7 4 bytes: "+syscall.EHOSTUNREACH.Error())
		if send(t, tab, clientA, remote1, "x") {
			t.Error("a datagram while cooling down was taken, want it refused")
		}
		if d.opened() != 1 {
			t.Errorf("opened %d times while cooling down, want once", d.opened())
		}
		time.Sleep(2 * cooldown)
		synctest.Wait()
		send(t, tab, clientA, remote1, "x")
		if d.opened() != 2 {
			t.Errorf("opened %d times after cooling down, want twice", d.opened())
		}
	})
}

// TestFailureIsToldToLaterPaths: what is sent elsewhere while the session cools
// down is refused as well, though the session has ended.
func TestFailureIsToldToLaterPaths(t *testing.T) {
	d := &fakeDialer{err: errors.New("server down")}
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		const targets = 32
		refused := 0
		for i := range uint16(targets) {
			if !send(t, tab, clientA, netip.AddrPortFrom(remote1.Addr(), 1+i), "x") {
				refused++
			}
			synctest.Wait()
		}
		if refused += len(rec.refused); refused != targets {
			t.Errorf("%d of %d datagrams were refused, want all", refused, targets)
		}
	})
}

// TestNameThatFailsOnceIsTriedAgain, however often the client asks meanwhile.
func TestNameThatFailsOnceIsTriedAgain(t *testing.T) {
	d := &fakeDialer{prepare: errors.New("no such name")}
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		for range 30 {
			send(t, tab, clientA, fake1, "x")
			time.Sleep(cooldown / 10)
		}
		d.fail(nil)
		for range 30 {
			send(t, tab, clientA, fake1, "y")
			time.Sleep(cooldown / 10)
		}
		if n := len(d.conns[0].texts()); n == 0 {
			t.Error("nothing was sent though the name can be resolved again")
		}
		if d.opened() != 1 {
			t.Errorf("opened %d conversations, want one", d.opened())
		}
		if rs := rec.told(); len(rs) == 0 || rs[0].Err == nil || rs[0].Err.Error() != "no such name" {
			t.Errorf("records %+v, want what failed first", rs)
		}
	})
}

func TestOutboundWithoutUDPIsRemembered(t *testing.T) {
	d := &fakeDialer{err: fmt.Errorf("p1: %w", outbound.ErrNoUDP)}
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		d.gate = make(chan struct{}) // of this bubble
		send(t, tab, clientA, remote1, "quic")
		close(d.gate)
		synctest.Wait()
		want(t, "refused", rec.refused, "10.0.0.2:1000 > 192.0.2.1:7 4 bytes: "+syscall.ECONNREFUSED.Error())
		if send(t, tab, clientB, remote2, "quic") {
			t.Error("another source's datagram was taken, want it refused at once")
		}
		if d.opened() != 1 {
			t.Errorf("asked the server %d times, want once", d.opened())
		}
		time.Sleep(noUDPFor)
		send(t, tab, clientB, remote2, "quic")
		if d.opened() != 2 {
			t.Errorf("asked the server %d times after a minute, want twice", d.opened())
		}
	})
}

// TestHangUpIsBelievedForLess: it may be that of a server in trouble.
func TestHangUpIsBelievedForLess(t *testing.T) {
	d := &fakeDialer{err: fmt.Errorf("p1: %w: %w", outbound.ErrNoUDP, io.EOF)}
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		send(t, tab, clientA, remote1, "x")
		if send(t, tab, clientB, remote2, "x") || d.opened() != 1 {
			t.Error("another source's datagram was taken, want it refused at once")
		}
		d.err = nil
		time.Sleep(hungUpFor)
		if !send(t, tab, clientB, remote2, "x") || d.opened() != 2 {
			t.Errorf("a datagram %v after a hang-up was refused", hungUpFor)
		}
	})
}

// TestAnotherWayIsAnotherSession: what comes after a change of the ways goes by the
// new one, also for a source that has a session, and is not refused for what the
// old one has said.
func TestAnotherWayIsAnotherSession(t *testing.T) {
	old, later := new(fakeDialer), new(fakeDialer)
	now := Decision{Way: 1, Dialer: old}
	decide := func(_, dst netip.AddrPort) Decision {
		d := now
		d.Target = flow.AddrTarget(dst)
		return d
	}
	run(t, Options{Decide: decide}, func(t *testing.T, tab *Table, rec *recorder) {
		send(t, tab, clientA, remote1, "before")
		now = Decision{Way: 2, Dialer: later}
		send(t, tab, clientA, remote2, "after")
		send(t, tab, clientA, remote1, "goes on")
		now = Decision{Way: 2, Dialer: new(fakeDialer)} // the same way, made again
		send(t, tab, clientA, real1, "after that")
		want(t, "sent by the old way", old.conns[0].texts(), "192.0.2.1:7 before", "192.0.2.1:7 goes on")
		want(t, "sent by the new way", later.conns[0].texts(), "192.0.2.2:7 after", "203.0.113.1:7 after that")

		now = Decision{Way: 3, Dialer: &fakeDialer{err: outbound.ErrNoUDP}}
		send(t, tab, clientB, remote1, "refused")
		now = Decision{Way: 4, Dialer: later}
		if !send(t, tab, clientB, remote2, "x") || len(later.conns) != 2 {
			t.Error("a way was refused for what another had said")
		}
		time.Sleep(noUDPFor + cooldown)
		synctest.Wait()
		if len(tab.noUDP) != 0 {
			t.Errorf("%d ways without UDP are remembered for ever", len(tab.noUDP))
		}
	})
}

func TestIdlePathsEndAndGiveBackTheirLease(t *testing.T) {
	d := new(fakeDialer)
	var released atomic.Int32
	decide := func(src, dst netip.AddrPort) Decision {
		dec := via(d)(src, dst)
		dec.Release = func() { released.Add(1) }
		return dec
	}
	run(t, Options{Decide: decide, Idle: time.Minute}, func(t *testing.T, tab *Table, rec *recorder) {
		send(t, tab, clientA, remote1, "12345")
		d.conns[0].replies <- datagram{"123", remote1}
		for range 10 { // remote2 keeps the session, not the path to remote1
			time.Sleep(20 * time.Second)
			send(t, tab, clientA, remote2, "x")
		}
		synctest.Wait()
		if s := tab.Stats(); s.Sessions != 1 || s.Paths != 1 || released.Load() != 1 {
			t.Fatalf("%+v and %d leases given back; want a session, its busy path and one lease", s, released.Load())
		}
		if r := rec.told()[0]; r.Destination != remote1 || r.Up != 5 || r.Down != 3 || r.Sent != 1 || r.Received != 1 || r.Err != nil {
			t.Errorf("record %+v", r)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := tab.Stats(); s.Sessions != 0 || released.Load() != 2 {
			t.Errorf("%+v and %d leases given back; want none and 2", s, released.Load())
		}
	})
}

func TestConversationThatBreaksEndsItsSession(t *testing.T) {
	d := new(fakeDialer)
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		send(t, tab, clientA, remote1, "x")
		d.conns[0].Close() // as when the SOCKS server ends the association
		synctest.Wait()
		if s := tab.Stats(); s.Sessions != 0 || len(rec.told()) != 1 || !errors.Is(rec.told()[0].Err, net.ErrClosed) {
			t.Fatalf("%+v, records %+v; want the session gone and told", s, rec.told())
		}
		send(t, tab, clientA, remote1, "y")
		if d.opened() != 2 {
			t.Errorf("opened %d times, want a new conversation", d.opened())
		}
	})
}

func TestLimits(t *testing.T) {
	d := new(fakeDialer)
	run(t, Options{Decide: via(d), MaxSessions: 4, MaxPaths: 3}, func(t *testing.T, tab *Table, rec *recorder) {
		for i := range 10 {
			time.Sleep(time.Second)
			send(t, tab, netip.AddrPortFrom(clientA.Addr(), uint16(2000+i)), remote1, "x")
		}
		if s := tab.Stats(); s.Sessions != 4 || s.Evicted != 6 {
			t.Errorf("%+v; want 4 sessions, 6 evicted", s)
		}
		newest := netip.AddrPortFrom(clientA.Addr(), 2009)
		for i := range 5 {
			send(t, tab, newest, netip.AddrPortFrom(remote2.Addr(), uint16(i+1)), "x")
		}
		if s := tab.Stats(); s.Paths != 3+3 {
			t.Errorf("%+v; want 3 paths of one session and one each of 3 others", s)
		}
	})
}

func TestDecisionWithoutSession(t *testing.T) {
	for _, c := range []struct {
		name  string
		d     Decision
		taken bool
	}{
		{"no UDP", Decision{}, false},
		{"drop", Decision{Drop: true}, true},
	} {
		released := 0
		c.d.Release = func() { released++ }
		run(t, Options{Decide: func(_, _ netip.AddrPort) Decision { return c.d }}, func(t *testing.T, tab *Table, rec *recorder) {
			for range 100 { // decided and told once
				if got := send(t, tab, clientA, remote1, "x"); got != c.taken || released != 1 || len(rec.told()) != 1 {
					t.Fatalf("%s: Send = %v with %d leases given back and %d records, want %v, 1 and 1", c.name, got, released, len(rec.told()), c.taken)
				}
			}
			time.Sleep(2 * cooldown)
			if send(t, tab, clientA, remote1, "x"); released != 2 {
				t.Errorf("%s: decided %d times after cooling down, want twice", c.name, released)
			}
		})
	}
}

// queueConn keeps what it is sent until Flush.
type queueConn struct {
	*fakeConn
	waiting []string
}

func (c *queueConn) Queue(p []byte, t flow.Target) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, t.String()+" "+string(p))
	return nil
}

func (c *queueConn) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, c.waiting...)
	c.waiting = nil
}

// ReadBatch gives all replies that are there.
func (c *queueConn) ReadBatch(take func([][]byte, []netip.AddrPort)) error {
	var payloads [][]byte
	var from []netip.AddrPort
	b := make([]byte, 100)
	for len(payloads) == 0 || len(c.replies) > 0 {
		n, a, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		payloads, from = append(payloads, slices.Clone(b[:n])), append(from, a)
	}
	take(payloads, from)
	return nil
}

type queueDialer struct{ fakeDialer }

func (d *queueDialer) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	c, err := d.fakeDialer.OpenUDP(ctx)
	if err != nil {
		return nil, err
	}
	return &queueConn{fakeConn: c.(*fakeConn)}, nil
}

// TestDatagramsWaitForFlush, those of all sessions, but for the first of a path,
// which go out when it is open.
func TestDatagramsWaitForFlush(t *testing.T) {
	d := new(queueDialer)
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		for _, client := range []netip.AddrPort{clientA, clientB} {
			send(t, tab, client, remote1, "first")
		}
		for i := range 3 {
			send(t, tab, clientA, remote1, fmt.Sprint("a", i))
			send(t, tab, clientB, remote1, fmt.Sprint("b", i))
			if i < 2 {
				want(t, "sent before Flush", d.conns[0].texts(), "192.0.2.1:7 first")
				want(t, "sent before Flush", d.conns[1].texts(), "192.0.2.1:7 first")
			}
		}
		tab.Flush()
		want(t, "sent", d.conns[0].texts(), "192.0.2.1:7 first", "192.0.2.1:7 a0", "192.0.2.1:7 a1", "192.0.2.1:7 a2")
		want(t, "sent", d.conns[1].texts(), "192.0.2.1:7 first", "192.0.2.1:7 b0", "192.0.2.1:7 b1", "192.0.2.1:7 b2")
		send(t, tab, clientB, remote1, "later")
		tab.Flush()
		tab.Flush()
		want(t, "sent", d.conns[1].texts()[4:], "192.0.2.1:7 later")
	})
}

// rowRecorder is a recorder that takes rows.
type rowRecorder struct {
	*recorder
	rows []int
}

func (r *rowRecorder) WriteUDPs(payloads [][]byte, from, to netip.AddrPort) error {
	for _, p := range payloads {
		r.WriteUDP(p, from, to)
	}
	r.rows = append(r.rows, len(payloads))
	return nil
}

// TestRepliesOfOneSenderAreWrittenInRows, each sender's as the client has it.
func TestRepliesOfOneSenderAreWrittenInRows(t *testing.T) {
	d := new(queueDialer)
	rows := new(rowRecorder)
	run(t, Options{Decide: via(d)}, func(t *testing.T, tab *Table, rec *recorder) {
		rows.recorder = rec
		tab.opts.Writer, tab.rows = rows, rows
		send(t, tab, clientA, fake1, "q")
		for _, reply := range []datagram{{"1", real1}, {"2", real1}, {"3", remote2}, {"4", real1}, {"5", real1}, {"6", real1}} {
			d.conns[0].replies <- reply
		}
		synctest.Wait()
		want(t, "written", rec.wrote, "198.18.0.1:7 > 10.0.0.2:1000 1", "198.18.0.1:7 > 10.0.0.2:1000 2",
			"192.0.2.2:7 > 10.0.0.2:1000 3", "198.18.0.1:7 > 10.0.0.2:1000 4",
			"198.18.0.1:7 > 10.0.0.2:1000 5", "198.18.0.1:7 > 10.0.0.2:1000 6")
		if !slices.Equal(rows.rows, []int{2, 3}) {
			t.Errorf("rows of %v, want 2 and 3", rows.rows)
		}
		time.Sleep(time.Millisecond)
		tab.Run(closed()) // ends the path, with its record
		if r := rec.told()[0]; r.Received != 5 || r.Down != 5 {
			t.Errorf("%d datagrams and %d bytes received, want 5 and 5", r.Received, r.Down)
		}
	})
}

// closed returns a context that has ended.
func closed() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestPathThatEndedIsNotUsedAgain: not even by a Send that follows its own.
func TestPathThatEndedIsNotUsedAgain(t *testing.T) {
	d := new(fakeDialer)
	run(t, Options{Decide: via(d), Idle: time.Minute}, func(t *testing.T, tab *Table, rec *recorder) {
		for i := range 3 {
			send(t, tab, clientA, remote1, "one")
			send(t, tab, clientA, remote1, "two")
			if d.opened() != i+1 {
				t.Errorf("opened %d times, want %d", d.opened(), i+1)
			}
			want(t, "sent", d.conns[i].texts(), "192.0.2.1:7 one", "192.0.2.1:7 two")
			time.Sleep(2 * time.Minute)
			synctest.Wait()
		}
	})
}

func TestSendAllocatesNothingOnceOpen(t *testing.T) {
	tab, stop := discardTable()
	defer stop()
	payload := make([]byte, 1200)
	waitReady(tab)
	if n := testing.AllocsPerRun(1000, func() { tab.Send(clientA, remote1, payload) }); n != 0 {
		t.Errorf("%v allocations per datagram, want 0", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		tab.Send(clientA, remote1, payload)
		tab.Send(clientA, remote1, payload)
		tab.Flush()
	}); n != 0 {
		t.Errorf("%v allocations per row, want 0", n)
	}
}

func TestRepliesAllocateNothing(t *testing.T) {
	tab, stop := discardTable()
	defer stop()
	waitReady(tab)
	tab.mu.RLock()
	s := tab.paths[pathKey{clientA, remote1}].session
	tab.mu.RUnlock()
	tab.opts.Writer = discardWriter{}
	payloads := slices.Repeat([][]byte{make([]byte, 1200)}, 20)
	from := slices.Repeat([]netip.AddrPort{remote1, remote2}, 10)
	if n := testing.AllocsPerRun(1000, func() { s.take(payloads, from) }); n != 0 {
		t.Errorf("%v allocations for 20 replies, want 0", n)
	}
}

// discardWriter forgets what it is given.
type discardWriter struct{ Writer }

func (discardWriter) WriteUDP([]byte, netip.AddrPort, netip.AddrPort) error { return nil }

func BenchmarkSend(b *testing.B) {
	tab, stop := discardTable()
	defer stop()
	payload := make([]byte, 1200)
	waitReady(tab)
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		tab.Send(clientA, remote1, payload)
	}
}

// discardConn swallows what it is sent.
type discardConn struct{ *fakeConn }

func (discardConn) WriteTo([]byte, flow.Target) error { return nil }

type discardDialer struct{}

func (discardDialer) OpenUDP(context.Context) (outbound.PacketConn, error) {
	return discardConn{&fakeConn{dialer: new(fakeDialer), closed: make(chan struct{})}}, nil
}

// discardTable returns a running table whose outbound swallows everything.
func discardTable() (*Table, func()) {
	tab := New(Options{Decide: via(discardDialer{}), Writer: new(recorder)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { tab.Run(ctx); close(ended) }()
	return tab, func() { cancel(); <-ended }
}

// waitReady sends until the path is open.
func waitReady(tab *Table) {
	for {
		tab.Send(clientA, remote1, nil)
		tab.mu.RLock()
		p := tab.paths[pathKey{clientA, remote1}]
		tab.mu.RUnlock()
		if p != nil && p.ready.Load() != nil {
			return
		}
		time.Sleep(time.Millisecond) // the path's goroutine announces nothing
	}
}

// TestFlushesBesideEachOther is what the readers of a device with several queues
// do: each sends on paths of its own, of sessions that they share, and flushes.
// Every datagram goes out once, those of a path in order.
func TestFlushesBesideEachOther(t *testing.T) {
	const readers, sessions, rows, row = 4, 5, 200, 7
	d := new(queueDialer)
	tab := New(Options{Decide: via(d), Writer: new(recorder)})
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() { tab.Run(ctx) })

	client := func(i int) netip.AddrPort { return netip.AddrPortFrom(clientA.Addr(), uint16(1000+i)) }
	remote := func(i int) netip.AddrPort { return netip.AddrPortFrom(remote1.Addr(), uint16(1+i)) }
	var reading sync.WaitGroup
	for r := range readers {
		reading.Go(func() {
			for i := range sessions { // first the paths: what waits for them is limited
				for tab.Send(client(i), remote(r), []byte("open")); !pathIsReady(tab, client(i), remote(r)); {
					runtime.Gosched()
				}
			}
			for n := range rows {
				for i := range row {
					for s := range sessions {
						if !tab.Send(client(s), remote(r), fmt.Append(nil, n*row+i)) {
							t.Errorf("refused")
						}
					}
				}
				tab.Flush()
			}
		})
	}
	reading.Wait()
	// No Flush from here on: a reader's last has left nothing to anybody but to
	// one that was under way, which may be that of a path's goroutine.
	cancel()
	ended.Wait()
	if len(d.conns) != sessions {
		t.Fatalf("%d sessions, want %d", len(d.conns), sessions)
	}
	for _, c := range d.conns {
		next := make(map[string]int)
		for _, text := range c.texts() {
			to, payload, _ := strings.Cut(text, " ")
			if payload == "open" {
				continue
			}
			if payload != fmt.Sprint(next[to]) {
				t.Fatalf("to %s: datagram %s, want %d", to, payload, next[to])
			}
			next[to]++
		}
		for r := range readers {
			if to := remote(r).String(); next[to] != rows*row {
				t.Errorf("to %s: %d datagrams, want %d", to, next[to], rows*row)
			}
		}
	}
}

func pathIsReady(tab *Table, src, dst netip.AddrPort) bool {
	tab.mu.RLock()
	defer tab.mu.RUnlock()
	p := tab.paths[pathKey{src, dst}]
	return p != nil && p.ready.Load() != nil
}

// BenchmarkFlush is rows of 8 datagrams, each row flushed, by one reader and by
// two with a path each. An operation is a datagram.
func BenchmarkFlush(b *testing.B) {
	const row = 8
	for _, readers := range []int{1, 2} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			tab, stop := discardTable()
			defer stop()
			payload := make([]byte, 1200)
			clients := []netip.AddrPort{clientA, clientB}
			for _, c := range clients {
				for tab.Send(c, remote1, nil); !pathIsReady(tab, c, remote1); {
					runtime.Gosched()
				}
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			b.ResetTimer()
			var reading sync.WaitGroup
			for _, c := range clients[:readers] {
				reading.Go(func() {
					for range b.N / readers / row {
						for range row {
							tab.Send(c, remote1, payload)
						}
						tab.Flush()
					}
				})
			}
			reading.Wait()
		})
	}
}
