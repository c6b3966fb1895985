package group

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// fake is a member that does as it is told, in memory.
type fake struct {
	name  string
	mu    sync.Mutex
	err   error         // of the next dials
	delay time.Duration // before they are answered
	hang  string        // they hang in this step, until their context ends
	probe error
	slow  time.Duration // before a probe is answered
	noUDP error         // of the next OpenUDP

	dials, opens, probes, closed atomic.Int64
}

func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fake) hop(op string, err error) error {
	return &outbound.HopError{Hop: 1, Hops: 1, Upstream: f.name, Op: op, Err: err}
}

func (f *fake) wait(ctx context.Context) error {
	f.mu.Lock()
	err, delay, hang := f.err, f.delay, f.hang
	f.mu.Unlock()
	if hang != "" {
		<-ctx.Done()
		return f.hop(hang, context.Cause(ctx))
	}
	select {
	case <-time.After(delay):
		return err
	case <-ctx.Done():
		return f.hop("request", context.Cause(ctx))
	}
}

func (f *fake) DialTCP(ctx context.Context, t flow.Target) (outbound.Conn, error) {
	f.dials.Add(1)
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	return &fakeConn{from: f}, nil
}

func (f *fake) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	f.opens.Add(1)
	f.mu.Lock()
	err := f.noUDP
	f.mu.Unlock()
	if err == nil {
		err = f.wait(ctx)
	}
	if err != nil {
		return nil, err
	}
	return &fakeUDP{from: f}, nil
}

func (f *fake) Probe(ctx context.Context, negotiate bool) error {
	f.probes.Add(1)
	f.mu.Lock()
	err, slow := f.probe, f.slow
	f.mu.Unlock()
	select {
	case <-time.After(slow):
		return err
	case <-ctx.Done():
		return f.hop("negotiate", context.Cause(ctx))
	}
}

type fakeConn struct {
	net.Conn
	from *fake
}

func (c *fakeConn) CloseWrite() error { return nil }
func (c *fakeConn) Close() error      { c.from.closed.Add(1); return nil }

type fakeUDP struct {
	outbound.PacketConn
	from *fake
}

func (c *fakeUDP) Close() error { c.from.closed.Add(1); return nil }

// script are fakes named a, b, ... and a group of them, whose warnings are in log.
type script struct {
	*Group
	m   []*fake
	log *bytes.Buffer
}

func newScript(t *testing.T, n int, o Options) *script {
	t.Helper()
	s := &script{log: &bytes.Buffer{}}
	o.Name = "g"
	for i := range n {
		f := &fake{name: string(rune('a' + i))}
		s.m = append(s.m, f)
		o.Members = append(o.Members, Member{Name: f.name, Dialer: f})
	}
	o.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Group = g
	return s
}

// run has the group run until the end of the test.
func (s *script) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

func addrPort(a, b, c, d byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{a, b, c, d}), port)
}

var site = flow.Target{Name: "example.org", Port: 80}

// dial dials and returns the member that answered, and the error.
func (s *script) dial(ctx context.Context, target flow.Target) (string, error) {
	conn, err := s.DialTCP(ctx, target)
	if err != nil {
		return "", err
	}
	if c, ok := conn.(*countedConn); ok {
		conn = c.Conn
	}
	return conn.(*fakeConn).from.name, nil
}

func (s *script) dials() string {
	var list []string
	for _, m := range s.m {
		list = append(list, fmt.Sprint(m.dials.Load()))
	}
	return strings.Join(list, " ")
}

// bad returns the members that are bad for TCP, with the causes.
func (s *script) bad() string {
	var list []string
	for _, m := range s.tcp.status() {
		if m.Bad {
			list = append(list, m.Member+": "+m.Cause.String())
		}
	}
	return strings.Join(list, ", ")
}

func (s *script) warnings() int { return strings.Count(s.log.String(), "level=WARN") }

// Each way to fail of the first of two members, and what the client sees of it.
func TestFailover(t *testing.T) {
	refusedDial := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	tests := []struct {
		name string
		op   string
		err  error
		want syscall.Errno // 0: the second member answers
		bad  string
	}{
		{"connect", "connect", refusedDial, 0, "a: connect failed"},
		{"silence", "negotiate", fmt.Errorf("no answer within 1s: %w", os.ErrDeadlineExceeded), 0, "a: no answer"},
		{"EOF", "negotiate", io.EOF, 0, "a: hung up"},
		{"wrong password", "authenticate", socks.ErrAuth, 0, "a: authentication refused"},
		{"EOF for a reply", "request", io.EOF, 0, ""},
		{"general failure", "request", socks.ReplyGeneral, 0, ""},
		{"network unreachable", "request", socks.ReplyNetUnreachable, 0, ""},
		{"host unreachable", "request", socks.ReplyHostUnreachable, 0, ""},
		{"TTL", "request", socks.ReplyTTL, 0, ""},
		{"ruleset", "request", socks.ReplyRuleset, syscall.EACCES, ""},
		{"refused", "request", socks.ReplyRefused, syscall.ECONNREFUSED, ""},
		{"command", "request", socks.ReplyCommand, syscall.EHOSTUNREACH, ""},
		{"address type", "request", socks.ReplyAddressType, syscall.ENETUNREACH, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(t, 2, Options{})
				s.m[0].err = s.m[0].hop(tt.op, tt.err)
				member, err := s.dial(t.Context(), site)
				if tt.want == 0 {
					if member != "b" || err != nil {
						t.Errorf("member %q, %v, want b", member, err)
					}
				} else {
					if got := outbound.Errno(err); got != tt.want {
						t.Errorf("Errno of %v is %v, want %v", err, got, tt.want)
					}
					if n := s.m[1].dials.Load(); n != 0 {
						t.Errorf("b was tried too")
					}
				}
				if got := s.bad(); got != tt.bad {
					t.Errorf("bad: %q, want %q", got, tt.bad)
				}
			})
		})
	}
}

func TestErrorNamesEachMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 3, Options{})
		s.m[0].err = s.m[0].hop("connect", syscall.ECONNREFUSED)
		s.m[1].err = s.m[1].hop("request", socks.ReplyNetUnreachable)
		s.m[2].err = errors.New("broken")
		_, err := s.dial(t.Context(), site)
		const want = "g: a: connect: connection refused; b: request: network unreachable (reply 3); c: broken"
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		// What a says is about a, what b says about the target.
		if got := outbound.Errno(err); got != syscall.ENETUNREACH {
			t.Errorf("Errno %v, want ENETUNREACH", got)
		}
		var hop *outbound.HopError
		if !errors.As(err, &hop) || hop.Upstream != "g" || hop.Hop != 1 || hop.Hops != 1 || hop.Op != "request" {
			t.Errorf("as one hop: %+v", hop)
		}
	})
}

// Of many members that say the same of a target, three are believed, and a long
// list is cut.
func TestThreeAreBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 9, Options{})
		for _, m := range s.m {
			m.err = m.hop("request", socks.ReplyHostUnreachable)
		}
		if _, err := s.dial(t.Context(), site); outbound.Errno(err) != syscall.EHOSTUNREACH {
			t.Error(err)
		}
		if got, want := s.dials(), "1 1 1 0 0 0 0 0 0"; got != want {
			t.Errorf("dials %s, want %s", got, want)
		}
		for _, m := range s.m {
			m.err = m.hop("connect", syscall.ECONNREFUSED)
		}
		_, err := s.dial(t.Context(), site)
		if err == nil || !strings.HasSuffix(err.Error(), "; and 4 more") {
			t.Errorf("error of 9 members: %v", err)
		}
	})
}

// A server that answers for the target is not blamed, however often; one that says
// "general failure" of what others reach is, at the third target.
func TestWhoIsBlamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{})
		targets := func(n int) {
			for i := range n {
				s.dial(t.Context(), flow.Target{Name: fmt.Sprintf("%d.example.org", i), Port: 80})
			}
		}
		s.m[0].err = s.m[0].hop("request", socks.ReplyHostUnreachable)
		targets(20)
		if s.bad() != "" {
			t.Errorf("after host unreachable: bad: %s", s.bad())
		}
		general := s.m[0].hop("request", socks.ReplyGeneral)
		s.m[0].err, s.m[1].err = general, s.m[1].hop("request", socks.ReplyGeneral)
		targets(20)
		if s.bad() != "" {
			t.Errorf("after what nobody reaches: bad: %s", s.bad())
		}
		s.m[1].err = nil
		for range 20 {
			s.dial(t.Context(), site)
		}
		if s.bad() != "" {
			t.Errorf("after one target that only b reaches: bad: %s", s.bad())
		}
		targets(1)
		s.m[0].err = nil
		targets(1) // reached: it begins anew
		s.m[0].err = general
		targets(proofs - 1)
		if s.bad() != "" {
			t.Errorf("after %d targets that only b reaches: bad: %s", proofs-1, s.bad())
		}
		targets(proofs)
		if want := "a: general failure"; s.bad() != want {
			t.Errorf("after %d targets that only b reaches: bad: %q, want %q", proofs, s.bad(), want)
		}
	})
}

func TestMaxFailInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{MaxFail: 3})
		down := s.m[0].hop("connect", syscall.ECONNREFUSED)
		for _, err := range []error{down, down, nil, down, down} {
			s.m[0].err = err
			if _, err := s.dial(t.Context(), site); err != nil {
				t.Error(err)
			}
		}
		if s.bad() != "" {
			t.Errorf("two failures in a row: bad: %s", s.bad())
		}
		s.dial(t.Context(), site)
		if want := "a: connect failed"; s.bad() != want {
			t.Errorf("after the third: bad: %q, want %q", s.bad(), want)
		}
		s.m[1].err = s.m[1].hop("authenticate", socks.ErrAuth)
		s.dial(t.Context(), site)
		if !strings.Contains(s.bad(), "b: authentication refused") {
			t.Errorf("a password that was refused once: bad: %q", s.bad())
		}
	})
}

// A bad member gets no flows, is probed after BadExpire and not before, and is back
// when the probe succeeds. It is told of once each.
func TestRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{BadExpire: 10 * time.Second})
		s.run(t)
		a := s.m[0]
		wrong := a.hop("authenticate", fmt.Errorf("%w (status 1)", socks.ErrAuth))
		a.set(func(f *fake) { f.err, f.probe = wrong, wrong })
		for range 50 {
			if member, err := s.dial(t.Context(), site); member != "b" {
				t.Fatalf("member %q, %v", member, err)
			}
		}
		if n := a.dials.Load(); n != 1 {
			t.Errorf("%d flows were gambled on a, want the first", n)
		}
		time.Sleep(7 * time.Second) // 10 s less a fifth
		synctest.Wait()
		if n := a.probes.Load(); n != 0 {
			t.Errorf("%d probes before BadExpire", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		probes := a.probes.Load()
		if probes < 5 || probes > 8 { // 67 s, every 8 to 12
			t.Errorf("%d probes in 67 s, want 5 to 8", probes)
		}
		if want := "a: authentication refused"; s.bad() != want {
			t.Errorf("bad: %q, want %q", s.bad(), want)
		}
		if n := s.warnings(); n != 1 || !strings.Contains(s.log.String(), `msg="member of a group refuses our user or password" group=g member=a net=tcp cause="authentication refused" err=`) {
			t.Errorf("%d warnings, want one:\n%s", n, s.log)
		}
		a.set(func(f *fake) { f.err, f.probe = nil, nil })
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if member, err := s.dial(t.Context(), site); member != "a" {
			t.Errorf("after a probe that succeeded: member %q, %v", member, err)
		}
		if n := s.warnings(); n != 2 || !strings.Contains(s.log.String(), `msg="member of a group is good again" group=g member=a`) {
			t.Errorf("%d warnings, want one more:\n%s", n, s.log)
		}
		probes = a.probes.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := a.probes.Load(); n != probes {
			t.Errorf("a good member was probed %d times without ProbeEvery", n-probes)
		}
	})
}

// With ProbeEvery a member is found bad without a flow, and by a target also where it
// is alive but leads nowhere.
func TestActiveProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{ProbeEvery: 10 * time.Second, Probe: Probe{Target: site}})
		s.run(t)
		time.Sleep(time.Minute)
		if n := s.m[0].dials.Load(); n < 5 || n > 8 {
			t.Errorf("%d probes in a minute, want 5 to 8", n)
		}
		s.m[0].set(func(f *fake) { f.err = f.hop("request", socks.ReplyNetUnreachable) })
		s.m[1].set(func(f *fake) { f.err = f.hop("request", socks.ReplyRefused) })
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if want := "a: target of the probe not reached"; s.bad() != want {
			t.Errorf("bad: %q, want %q (b reached it, and was refused)", s.bad(), want)
		}
	})
}

// A silent member costs a flow Try, once; then it is bad. What was opened too late is
// closed.
func TestSilence(t *testing.T) {
	for _, hang := range []string{"connect", "negotiate", "authenticate"} {
		t.Run(hang, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScript(t, 3, Options{Try: 2 * time.Second})
				s.m[0].hang = hang
				for i, want := range []time.Duration{2 * time.Second, 0, 0} {
					begun := time.Now()
					if member, err := s.dial(t.Context(), site); member != "b" {
						t.Errorf("member %q, %v", member, err)
					}
					if took := time.Since(begun); took != want {
						t.Errorf("flow %d took %v, want %v", i, took, want)
					}
				}
				if !strings.HasPrefix(s.bad(), "a: ") {
					t.Errorf("bad: %q", s.bad())
				}
			})
		})
	}
}

// A slow target is not the member's fault: the member is not given up after Try, and
// if it answers first it is kept.
func TestSlowTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{Try: 2 * time.Second})
		s.m[0].delay, s.m[1].delay = 3*time.Second, 3*time.Second
		begun := time.Now()
		if member, err := s.dial(t.Context(), site); member != "a" || time.Since(begun) != 3*time.Second {
			t.Errorf("member %q after %v, %v", member, time.Since(begun), err)
		}
		if got := s.dials() + " " + s.bad(); got != "1 1 " {
			t.Errorf("dials and bad: %q", got)
		}
	})
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 30, Options{Try: 2 * time.Second, Deadline: 9 * time.Second})
		for _, m := range s.m {
			m.hang = "negotiate"
		}
		begun := time.Now()
		_, err := s.dial(t.Context(), site)
		if took := time.Since(begun); took != 9*time.Second || outbound.Errno(err) != syscall.EHOSTUNREACH {
			t.Errorf("%v after %v", err, took)
		}
		n := int64(0)
		for _, m := range s.m {
			n += m.dials.Load()
		}
		if n != 5 { // at 0, 2, 4, 6 and 8 s
			t.Errorf("%d members were tried, want 5", n)
		}
		if got := strings.Count(s.bad(), "no answer"); got != 4 { // the fifth had one second
			t.Errorf("bad: %s", s.bad())
		}
	})
}

// A client that gives up ends all tries, and blames nobody; who was slow is probed.
func TestClientGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{})
		s.run(t)
		s.m[0].hang = "negotiate"
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		_, err := s.dial(ctx, site)
		if took := time.Since(begun); took != 3*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
		synctest.Wait()
		if got := s.dials() + " " + s.bad(); got != "1 0 " {
			t.Errorf("dials and bad: %q, want one dial and nobody", got)
		}
		if n := s.m[0].probes.Load(); n != 1 {
			t.Errorf("a was probed %d times, want once", n)
		}
	})
}

// Hedging: the next member after a delay, the first that answers is kept, the other
// closed, nobody is blamed, and a probe looks after the one that was slow.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{Hedge: 300 * time.Millisecond})
		s.run(t)
		s.m[0].hang = "negotiate"
		begun := time.Now()
		member, err := s.dial(t.Context(), site)
		if took := time.Since(begun); member != "b" || took != 300*time.Millisecond {
			t.Errorf("member %q after %v, %v", member, took, err)
		}
		synctest.Wait()
		if got := s.bad(); got != "" || s.m[0].probes.Load() != 1 {
			t.Errorf("bad: %q after %d probes", got, s.m[0].probes.Load())
		}
		// The probe is not answered either.
		s.m[0].set(func(f *fake) { f.probe = f.hop("negotiate", os.ErrDeadlineExceeded) })
		s.dial(t.Context(), site)
		synctest.Wait()
		if want := "a: no answer"; s.bad() != want {
			t.Errorf("bad: %q, want %q", s.bad(), want)
		}
	})
}

// While a probe looks after a member that was slow, flows do not wait for it, unless
// there is no other; and a member that is well again is used again.
func TestSuspectStandsAside(t *testing.T) {
	for _, p := range []Policy{Fallback, Random, RoundRobin, LeastFlows} {
		synctest.Test(t, func(t *testing.T) {
			s := newScript(t, 2, Options{Policy: p, Hedge: 300 * time.Millisecond})
			s.run(t)
			a, b := s.m[0], s.m[1]
			a.set(func(f *fake) { f.hang, f.slow = "negotiate", 2*time.Second })
			dial := func(want string, took time.Duration) {
				t.Helper()
				begun := time.Now()
				member, err := s.dial(t.Context(), site)
				if d := time.Since(begun); member != want || d != took {
					t.Errorf("policy %d: member %q after %v, %v; want %q after %v", p, member, d, err, want, took)
				}
				synctest.Wait()
			}
			useA := func() { // the policy may begin with b
				t.Helper()
				before := a.dials.Load()
				for n := 0; a.dials.Load() == before; n++ {
					if n == 100 {
						t.Fatalf("policy %d: a is not used", p)
					}
					s.dial(t.Context(), site)
				}
				synctest.Wait()
			}
			useA()
			for range 10 {
				dial("b", 0)
			}
			if n := a.dials.Load(); n != 1 {
				t.Errorf("policy %d: a was tried %d times while it was probed", p, n)
			}
			a.set(func(f *fake) { f.hang = "" })
			b.set(func(f *fake) { f.err = f.hop("request", socks.ReplyGeneral) })
			dial("a", 0) // which says that it is well
			dial("a", 0)
			b.set(func(f *fake) { f.err = nil })

			a.set(func(f *fake) { f.hang = "negotiate" })
			time.Sleep(5 * time.Second) // the first probe has ended
			useA()
			a.set(func(f *fake) { f.hang = "" })
			time.Sleep(3 * time.Second) // and so has the second one
			useA()
			if s.bad() != "" {
				t.Errorf("policy %d: bad: %q", p, s.bad())
			}
		})
	}
}

// By hash a flow stays where it belongs, as long as that may be well.
func TestSuspectKeepsItsFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{Policy: HashTarget, Hedge: 300 * time.Millisecond})
		s.run(t)
		own, _ := s.dial(t.Context(), site)
		for _, m := range s.m {
			m.set(func(f *fake) { f.slow = 2 * time.Second })
		}
		i := int(own[0] - 'a')
		s.m[i].set(func(f *fake) { f.hang = "negotiate" })
		if other, err := s.dial(t.Context(), site); other == own {
			t.Errorf("member %q, %v", other, err)
		}
		s.m[i].set(func(f *fake) { f.hang = "" })
		synctest.Wait()
		if again, err := s.dial(t.Context(), site); again != own {
			t.Errorf("member %q, %v, want %q", again, err, own)
		}
	})
}

// stubborn answers though its context has ended.
type stubborn struct{ fake }

func (f *stubborn) DialTCP(ctx context.Context, t flow.Target) (outbound.Conn, error) {
	<-ctx.Done()
	return &fakeConn{from: &f.fake}, nil
}

func TestSecondAnswerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late, quick := &stubborn{}, &fake{name: "b"}
		g, err := New(Options{Name: "g", Hedge: time.Second, Members: []Member{{Name: "a", Dialer: late}, {Name: "b", Dialer: quick}}})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := g.DialTCP(t.Context(), site)
		if err != nil || conn.(*fakeConn).from != quick {
			t.Errorf("%v, %v", conn, err)
		}
		if late.closed.Load() != 1 || quick.closed.Load() != 0 {
			t.Errorf("closed: %d of the late, %d of the one that is kept", late.closed.Load(), quick.closed.Load())
		}
	})
}

// Where all are bad they are tried anyway, those first whose failure may have been an
// accident, and one that answers is good again.
func TestLeastBadAreTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 3, Options{})
		s.m[0].err = s.m[0].hop("authenticate", socks.ErrAuth)
		s.m[1].err = s.m[1].hop("negotiate", socks.ErrProtocol)
		s.m[2].err = s.m[2].hop("connect", syscall.ECONNREFUSED)
		if _, err := s.dial(t.Context(), site); err == nil {
			t.Fatal("no error")
		}
		s.m[1].err, s.m[2].err = nil, nil
		if member, err := s.dial(t.Context(), site); member != "c" {
			t.Errorf("member %q, %v, want c", member, err)
		}
		if got, want := s.bad(), "a: authentication refused, b: not the protocol"; got != want {
			t.Errorf("bad: %q, want %q", got, want)
		}
		// While a good one says that it cannot be reached, no bad one is asked.
		s.m[2].err = s.m[2].hop("request", socks.ReplyHostUnreachable)
		before := s.m[1].dials.Load()
		if _, err := s.dial(t.Context(), site); err == nil || s.m[1].dials.Load() != before {
			t.Errorf("%v after %d more dials to a bad one", err, s.m[1].dials.Load()-before)
		}
		// If it goes down, they are.
		s.m[2].err = s.m[2].hop("connect", syscall.ECONNREFUSED)
		if member, err := s.dial(t.Context(), site); member != "b" {
			t.Errorf("member %q, %v, want b", member, err)
		}
	})
}

// Flows that fail because all members are bad do not put the probes off.
func TestProbeInSpiteOfFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 1, Options{BadExpire: 10 * time.Second})
		s.run(t)
		down := s.m[0].hop("connect", syscall.ECONNREFUSED)
		s.m[0].set(func(f *fake) { f.err, f.probe = down, down })
		for range 30 {
			s.dial(t.Context(), site)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := s.m[0].probes.Load(); n != 2 && n != 3 { // each 8 to 12 s
			t.Errorf("%d probes in 30 s, want 2 or 3", n)
		}
	})
}

// UDP has a health of its own.
func TestUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 3, Options{BadExpire: 10 * time.Second})
		s.run(t)
		open := func() (string, error) {
			c, err := s.OpenUDP(t.Context())
			if err != nil {
				return "", err
			}
			return c.(*fakeUDP).from.name, nil
		}
		s.m[0].noUDP = s.m[0].hop("request", fmt.Errorf("%w: %w", outbound.ErrNoUDP, socks.ReplyCommand))
		s.m[1].noUDP = s.m[1].hop("connect", syscall.ECONNREFUSED)
		for range 5 {
			if member, err := open(); member != "c" {
				t.Errorf("member %q, %v, want c", member, err)
			}
		}
		if s.m[0].opens.Load() != 1 || s.m[1].opens.Load() != 1 {
			t.Errorf("asked for UDP: %d and %d times", s.m[0].opens.Load(), s.m[1].opens.Load())
		}
		if member, err := s.dial(t.Context(), site); member != "a" || s.bad() != "" {
			t.Errorf("TCP: member %q, %v; bad: %q", member, err, s.bad())
		}
		if n := s.warnings(); n != 1 {
			t.Errorf("%d warnings, want one, of b:\n%s", n, s.log)
		}
		s.m[0].set(func(f *fake) { f.noUDP = nil })
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if member, err := open(); member != "a" {
			t.Errorf("after a probe: member %q, %v, want a", member, err)
		}
	})
}

// It is an ErrNoUDP only if nobody has any: that is believed for a while.
func TestNoUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{})
		for _, m := range s.m {
			m.noUDP = m.hop("request", fmt.Errorf("%w: %w", outbound.ErrNoUDP, socks.ReplyCommand))
		}
		if _, err := s.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) {
			t.Errorf("nobody has UDP: %v", err)
		}
		s.m[1].noUDP = s.m[1].hop("request", fmt.Errorf("%w: %w", outbound.ErrNoUDP, io.EOF))
		if _, err := s.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) || !outbound.HungUp(err) {
			t.Errorf("one is not sure: %v, want an ErrNoUDP that is a hang-up", err)
		}
		s.m[1].noUDP = s.m[1].hop("connect", syscall.ECONNREFUSED)
		if _, err := s.OpenUDP(t.Context()); errors.Is(err, outbound.ErrNoUDP) || err == nil {
			t.Errorf("one is down: %v", err)
		}
	})
	g := choosers(t, 2, Fallback)
	if _, err := g.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) {
		t.Errorf("nobody can have UDP: %v", err)
	}
}

// What is open counts, and no longer.
func TestLeastFlowsCountsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, 2, Options{Policy: LeastFlows})
		open := func() outbound.Conn {
			c, err := s.DialTCP(t.Context(), site)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		from := func(c outbound.Conn) string {
			return c.(outbound.Relayed).Socket().(*fakeConn).from.name
		}
		first, second := open(), open()
		if from(first) == from(second) {
			t.Error("two flows are on the same member")
		}
		second.Close()
		second.Close() // counts once
		for range 3 {
			c := open()
			if from(c) != from(second) {
				t.Errorf("a flow goes to %s, which has one already", from(c))
			}
			c.Close()
		}
		s.m[0].err = s.m[0].hop("request", socks.ReplyHostUnreachable)
		s.m[1].err = s.m[1].hop("request", socks.ReplyHostUnreachable)
		s.DialTCP(t.Context(), site)
		first.Close()
		if got := s.tcp.load.flows(); got[0]+got[1] != 0 {
			t.Errorf("%v flows are counted, and none is open", got)
		}
		s.OpenUDP(t.Context())
		s.m[0].err, s.m[1].err = nil, nil
		udp, err := s.OpenUDP(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := s.udp.load.flows(); got[0]+got[1] != 1 {
			t.Errorf("%v conversations are counted, and one is open", got)
		}
		udp.Close()
		if got := s.udp.load.flows(); got[0]+got[1] != 0 {
			t.Errorf("%v conversations are counted, and none is open", got)
		}
	})
}

// A source stays on its member, whatever its port; who it is comes in the context,
// also through a chain. The choice is noted.
func TestHashSource(t *testing.T) {
	s := newScript(t, 5, Options{Policy: HashSource})
	seen := make(map[string]bool)
	for i := range byte(50) {
		was := ""
		for port := range uint16(5) {
			f := &outbound.Flow{Flow: flow.Flow{Source: addrPort(10, 0, 0, i, 4000+port), Target: site}}
			member, err := s.dial(outbound.WithFlow(t.Context(), f), flow.Target{Name: fmt.Sprint(port), Port: 80})
			if err != nil || was != "" && member != was {
				t.Errorf("source 10.0.0.%d was on %q and is on %q, %v", i, was, member, err)
			}
			if got := f.Way([]string{"g"}); got[0] != "g/"+member {
				t.Errorf("the way is %q, want g/%s", got, member)
			}
			was = member
		}
		seen[was] = true
	}
	if len(seen) != 5 {
		t.Errorf("50 sources use %d of 5 members", len(seen))
	}
}

func TestHashTarget(t *testing.T) {
	s := newScript(t, 5, Options{Policy: HashTarget})
	seen := make(map[string]bool)
	for i := range 50 {
		was := ""
		for port := range uint16(5) {
			target := flow.Target{Name: fmt.Sprintf("%d.example.org", i), Port: port + 1}
			member, err := s.dial(t.Context(), target)
			if err != nil || was != "" && member != was {
				t.Errorf("%v was on %q and is on %q, %v", target, was, member, err)
			}
			was = member
		}
		seen[was] = true
	}
	if len(seen) != 5 {
		t.Errorf("50 targets use %d of 5 members", len(seen))
	}
}

// A group within a group: bad if all of its members are, good again with one of them.
func TestGroupInAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newScript(t, 2, Options{BadExpire: 10 * time.Second})
		last := &fake{name: "last"}
		outer, err := New(Options{Name: "outer", BadExpire: 10 * time.Second, Members: []Member{{Name: "g", Dialer: inner.Group}, {Name: "last", Dialer: last}}})
		if err != nil {
			t.Fatal(err)
		}
		inner.run(t)
		(&script{Group: outer}).run(t)
		for _, m := range inner.m {
			down := m.hop("connect", syscall.ECONNREFUSED)
			m.err, m.probe = down, down
		}
		for range 3 {
			if conn, err := outer.DialTCP(t.Context(), site); err != nil || conn.(*fakeConn).from != last {
				t.Errorf("%v, %v", conn, err)
			}
		}
		if got := inner.dials(); got != "1 1" {
			t.Errorf("dials of the inner members: %s, want 1 1", got)
		}
		inner.m[1].set(func(f *fake) { f.err, f.probe = nil, nil })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if conn, err := outer.DialTCP(t.Context(), site); err != nil || conn.(*fakeConn).from != inner.m[1] {
			t.Errorf("after the recovery: %v, %v", conn, err)
		}
	})
}

func TestInherit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		was := newScript(t, 3, Options{BadExpire: time.Minute})
		for _, m := range was.m[:2] {
			m.err = m.hop("connect", syscall.ECONNREFUSED)
		}
		was.dial(t.Context(), site)
		is := newScript(t, 3, Options{BadExpire: time.Minute})
		is.Inherit(was.Group, func(m string) bool { return m != "b" })
		if want := "a: connect failed"; is.bad() != want {
			t.Errorf("bad: %q, want %q", is.bad(), want)
		}
		if member, err := is.dial(t.Context(), site); member != "b" {
			t.Errorf("member %q, %v, want b", member, err)
		}
		is.run(t)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if is.bad() != "" {
			t.Errorf("after a probe: bad: %q", is.bad())
		}
	})
}

func TestNewRefuses(t *testing.T) {
	m := Member{Name: "a", Dialer: closed{}}
	for name, o := range map[string]Options{
		"no members":  {},
		"no dialer":   {Members: []Member{{Name: "a"}}},
		"twice":       {Members: []Member{m, m}},
		"bad weight":  {Members: []Member{{Name: "a", Dialer: closed{}, Weight: MaxWeight + 1}}},
		"bad policy":  {Members: []Member{m}, Policy: Fastest + 1},
		"less than 0": {Members: []Member{{Name: "a", Dialer: closed{}, Weight: -1}}},
	} {
		if g, err := New(o); err == nil {
			t.Errorf("%s: %v", name, g)
		}
	}
}
