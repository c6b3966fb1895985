package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// Defaults of [Options].
const (
	// DefaultMaxFail: one failure that is surely the member's, as Dante's
	// route.maxfail has it. That nothing listens there, or that a password is
	// wrong, will not be otherwise the next time.
	DefaultMaxFail = 1
	// DefaultBadExpire is short beside Dante's 300 s, because it is a probe that
	// finds out then, not somebody's flow.
	DefaultBadExpire = 30 * time.Second
	// DefaultTry: Linux sends its SYN at 0, 1 and 3 seconds, so that two may
	// be lost; and danted says after 3 s that a host is down.
	DefaultTry = 5 * time.Second
	// DefaultDeadline has room for one server that takes all of the time
	// that it is given: 10 s to connect, 10 to negotiate, 35 for the request.
	DefaultDeadline = 60 * time.Second
	// DefaultProbeEvery is how often Fastest measures. A probe costs a server
	// a connection and a few lines in its log.
	DefaultProbeEvery = 30 * time.Second
)

// MaxWeight is the greatest weight of a member.
const MaxWeight = 1000

// Member is an outbound that a group may choose.
type Member struct {
	Name   string
	Dialer outbound.Dialer // for UDP also an [outbound.PacketDialer]
	Weight int             // 1 to MaxWeight; 0 is 1
}

// Options describe a group. Name and Members are required.
type Options struct {
	Name    string // what errors and logs call the group
	Members []Member
	Policy  Policy

	// MaxFail failures of a member in a row make it bad; 0 is DefaultMaxFail.
	// What is probably about the target does not count.
	MaxFail int
	// BadExpire is how long a bad member is left alone, until it is probed;
	// 0 is DefaultBadExpire.
	BadExpire time.Duration
	// Try is how long a member may be silent before another one is tried
	// beside it; 0 is DefaultTry. The silent one is not given up: a target
	// may be slow as well.
	Try time.Duration
	// Hedge does the same without blaming the member, for those who would
	// rather open two connections than wait; it is shorter than Try. 0 is
	// not at all.
	Hedge time.Duration
	// Deadline bounds all tries for a flow; 0 is DefaultDeadline.
	Deadline time.Duration

	// Probe is how members are probed.
	Probe Probe
	// ProbeEvery has good members probed as well, so often; 0 is not at all,
	// but for Fastest DefaultProbeEvery.
	ProbeEvery time.Duration

	// Logger gets one warning for each member that becomes bad or good
	// again; nil discards.
	Logger *slog.Logger
}

// Probe is what a probe of a member does. For UDP it always opens a conversation.
type Probe struct {
	// Target, if not zero, is connected to through the member.
	Target flow.Target
	// ConnectOnly leaves it at a TCP connect to the server, without a
	// negotiation. It finds no server that has stopped.
	ConnectOnly bool
}

// Group is an outbound that chooses among others. Flows that are open are not
// touched by anything that becomes of its members.
type Group struct {
	opts    Options
	log     *slog.Logger
	members []*member
	weights []uint64
	tcp     *side
	udp     *side
	wake    chan struct{} // Run has something to look at
}

type member struct {
	name    string
	dialer  outbound.Dialer
	packets outbound.PacketDialer // nil: no UDP
	binder  outbound.Binder       // nil: nobody can connect to its far end
	prober  outbound.Prober       // nil: only a target can tell
}

var (
	_ outbound.Dialer       = (*Group)(nil)
	_ outbound.PacketDialer = (*Group)(nil)
	_ outbound.Chain        = (*Group)(nil)
	_ outbound.Prober       = (*Group)(nil)
)

// New returns a Group of which all members are good. It starts nothing; [Group.Run]
// has to run for members that have become bad to become good again.
func New(o Options) (*Group, error) {
	if len(o.Members) == 0 {
		return nil, fmt.Errorf("group %s: no members", o.Name)
	}
	if o.Policy > Fastest {
		return nil, fmt.Errorf("group %s: unknown policy %d", o.Name, o.Policy)
	}
	if o.MaxFail <= 0 {
		o.MaxFail = DefaultMaxFail
	}
	setDefault(&o.BadExpire, DefaultBadExpire)
	setDefault(&o.Try, DefaultTry)
	setDefault(&o.Deadline, DefaultDeadline)
	if o.Policy == Fastest {
		setDefault(&o.ProbeEvery, DefaultProbeEvery)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Group{opts: o, log: o.Logger, wake: make(chan struct{}, 1)}
	names := make([]string, 0, len(o.Members))
	seen := make(map[string]bool)
	for _, m := range o.Members {
		switch {
		case m.Dialer == nil:
			return nil, fmt.Errorf("group %s: member %s has no Dialer", o.Name, m.Name)
		case seen[m.Name]:
			return nil, fmt.Errorf("group %s: two members named %q", o.Name, m.Name)
		case m.Weight < 0 || m.Weight > MaxWeight:
			return nil, fmt.Errorf("group %s: weight %d of %s, want 1 to %d", o.Name, m.Weight, m.Name, MaxWeight)
		}
		seen[m.Name] = true
		names = append(names, m.Name)
		g.weights = append(g.weights, uint64(max(m.Weight, 1)))
		own := &member{name: m.Name, dialer: m.Dialer}
		own.packets, _ = m.Dialer.(outbound.PacketDialer)
		own.binder, _ = m.Dialer.(outbound.Binder)
		own.prober, _ = m.Dialer.(outbound.Prober)
		g.members = append(g.members, own)
	}
	hash := newRing(names, g.weights)
	g.tcp, g.udp = newSide(g, flow.TCP, hash), newSide(g, flow.UDP, hash)
	return g, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Hops returns the group's own name: which member a flow goes through is known when
// it does. In a chain a group counts as one hop.
func (g *Group) Hops() []string { return []string{g.opts.Name} }

// DialTCP connects to t through the member that the policy chooses, and, as long as
// nobody has been told anything, through others if that fails for a reason that
// another one may not have. The error is an [*Error]. Which member it was is noted in
// the [outbound.Flow] of ctx.
func (g *Group) DialTCP(ctx context.Context, t flow.Target) (outbound.Conn, error) {
	conn, at, err := try(ctx, g.tcp, g.key(ctx, t), hashTarget(t), func(ctx context.Context, m *member) (outbound.Conn, error) {
		return m.dialer.DialTCP(ctx, t)
	})
	if err != nil {
		return nil, err
	}
	if release := g.tcp.hold(at); release != nil {
		return &countedConn{Conn: conn, release: release}, nil
	}
	return conn, nil
}

// OpenUDP opens a conversation as DialTCP connects. It is an [outbound.ErrNoUDP] where
// no member carries UDP.
func (g *Group) OpenUDP(ctx context.Context) (outbound.PacketConn, error) {
	conn, at, err := try(ctx, g.udp, g.key(ctx, flow.Target{}), 0, func(ctx context.Context, m *member) (outbound.PacketConn, error) {
		return m.packets.OpenUDP(ctx)
	})
	if err != nil {
		return nil, err
	}
	if release := g.udp.hold(at); release != nil {
		return newCountedUDP(conn, release), nil
	}
	return conn, nil
}

// key returns what a flow is hashed by. Where nobody has said where it comes from,
// it is the target.
func (g *Group) key(ctx context.Context, t flow.Target) uint64 {
	switch g.opts.Policy {
	case HashSource:
		if f := outbound.FlowOf(ctx); f != nil && f.Source.IsValid() {
			return hashAddr(f.Source.Addr())
		}
	case HashTarget:
		f := outbound.FlowOf(ctx)
		switch {
		case f != nil && f.Network == flow.UDP:
			return hashAddr(f.Source.Addr())
		case f != nil: // in a chain, t is a server
			return hashTarget(f.Target)
		}
	default:
		return 0
	}
	return hashTarget(t)
}

var errNoneGood = errors.New("all its members are bad")

// Probe implements [outbound.Prober], for a group that is a member of another: its own
// probes have found out.
func (g *Group) Probe(context.Context, bool) error {
	if len(g.tcp.view.Load().good) > 0 {
		return nil
	}
	return &outbound.HopError{Hop: 1, Hops: 1, Upstream: g.opts.Name, Op: "connect", Err: errNoneGood}
}

// Status is how a member is.
type Status struct {
	Member  string
	Network flow.Network
	Bad     bool
	Cause   Cause         // of Bad
	Err     error         // of Bad
	Since   time.Time     // when it became bad; the zero Time for a good one
	Took    time.Duration // the last probe that succeeded; 0 without one
}

// Status returns the members in their order, first for TCP, then for UDP.
func (g *Group) Status() []Status {
	return append(g.tcp.status(), g.udp.status()...)
}

// Inherit takes over what another group knows of the members of that name for which
// same is true: after a reload, say. It is called before the group is used.
func (g *Group) Inherit(from *Group, same func(member string) bool) {
	g.tcp.inherit(from.tcp, same)
	g.udp.inherit(from.udp, same)
}
