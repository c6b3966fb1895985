package router

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"tunroute/router/flow"
	"tunroute/router/limit"
	"tunroute/router/outbound"
	"tunroute/router/relay"
	"tunroute/router/rule"
	"tunroute/router/udpnat"
)

// End is how a flow ended, in one word.
type End string

// The ends of flows.
const (
	EndEOF      End = "eof"        // both sides had said all
	EndIdle     End = "idle"       // nothing came for long
	EndHalf     End = "half-close" // nor the end of the other direction, when one had ended
	EndClient   End = "client"     // the client broke it
	EndUpstream End = "upstream"   // the upstream broke it
	EndCanceled End = "canceled"   // tunroute stopped
	EndRefused  End = "refused"    // the target refused it
	EndFailed   End = "failed"     // it could not be connected
	EndRejected End = "rejected"   // a rule refused or ignored it
	EndOrphan   End = "orphan"     // a fake address without a name
	EndLimit    End = "limit"      // there were too many flows
)

// Record tells of a flow that has ended.
type Record struct {
	Flow        flow.Flow
	Destination netip.AddrPort // as the client has it; of a name, the fake address
	Verdict     rule.Verdict
	Outbound    string
	Hops        []string
	Up, Down    int64 // payload bytes, from and to the client
	Start       time.Time
	Took        time.Duration
	End         End
	Err         error // names the hop and its reply where there is one

	events Events         // that are logged of it
	asked  *outbound.Flow // of UDP, with the notes of groups; nil where nothing was opened
}

func (rec *Record) end(e End, err error) { rec.End, rec.Err = e, err }

// endOfDial says how a flow ended that was never connected.
func endOfDial(err error) End {
	switch {
	case errors.Is(err, outbound.ErrRejected), errors.Is(err, outbound.ErrDropped):
		return EndRejected
	case errors.Is(err, context.Canceled):
		return EndCanceled
	case outbound.Refused(err):
		return EndRefused
	}
	return EndFailed
}

func endOfRelay(e relay.End) End {
	switch e {
	case relay.EOF:
		return EndEOF
	case relay.Client:
		return EndClient
	case relay.Upstream:
		return EndUpstream
	}
	return EndCanceled
}

// source is who a flow is from, as it is logged.
func source(a netip.AddrPort) string {
	if !a.IsValid() {
		return "unix"
	}
	return a.String()
}

// Events are what is logged of a flow. The zero Events are [LogError] and
// [LogDisconnect], so that each flow has a record, at its end.
type Events uint8

// The events.
const (
	LogConnect    Events = 1 << iota // the flow is connected; for UDP, it begins
	LogError                         // it has ended, and was never connected
	LogDisconnect                    // it has ended, and was
	LogNone                          // nothing
)

// unconnected says that a flow with this end was never connected, or had to make room.
func (e End) unconnected() bool {
	switch e {
	case EndRefused, EndFailed, EndRejected, EndOrphan, EndLimit:
		return true
	}
	return false
}

// logs says whether an event of a flow is logged.
func (r *Router) logs(rec *Record, event Events) bool {
	events := rec.events
	if events == 0 {
		events = LogError | LogDisconnect
	}
	return events&event != 0 && r.log.Enabled(context.Background(), slog.LevelInfo)
}

// begins logs that a flow is connected, where its rule wants that.
func (r *Router) begins(rec *Record) {
	if r.logs(rec, LogConnect) {
		r.log.LogAttrs(context.Background(), slog.LevelInfo, "connect", rec.who()...)
	}
}

// who returns what the log says of a flow at its beginning and at its end.
func (rec *Record) who() []slog.Attr {
	attrs := make([]slog.Attr, 0, 14)
	attrs = append(attrs,
		slog.String("net", rec.Flow.Network.String()),
		slog.String("src", source(rec.Flow.Source)))
	if rec.Flow.Target != (flow.Target{}) { // an association has none
		attrs = append(attrs, slog.String("dst", rec.Flow.Target.String()))
	}
	if rec.Flow.Inbound != flow.Tun {
		attrs = append(attrs, slog.String("in", rec.Flow.Inbound))
	}
	if rec.Flow.User != "" {
		attrs = append(attrs, slog.String("user", rec.Flow.User))
	}
	if rec.Verdict.Index >= 0 {
		attrs = append(attrs, slog.Int("rule", rec.Verdict.Index+1))
		if rec.Verdict.Line > 0 {
			attrs = append(attrs, slog.Int("line", rec.Verdict.Line))
		}
	} else if rec.Outbound != "" {
		attrs = append(attrs, slog.String("rule", "default"))
	}
	if rec.Outbound != "" {
		attrs = append(attrs, slog.String("out", rec.Outbound))
	}
	if way := rec.asked.Way(rec.Hops); len(way) > 1 || len(way) == 1 && way[0] != rec.Outbound {
		attrs = append(attrs, slog.String("hops", strings.Join(way, " > ")))
	}
	return attrs
}

// finish counts and logs a flow.
func (r *Router) finish(rec *Record) {
	if rec.Took == 0 {
		rec.Took = time.Since(rec.Start)
	}
	r.stats.count(rec)
	if rec.End == EndOrphan && r.orphans.isNew(rec.Flow.Source.Addr(), time.Now()) {
		r.log.Warn("orphan", "src", source(rec.Flow.Source), "dst", rec.Destination.String(), "err",
			"this client holds a fake address from before, and is refused until it asks for the name again")
	}
	r.warnOfLimit(rec)
	event := LogDisconnect
	if rec.End.unconnected() {
		event = LogError
	}
	if !r.logs(rec, event) {
		return
	}
	attrs := append(rec.who(),
		slog.Int64("up", rec.Up),
		slog.Int64("down", rec.Down),
		slog.Duration("took", rec.Took.Round(time.Microsecond)),
		slog.String("end", string(rec.End)))
	if rec.Err != nil {
		attrs = append(attrs, slog.String("err", rec.Err.Error()))
	}
	r.log.LogAttrs(context.Background(), slog.LevelInfo, "flow", attrs...)
}

// counters are a Router's totals.
type counters struct {
	tcp, udp atomic.Uint64
	up, down atomic.Int64
	orphans  atomic.Uint64
	failed   atomic.Uint64
	rejected atomic.Uint64
	limited  atomic.Uint64
}

func (c *counters) count(rec *Record) {
	if rec.Flow.Network == flow.TCP {
		c.tcp.Add(1)
	} else {
		c.udp.Add(1)
	}
	c.up.Add(rec.Up)
	c.down.Add(rec.Down)
	switch rec.End {
	case EndFailed, EndRefused:
		c.failed.Add(1)
	case EndRejected:
		c.rejected.Add(1)
	case EndLimit:
		var met *limit.Error
		if errors.As(rec.Err, &met) {
			c.limited.Add(1)
		}
	}
}

// Stats are a Router's totals since the start; Flows, Sessions and Paths are
// what is open now.
type Stats struct {
	Flows, Sessions, Paths    int
	TCP, UDP                  uint64 // flows that have ended
	Up, Down                  int64  // payload bytes of those
	Orphans, Failed, Rejected uint64
	FlowsEvicted, UDPEvicted  uint64
	FlowsRefused              uint64 // for there was no room
	UDPLimited                uint64 // datagrams that went faster than the bandwidth of their rule
	Limited                   uint64 // flows that a limit of rules, sources, users or new flows has refused
}

// Stats returns the totals.
func (r *Router) Stats() Stats {
	var u udpnat.Stats
	for _, t := range r.tables() {
		one := t.Stats()
		u.Sessions += one.Sessions
		u.Paths += one.Paths
		u.Evicted += one.Evicted
		u.Limited += one.Limited
	}
	open, evicted, refused := r.flows.stats()
	return Stats{
		Flows: open, Sessions: u.Sessions, Paths: u.Paths,
		TCP: r.stats.tcp.Load(), UDP: r.stats.udp.Load(),
		Up: r.stats.up.Load(), Down: r.stats.down.Load(),
		Orphans: r.stats.orphans.Load(), Failed: r.stats.failed.Load(), Rejected: r.stats.rejected.Load(),
		FlowsEvicted: evicted, UDPEvicted: u.Evicted, UDPLimited: u.Limited, FlowsRefused: refused, Limited: r.stats.limited.Load(),
	}
}
