package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// Two tries of one server fit in the 5 s after which glibc and musl
	// ask again.
	defaultTimeout  = 2 * time.Second
	defaultAttempts = 2

	// How long a question may take altogether: when a connect gives up, too.
	defaultDeadline = 10 * time.Second

	// After so many failures in a row a server is left alone for so long. One
	// may be a lost datagram.
	maxFails = 2
	badRest  = 10 * time.Second

	// How long a server that does not know EDNS is asked without, and one is asked by
	// TCP to which no UDP goes: finding that out costs a question each time.
	lapseTime = 10 * time.Minute
)

// Strategy is how a [Resolver] chooses among its servers.
type Strategy uint8

// The strategies.
const (
	Failover Strategy = iota // one after the other, in their order
	Race                     // all at once; the first good answer counts
)

// Options say whom a [Resolver] asks and how. Servers must be set.
type Options struct {
	// Servers are asked in this order.
	Servers []Server

	Strategy Strategy

	// Private returns whether addresses of private networks are taken in
	// answers about a name of the public tree, which is in lower case and
	// without final dot. Nil means that they are not. Of a [System] they are in
	// any case.
	Private func(name string) bool

	// Timeout is for one try of one server by UDP; where a connection has to be
	// opened it is twice that. Zero means 2 seconds.
	Timeout time.Duration

	// Attempts is how often the list of servers is gone through. Zero means
	// twice.
	Attempts int

	// Deadline is for a question altogether. Zero means 10 seconds.
	Deadline time.Duration

	// Logger gets warnings: that a server fails, and that private addresses
	// were taken out. Nil discards.
	Logger *slog.Logger
}

// Resolver asks upstream servers. It is safe for concurrent use. It holds
// connections for some seconds, which [Resolver.Close] ends.
type Resolver struct {
	opts    Options
	fixed   []*upstream     // by index of Servers; nil for those of a System
	ctx     context.Context // of probes
	stop    context.CancelFunc
	probing sync.WaitGroup
	warned  limiter
	waiting atomic.Int64 // questions of a Cache: see maxWaiting

	mu     sync.Mutex // guards what follows
	system map[netip.AddrPort]*upstream
	closed bool
}

// New returns a Resolver. It starts nothing.
func New(o Options) (*Resolver, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Attempts == 0 {
		o.Attempts = defaultAttempts
	}
	if o.Deadline == 0 {
		o.Deadline = defaultDeadline
	}
	if o.Private == nil {
		o.Private = func(string) bool { return false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(o.Servers) == 0:
		return nil, errors.New("resolver without a server to ask")
	case o.Timeout < 0 || o.Attempts < 0 || o.Deadline < 0:
		return nil, fmt.Errorf("resolver with a timeout of %v, %d attempts and a deadline of %v: must be positive", o.Timeout, o.Attempts, o.Deadline)
	case o.Strategy > Race:
		return nil, fmt.Errorf("resolver with strategy %d: there is none", o.Strategy)
	}
	for _, s := range o.Servers {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("dns server %v: %w", s, err)
		}
	}
	r := &Resolver{opts: o, system: make(map[netip.AddrPort]*upstream)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	for _, s := range o.Servers {
		if s.System != nil {
			r.fixed = append(r.fixed, nil)
			continue
		}
		r.fixed = append(r.fixed, newUpstream(s, o.Timeout))
	}
	return r, nil
}

// Close ends all connections, and questions that wait for one fail. It returns when
// all has ended that the Resolver has started.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	all := append(slices.Collect(maps.Values(r.system)), r.fixed...)
	r.mu.Unlock()
	r.stop()
	r.probing.Wait()
	for _, u := range all {
		if u != nil {
			u.close()
		}
	}
}

// servers returns those that there are now.
func (r *Resolver) servers() ([]*upstream, error) {
	if !slices.Contains(r.fixed, nil) {
		return r.fixed, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	var all []*upstream
	var failed error
	gone := maps.Clone(r.system)
	for i, u := range r.fixed {
		if u != nil {
			all = append(all, u)
			continue
		}
		s := r.opts.Servers[i]
		conf, err := s.System.Conf()
		if err != nil {
			failed = err
			continue
		}
		for _, a := range conf.Servers {
			u := r.system[a]
			if u == nil {
				u = newUpstream(Plain(a, s.Dial), r.opts.Timeout)
				u.trusted = true
				r.system[a] = u
			}
			delete(gone, a)
			all = append(all, u)
		}
	}
	for a, u := range gone {
		delete(r.system, a)
		r.probing.Go(u.close)
	}
	if all == nil {
		return nil, failed
	}
	return all, nil
}

// Exchange sends a question message and returns the answer, which has the id and the
// question of query, and no OPT record; it belongs to the caller. It is whole: network,
// "udp" or "tcp", says what an answer has to fit in that is passed on, and makes no
// difference here.
//
// Of an answer comes back what answers the question: see package documentation. An
// answer that is none, malformed or to another question counts as none. A server that
// does not answer in time, or answers that it failed, refuses or does not know the
// kind of question (SERVFAIL, REFUSED, NOTIMP) is passed over; if none does better
// the first such answer comes back. It blocks for Deadline at most, and until ctx ends.
func (r *Resolver) Exchange(ctx context.Context, query []byte, _ string) ([]byte, error) {
	q, err := parseQuery(query)
	if err != nil {
		return nil, err
	}
	a, err := r.ask(ctx, &q)
	if err != nil {
		return nil, err
	}
	return a.to(&q, 0, maxTTL), nil
}

// ask asks the servers.
func (r *Resolver) ask(ctx context.Context, q *query) (*answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.Deadline, errTimeout)
	defer cancel()
	all, err := r.servers()
	if err != nil {
		return nil, err
	}
	private := q.name == "." || !isPublic(q.name) || r.opts.Private(q.name)
	round := r.inOrder
	if r.opts.Strategy == Race {
		round = r.atOnce
	}
	var (
		bad  *answer // the first that says no more than that it is none
		errs error
	)
	for i := range r.opts.Attempts {
		if i == 1 {
			own := *q
			own.alone = true
			q = &own
		}
		good, resting := r.sort(all, q, private)
		for _, list := range [][]*upstream{good, resting} {
			if len(list) == 0 {
				continue
			}
			a, err := round(ctx, list, q, private)
			switch {
			case ctx.Err() != nil:
				return nil, context.Cause(ctx)
			case a != nil && !isBad(a):
				return a, nil
			case a != nil:
				if bad == nil {
					bad = a
				}
			default:
				errs = err
			}
			if bad != nil {
				break
			}
		}
		if bad != nil {
			return bad, nil // the same question would get the same answer
		}
	}
	return nil, errs
}

// isBad tells whether another server may know better.
func isBad(a *answer) bool { return a.rcode != dns.RcodeSuccess && a.rcode != dns.RcodeNameError }

// sort returns the servers that are well and those that rest, each in their order. Of
// those one whose time has come is tried beside this question, and behind its back.
func (r *Resolver) sort(all []*upstream, q *query, private bool) (good, resting []*upstream) {
	now := time.Now()
	for _, u := range all {
		switch rests, due := u.state(now); {
		case !rests:
			good = append(good, u)
			continue
		case due:
			defer func() {
				if len(good) > 0 { // or it is tried anyway
					r.probe(u, q, private)
				}
			}()
		}
		resting = append(resting, u)
	}
	return good, resting
}

// probe asks a server that rests, to see whether it is well again.
func (r *Resolver) probe(u *upstream, q *query, private bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || !u.probing.CompareAndSwap(false, true) {
		return
	}
	own := *q // what it refers to may be the asker's
	own.wire = slices.Clone(q.wire)
	r.probing.Go(func() {
		defer u.probing.Store(false)
		_, _ = r.try(r.ctx, u, &own, private)
	})
}

// inOrder asks one server after the other.
func (r *Resolver) inOrder(ctx context.Context, list []*upstream, q *query, private bool) (*answer, error) {
	var bad *answer
	var errs error
	for _, u := range list {
		a, err := r.try(ctx, u, q, private)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			errs = err
		case !isBad(a):
			return a, nil
		case bad == nil:
			bad = a
		}
	}
	return bad, errs
}

// atOnce asks all servers, and takes the first that knows. When it returns, the other
// questions have ended.
func (r *Resolver) atOnce(ctx context.Context, list []*upstream, q *query, private bool) (*answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		a   *answer
		err error
	}
	results := make(chan result, len(list))
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, u := range list {
		running.Go(func() {
			a, err := r.try(ctx, u, q, private)
			results <- result{a, err}
		})
	}
	var bad *answer
	var errs error
	for range list {
		switch res := <-results; {
		case res.err != nil:
			errs = res.err
		case !isBad(res.a):
			return res.a, nil
		case bad == nil:
			bad = res.a
		}
	}
	return bad, errs
}

// try asks one server once, and notes how it did.
func (r *Resolver) try(ctx context.Context, u *upstream, q *query, private bool) (*answer, error) {
	msg, err := u.exchange(ctx, q)
	var a *answer
	if err == nil {
		a, err = clean(msg, q, private || u.trusted)
	}
	if ctx.Err() != nil && err != nil {
		return nil, err // which says nothing of the server
	}
	if failed := u.note(err); failed {
		r.opts.Logger.Warn("dns", "server", u.String(), "err", err, "next", "others are asked first")
	}
	if err != nil {
		return nil, fmt.Errorf("dns server %v: %w", u, err)
	}
	if a.refused.IsValid() && r.warned.allow() {
		r.opts.Logger.Warn("dns", "server", u.String(), "name", q.name, "refused", a.refused,
			"err", "a private address for a public name; dns.rebind-allow lets it in")
	}
	return a, nil
}

// limiter lets one message through in a minute.
type limiter struct{ last atomic.Int64 }

func (l *limiter) allow() bool {
	now, last := time.Now().UnixNano(), l.last.Load()
	return now-last >= int64(time.Minute) && l.last.CompareAndSwap(last, now)
}

// lapse is something that a server or the way to it cannot do. It is forgotten after a
// time, since it may have been a mistake, or been mended.
type lapse struct{ until atomic.Int64 } // in nanoseconds since 1970

func (l *lapse) note() { l.until.Store(time.Now().Add(lapseTime).UnixNano()) }

func (l *lapse) lasts() bool { return time.Now().UnixNano() < l.until.Load() }

// errTimeout is a time-out in the eyes of net.Error and of errors.Is.
var errTimeout = fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)

// upstream is a server and how it does.
type upstream struct {
	Server
	timeout time.Duration // by UDP
	patient time.Duration // where a connection may have to be opened
	trusted bool          // with private addresses: the machine's programs take those from it
	streams *streams      // of all but HTTPS
	https   *https
	noUDP   lapse // the way there carries TCP only
	noEDNS  lapse // it does not know EDNS (RFC 6891 §7)

	probing atomic.Bool
	mu      sync.Mutex // guards what follows
	fails   int        // in a row
	rests   time.Time  // until then; it does so while fails >= maxFails
}

func newUpstream(s Server, timeout time.Duration) *upstream {
	if s.Dial == nil {
		s.Dial = netDial
	}
	patient := 2 * timeout
	u := &upstream{Server: s, timeout: timeout, patient: patient}
	open := func(ctx context.Context) (net.Conn, error) { return u.dial(ctx, "tcp") }
	switch s.Transport {
	case HTTPS:
		u.https = newHTTPS(&u.Server, patient)
		return u
	case TLS:
		open = overTLS(open, s.tlsConfig("dot"))
	}
	alone := maxAlone
	if s.Alone {
		alone = maxAllAlone
	}
	u.streams = newStreams(patient, alone, open)
	return u
}

func (u *upstream) close() {
	if u.https != nil {
		u.https.close()
		return
	}
	u.streams.close()
}

// state tells whether the server is left alone, and whether it is time to see if it
// is well again.
func (u *upstream) state(now time.Time) (rests, due bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.fails >= maxFails, u.fails >= maxFails && !now.Before(u.rests)
}

// note notes how a try went, and reports whether it was the one that was too much.
func (u *upstream) note(err error) (failed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		u.fails = 0
		return false
	}
	u.fails++
	u.rests = time.Now().Add(badRest)
	return u.fails == maxFails
}

// exchange asks the server once, by what is best.
func (u *upstream) exchange(ctx context.Context, q *query) ([]byte, error) {
	edns := !u.noEDNS.lasts()
	msg, err := u.once(ctx, q, edns)
	// Whoever does not know EDNS says FORMERR, without OPT (RFC 6891 §7).
	if err == nil && edns && rcode(msg) == dns.RcodeFormatError && binary.BigEndian.Uint16(msg[10:]) == 0 {
		if msg, err = u.once(ctx, q, false); err == nil && rcode(msg) != dns.RcodeFormatError {
			u.noEDNS.note()
		}
	}
	return msg, err
}

func (u *upstream) once(ctx context.Context, q *query, edns bool) ([]byte, error) {
	if u.Transport == UDP && !u.noUDP.lasts() {
		msg, err := u.within(ctx, u.timeout, func(ctx context.Context) ([]byte, error) { return askUDP(ctx, &u.Server, q, edns) })
		var noDial *dialError
		switch {
		case errors.As(err, &noDial) && ctx.Err() == nil:
			// The way there may carry TCP only.
		case errors.Is(err, errForged):
		case err != nil:
			return nil, err
		case !isTruncated(msg):
			return msg, nil
		}
		msg, err = u.stream(ctx, q, edns)
		if err == nil && noDial != nil {
			u.noUDP.note()
		}
		return msg, err
	}
	return u.stream(ctx, q, edns)
}

// stream asks by what is no UDP.
func (u *upstream) stream(ctx context.Context, q *query, edns bool) ([]byte, error) {
	return u.within(ctx, u.patient, func(ctx context.Context) ([]byte, error) {
		if u.https != nil {
			return u.https.exchange(ctx, q, edns)
		}
		return u.streams.exchange(ctx, q.alone || u.Alone, q.wire, func(id uint16) []byte {
			return q.message(id, edns, u.Transport.encrypted())
		})
	})
}

// within asks for so long at most.
func (u *upstream) within(ctx context.Context, timeout time.Duration, ask func(ctx context.Context) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	msg, err := ask(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // and not that the connection is closed
	}
	return msg, err
}
