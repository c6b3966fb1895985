package dnsfake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
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
	// or until its own time-out, and is called from many goroutines. An error
	// that Is net.ErrClosed says that it asks nobody any more: whom the Policy has
	// then is asked, once. One that Is [ErrBusy] says that it has not asked.
	Exchange(ctx context.Context, query []byte, network string) (answer []byte, err error)
}

// A Recaller is an [Exchanger] that knows some answers without asking. Those are given
// however many questions wait.
type Recaller interface {
	// Recall is Exchange for what is known: it does not wait, and ok is false where
	// it would have to.
	Recall(ctx context.Context, query []byte) (answer []byte, ok bool)
}

// Policy is what is done with a name.
type Policy struct {
	Mode Mode

	// Resolver answers about the name what leases do not. Nil means that
	// there is nobody who may be asked: such questions are refused, and
	// LocalThenRemote is Remote.
	Resolver Exchanger

	// Denied names do not exist for clients, because no flow to them would
	// be let through.
	Denied bool

	// NoIPv6 says that a true IPv6 address of the name would lead nowhere:
	// those are not told. Fake ones lead to the name, which has no family.
	NoIPv6 bool

	// Services says that Resolver is asked for the HTTPS and SVCB records of
	// the name if it is not Local, of which clients get what does not lead
	// past the fake address. Else they are empty.
	Services bool

	// StripECH takes the keys for an encrypted ClientHello out of them.
	StripECH bool
}

const (
	defaultTTL         = time.Second
	defaultMaxForwards = 1024

	// Questions that wait for the file of leases at once, which takes a
	// millisecond if the disk is not busy. One more is ignored, and asked
	// again by its client.
	maxSaving = 4096
	maxTTL    = 24 * time.Hour
)

// Options say how a [Server] answers. Pool must be set.
type Options struct {
	Pool *Pool

	// Policy returns what is done with a name, which is in lower case and
	// without trailing dot; "." is the root. It is called once per question,
	// and for every name in an HTTPS or SVCB record, must not block nor keep
	// the name, and may change its mind at a reload. Nil means the zero
	// Policy.
	Policy func(name string) Policy

	// SameWay reports whether flows to two names go the same way whatever
	// their port is. A service of one name at the other is told to clients
	// only then. Nil means that all do.
	SameWay func(a, b string) bool

	// MaxForwards is how many questions wait for a resolver at once; one more
	// fails at once, unless its answer is known. Zero means 1024. Each may hold a
	// socket. One client ([WithClient]) has 192 of them at most.
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
	policyOf func(name string) Policy
	sameWay  func(a, b string) bool
	ttl      uint32
	log      *slog.Logger
	waiting  quota     // questions at resolvers
	queries  sync.Pool // of *query, for AppendNow

	saving atomic.Int64 // questions that wait for their lease to be written

	conns quota // of TCP

	// The pool's time of the last warning, of its exhaustion and of a client that wants
	// too much.
	warned, crowded atomic.Int64

	leased, owned, refused, forwarded, failed atomic.Uint64 // see Stats
}

// New returns a Server. It starts nothing.
func New(o Options) (*Server, error) {
	if o.Policy == nil {
		o.Policy = func(string) Policy { return Policy{} }
	}
	if o.SameWay == nil {
		o.SameWay = func(a, b string) bool { return true }
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
		policyOf: o.Policy,
		sameWay:  o.SameWay,
		ttl:      uint32(o.TTL / time.Second),
		log:      o.Logger,
		waiting:  quota{most: o.MaxForwards, each: forwardsEach},
		conns:    quota{most: tcpConns, each: tcpConnsEach},
	}
	s.queries.New = func() any { return new(query) }
	s.warned.Store(-int64(warnEvery))
	s.crowded.Store(-int64(warnEvery))
	return s, nil
}

// Stats are the figures of a [Server]. Every answer counts once.
type Stats struct {
	Leased    uint64 // with a fake address
	Own       uint64 // our others: negative, reverse, localhost
	Refused   uint64 // malformed, of a kind that is not served, or of what nobody may be asked
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
		Waiting:   s.waiting.taken(),
	}
}

// Answer returns the answer to a message that came by network, "udp" or "tcp":
// at most 65535 octets, by UDP at most what the client takes. Nil means that
// the message is to be ignored: it is no question, or too short to answer. It
// may block until the resolver has answered, but not beyond ctx or the resolver's
// time-out. The message is only read, and no longer than until then.
func (s *Server) Answer(ctx context.Context, msg []byte, network string) []byte {
	return s.answer(ctx, new(query), msg, network)
}

// answer is Answer, which leaves in q what has become of the question.
func (s *Server) answer(ctx context.Context, q *query, msg []byte, network string) []byte {
	if answer, done := s.now(q, msg); done {
		return answer
	}
	if q.leases() {
		defer s.saving.Add(-1)
		if s.saving.Add(1) > maxSaving {
			return nil
		}
		return s.lease(q)
	}
	return s.forward(ctx, q, network)
}

// AnswerNow is Answer for what needs no resolver, first of all the addresses of
// Remote names that have them: it never blocks, so a datagram needs no goroutine. Where done is
// false only Answer can tell. Our own answers fit in either network.
func (s *Server) AnswerNow(msg []byte) (answer []byte, done bool) {
	return s.AnswerInto(nil, msg)
}

// AnswerInto is AnswerNow with the answer in buf if that has room for 512
// octets; then the address of a name that has a lease costs no allocation.
func (s *Server) AnswerInto(buf, msg []byte) (answer []byte, done bool) {
	q := s.queries.Get().(*query)
	q.buf = buf
	answer, done = s.now(q, msg)
	q.forget()
	s.queries.Put(q)
	return answer, done
}

// now answers what needs neither a resolver nor the disk, and else leaves the query
// as read.
func (s *Server) now(q *query, msg []byte) (answer []byte, done bool) {
	rcode := q.parse(msg)
	if rcode == dns.RcodeSuccess {
		rcode = q.kind()
	}
	switch rcode {
	case ignore:
		return nil, true
	case dns.RcodeSuccess:
		if answer = s.own(q); answer == nil {
			answer = s.byPolicy(q)
		}
		return answer, answer != nil
	}
	s.refused.Add(1)
	s.debug(q, dns.RcodeToString[rcode])
	return q.refuse(rcode), true
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

// byPolicy answers what needs nobody else; nil for what is to be asked of a
// resolver, and for a lease that has to be written down first.
func (s *Server) byPolicy(q *query) []byte {
	p := s.policyOf(q.name)
	if p.Mode == LocalThenRemote && p.Resolver == nil {
		p.Mode = Remote
	}
	q.policy = p
	if p.Denied {
		q.why = whyDenied
		return s.negative(q, dns.RcodeNameError)
	}
	if q.leases() {
		return s.leaseNow(q)
	}
	switch q.qtype {
	case dns.TypeA, dns.TypeAAAA:
		if q.qtype == dns.TypeAAAA && p.NoIPv6 {
			return s.negative(q, dns.RcodeSuccess)
		}
	case dns.TypeHTTPS, dns.TypeSVCB:
		if p.Mode != Local && (!p.Services || p.Resolver == nil) {
			return s.negative(q, dns.RcodeSuccess)
		}
	case dns.TypeANY:
		if p.Mode != Local {
			return s.positive(q, appendHINFO(q.begin(dns.RcodeSuccess), s.ttl))
		}
	}
	if p.Resolver == nil {
		// Not that there is nothing, which has consequences: without an MX
		// mail goes to the address, without a CAA every authority may sign.
		q.why = whyNobody
		s.refused.Add(1)
		s.debug(q, "nobody may be asked")
		return q.refuse(dns.RcodeRefused)
	}
	return nil
}

// leases reports whether the answer to q is a lease, as far as its policy tells.
func (q *query) leases() bool {
	return q.policy.Mode == Remote && (q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA)
}

// leaseNow is lease, or nil where that may have to wait.
func (s *Server) leaseNow(q *query) []byte {
	if q.plain && !isAddress(q.name) {
		if addr, ok := s.pool.leased(q.name, q.qtype == dns.TypeAAAA); ok {
			return s.leasedAt(q, addr)
		}
		if s.pool.waits() {
			return nil
		}
	}
	return s.lease(q)
}

// lease answers with a fake address. Where leases are kept it may wait for the disk.
func (s *Server) lease(q *query) []byte {
	if !q.plain || isAddress(q.name) {
		return s.negative(q, dns.RcodeSuccess)
	}
	addr, err := s.pool.lease(q.name, q.qtype == dns.TypeAAAA)
	if err != nil {
		s.warnExhausted(err)
		return s.fail(q, whyExhausted, err.Error())
	}
	return s.leasedAt(q, addr)
}

func (s *Server) leasedAt(q *query, addr netip.Addr) []byte {
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

// fail answers SERVFAIL, which clients keep for a short time or none. The client hears
// why, and the log more.
func (s *Server) fail(q *query, why extended, more string) []byte {
	q.why = why
	s.failed.Add(1)
	s.debug(q, more)
	return q.refuse(dns.RcodeServerFailure)
}

// debug tells what became of a question.
func (s *Server) debug(q *query, answer string) {
	q.outcome = answer
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		s.log.Debug("dns", "name", strings.Clone(q.name), "type", dns.Type(q.qtype).String(), "answer", answer)
	}
}

// warnEvery is the least time between two warnings of a kind, which would come with
// every question else.
const warnEvery = time.Minute

// mayWarn reports whether it is time for another warning of a kind.
func (s *Server) mayWarn(warned *atomic.Int64) bool {
	now, last := s.pool.stamp(), warned.Load()
	return now-last >= int64(warnEvery) && warned.CompareAndSwap(last, now)
}

func (s *Server) warnExhausted(err error) {
	if s.mayWarn(&s.warned) {
		stats := s.pool.Stats()
		s.log.Warn("dns", "err", err, "leases", stats.Leases, "pins", stats.Pins)
	}
}

func (s *Server) warnCrowd(client netip.Addr, what string) {
	if s.mayWarn(&s.crowded) {
		s.log.Warn("dns", "src", client, "err", what)
	}
}
