package dnsfake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Mode says where a name is resolved.
type Mode uint8

const (
	// Remote names get fake addresses, and the far end of the last hop
	// resolves them. No resolver here learns of the addresses asked for.
	Remote Mode = iota

	// Local names are resolved here, by [Options.Resolver].
	Local

	// LocalThenRemote names are resolved here if the resolver knows an
	// address, and are Remote if not. The resolver sees every name.
	LocalThenRemote
)

// String returns the mode as the config writes it.
func (m Mode) String() string {
	switch m {
	case Remote:
		return "remote"
	case Local:
		return "local"
	case LocalThenRemote:
		return "local-then-remote"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Exchanger asks an upstream resolver.
type Exchanger interface {
	// Exchange sends a question message and returns the answer to it, which
	// has the id of the query and then belongs to the caller. Network is
	// "udp" if a truncated answer will do, "tcp" if it is to be whole. The
	// id that goes out is the Exchanger's own, as is the check that the
	// answer is one to the question. It blocks until then, until ctx ends
	// or until its own time-out, and is called from many goroutines.
	Exchange(ctx context.Context, query []byte, network string) (answer []byte, err error)
}

const (
	defaultTTL         = time.Second
	defaultMaxForwards = 256
	maxTTL             = 24 * time.Hour
)

// Options say how a [Server] answers. Pool must be set.
type Options struct {
	Pool *Pool

	// Mode returns the mode of a name, which is in lower case and without
	// trailing dot; "." is the root. It is called once per question, must
	// not block and may change its mind at a reload. Nil means Remote.
	Mode func(name string) Mode

	// Resolver answers what leases do not. Nil means that there is none:
	// such questions fail, and LocalThenRemote is Remote.
	Resolver Exchanger

	// MaxForwards is how many questions wait for Resolver at once; one more
	// fails at once. Zero means 256. Each may hold a socket.
	MaxForwards int

	// TTL is how long clients may keep our answers, in whole seconds. Zero
	// means one second: the address of a lease stays good for as long as it
	// is used, but the mode of a name may change. It must not be longer than
	// the quarantine of Pool.
	TTL time.Duration

	// Logger gets a line per question at Debug, and warnings. Nil discards.
	Logger *slog.Logger
}

// Server answers DNS messages. All methods are safe for concurrent use.
type Server struct {
	pool     *Pool
	modeOf   func(name string) Mode
	resolver Exchanger
	ttl      uint32
	log      *slog.Logger
	waiting  chan struct{} // holds a token for each question at resolver

	warned atomic.Int64 // the pool's time of the last warning of its exhaustion

	leased, owned, refused, forwarded, failed atomic.Uint64 // see Stats
}

// New returns a Server. It starts nothing.
func New(o Options) (*Server, error) {
	if o.Mode == nil {
		o.Mode = func(string) Mode { return Remote }
	}
	if o.MaxForwards == 0 {
		o.MaxForwards = defaultMaxForwards
	}
	if o.TTL == 0 {
		o.TTL = defaultTTL
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Pool == nil:
		return nil, errors.New("dns server without a pool of addresses")
	case o.MaxForwards < 0:
		return nil, fmt.Errorf("%d questions at the resolver at most: must be positive", o.MaxForwards)
	case o.TTL < time.Second || o.TTL > maxTTL:
		return nil, fmt.Errorf("ttl of %v: must be from 1s to %v", o.TTL, maxTTL)
	case int64(o.TTL) > o.Pool.quarantine:
		return nil, fmt.Errorf("ttl of %v is longer than the quarantine of %v: clients would keep addresses that are another name's", o.TTL, time.Duration(o.Pool.quarantine))
	}
	s := &Server{
		pool:     o.Pool,
		modeOf:   o.Mode,
		resolver: o.Resolver,
		ttl:      uint32(o.TTL / time.Second),
		log:      o.Logger,
		waiting:  make(chan struct{}, o.MaxForwards),
	}
	s.warned.Store(-int64(warnEvery))
	return s, nil
}

// Stats are the figures of a [Server]. Every answer counts once.
type Stats struct {
	Leased    uint64 // with a fake address
	Own       uint64 // our others: negative, reverse, localhost
	Refused   uint64 // malformed, or of a kind that is not served
	Forwarded uint64 // the resolver's, passed on
	Failed    uint64 // SERVFAIL of our own
	Waiting   int    // questions at the resolver now
}

// Stats returns the figures of this moment.
func (s *Server) Stats() Stats {
	return Stats{
		Leased:    s.leased.Load(),
		Own:       s.owned.Load(),
		Refused:   s.refused.Load(),
		Forwarded: s.forwarded.Load(),
		Failed:    s.failed.Load(),
		Waiting:   len(s.waiting),
	}
}

// Answer returns the answer to a message that came by network, "udp" or "tcp":
// at most 65535 octets, by UDP at most what the client takes. Nil means that
// the message is to be ignored: it is no question, or too short to answer. It
// may block until the resolver has answered, but not beyond ctx or the resolver's
// time-out. The message is only read, and no longer than until then.
func (s *Server) Answer(ctx context.Context, msg []byte, network string) []byte {
	q, answer, done := s.now(msg)
	if done {
		return answer
	}
	return s.forward(ctx, &q, network)
}

// AnswerNow is Answer for what needs no resolver, first of all the addresses of
// Remote names: it never blocks, so a datagram needs no goroutine. Where done is
// false only Answer can tell. Network is as for Answer; our own answers fit in
// either.
func (s *Server) AnswerNow(msg []byte, _ string) (answer []byte, done bool) {
	_, answer, done = s.now(msg)
	return answer, done
}

// now answers what needs no resolver, and else returns the query as read.
func (s *Server) now(msg []byte) (q query, answer []byte, done bool) {
	q, rcode := parse(msg)
	if rcode == dns.RcodeSuccess {
		rcode = q.kind()
	}
	switch rcode {
	case ignore:
		return q, nil, true
	case dns.RcodeSuccess:
		if answer = s.own(&q); answer == nil {
			answer = s.byMode(&q)
		}
		return q, answer, answer != nil
	}
	s.refused.Add(1)
	s.debug(&q, dns.RcodeToString[rcode])
	return q, q.refuse(rcode), true
}

// kind returns the response code for what is asked: success, or that it is not
// served.
func (q *query) kind() int {
	switch {
	case q.qclass != dns.ClassINET:
		return dns.RcodeRefused
	case q.qtype == dns.TypeANY:
		return dns.RcodeSuccess
	case q.qtype == dns.TypeAXFR || q.qtype == dns.TypeIXFR:
		return dns.RcodeRefused
	case q.qtype == dns.TypeOPT || q.qtype == dns.TypeNone:
		return dns.RcodeFormatError
	case q.qtype >= 128 && q.qtype <= 255: // meta types (RFC 6895 §3.1)
		return dns.RcodeNotImplemented
	}
	return dns.RcodeSuccess
}

// own answers for names of their own kind, whatever their mode; nil for others.
func (s *Server) own(q *query) []byte {
	switch {
	case under(q.name, "localhost"):
		switch q.qtype {
		case dns.TypeA:
			return s.positive(q, appendAddr(q.begin(dns.RcodeSuccess), netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.ttl))
		case dns.TypeAAAA:
			return s.positive(q, appendAddr(q.begin(dns.RcodeSuccess), netip.IPv6Loopback(), s.ttl))
		}
		return s.negative(q, dns.RcodeSuccess)
	case under(q.name, "resolver.arpa"):
		return s.negative(q, dns.RcodeSuccess)
	case under(q.name, "use-application-dns.net"):
		return s.negative(q, dns.RcodeNameError)
	}
	addr, ok := reverseAddr(q.name)
	if !ok || !s.pool.Owns(addr) {
		return nil
	}
	name, ok := s.pool.Name(addr)
	switch {
	case !ok:
		return s.negative(q, dns.RcodeNameError)
	case q.qtype != dns.TypePTR:
		return s.negative(q, dns.RcodeSuccess)
	}
	return s.positive(q, appendPTR(q.begin(dns.RcodeSuccess), name, s.ttl))
}

// byMode answers for remote names; nil for what is to be asked of the resolver.
func (s *Server) byMode(q *query) []byte {
	q.mode = s.modeOf(q.name)
	if q.mode == LocalThenRemote && s.resolver == nil {
		q.mode = Remote
	}
	if q.mode != Local {
		switch q.qtype {
		case dns.TypeA, dns.TypeAAAA:
			if q.mode == Remote {
				return s.lease(q)
			}
		case dns.TypeHTTPS, dns.TypeSVCB:
			return s.negative(q, dns.RcodeSuccess)
		case dns.TypeANY:
			return s.positive(q, appendHINFO(q.begin(dns.RcodeSuccess), s.ttl))
		}
	}
	if s.resolver == nil {
		return s.fail(q, "no resolver")
	}
	return nil
}

// lease answers with a fake address.
func (s *Server) lease(q *query) []byte {
	if !q.plain || isAddress(q.name) {
		return s.negative(q, dns.RcodeSuccess)
	}
	addr, err := s.pool.lease(q.name, q.qtype == dns.TypeAAAA)
	if err != nil {
		s.warnExhausted(err)
		return s.fail(q, err.Error())
	}
	s.leased.Add(1)
	s.debug(q, "lease")
	return q.end(appendAddr(q.begin(dns.RcodeSuccess), addr, s.ttl), dns.RcodeSuccess)
}

// positive finishes an answer of our own that is not a lease.
func (s *Server) positive(q *query, b []byte) []byte {
	s.owned.Add(1)
	s.debug(q, "own")
	return q.end(b, dns.RcodeSuccess)
}

// negative answers that there is no such name, or nothing of that type.
func (s *Server) negative(q *query, rcode int) []byte {
	s.owned.Add(1)
	s.debug(q, "none")
	return q.end(appendSOA(q.begin(rcode), s.ttl), rcode)
}

// fail answers SERVFAIL, which clients keep for a short time or none.
func (s *Server) fail(q *query, why string) []byte {
	s.failed.Add(1)
	s.debug(q, why)
	return q.refuse(dns.RcodeServerFailure)
}

// debug tells what became of a question.
func (s *Server) debug(q *query, answer string) {
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		s.log.Debug("dns", "name", q.name, "type", dns.Type(q.qtype).String(), "answer", answer)
	}
}

// warnEvery is the least time between two warnings about a full range, which
// would come with every question else.
const warnEvery = time.Minute

func (s *Server) warnExhausted(err error) {
	now, last := s.pool.stamp(), s.warned.Load()
	if now-last >= int64(warnEvery) && s.warned.CompareAndSwap(last, now) {
		stats := s.pool.Stats()
		s.log.Warn("dns", "err", err, "leases", stats.Leases, "pins", stats.Pins)
	}
}
