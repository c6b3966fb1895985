package resolve

import (
	"container/list"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// Ten thousand answers of the usual length, and more than a busy gateway's
	// clients ask for within the time that answers are good.
	defaultBytes = 4 << 20

	// An entry takes so much besides its name, message and addresses.
	entryBytes = 400

	// What is longer is not kept: a few of them would take the place of all else.
	maxKept = 16 << 10

	// More addresses than this nobody tries: each costs a quarter of a second
	// (RFC 8305 §5), and a look-up and all attempts together have ten.
	maxAddrs = 64

	// How long after its time an answer may stand in for one that cannot be
	// had: RFC 8767 §5 suggests one to three days.
	maxStale = 24 * time.Hour

	// How long it does so before servers are asked again (RFC 8767 §5,
	// "failure recheck timer").
	staleHold = 30 * time.Second

	// What such an answer says of its time (RFC 8767 §4).
	staleTTL = 30 * time.Second

	// How long servers have before an answer stands in (RFC 8767 §5, "client
	// response timer"). They go on being asked behind the asker's back.
	stalePatience = 1800 * time.Millisecond

	// How long a question that failed is not asked again (RFC 9520 §3.2: a second
	// at least), and how many such are known at most.
	failHold    = time.Second
	maxFailures = 1024

	// An answer that has been asked for so often is fetched anew in the last
	// tenth of its time, so that nobody waits for it.
	popular = 3
)

// CacheOptions say what a [Cache] knows. Choose must be set.
type CacheOptions struct {
	// Choose returns who is asked for a name, which is in lower case and without
	// final dot. It is called for each question that is asked. Nil means that
	// nobody is.
	Choose func(name string) *Resolver

	// Hosts are files that know names; the first that has one counts.
	Hosts []*Hosts

	// Absent tells of a name, in the form that Choose gets, that nobody is to be
	// asked for it: there is none but what a hosts file has. It is no matter of
	// [Cache.Of]. Nil means that there is no such name.
	Absent func(name string) bool

	// Search is where look-ups get their search list from; nil for none.
	Search *System

	// MaxBytes is how much memory answers may take. Zero means 4 MiB.
	MaxBytes int
}

// Cache answers questions and looks up names as its Resolvers do, and keeps what
// servers have said for as long as they said. It is safe for concurrent use, and all
// of it is in memory: a new one is empty.
//
// Answers are kept by name, type and class, apart for who wants the records of DNSSEC
// (DO) and who wants no validation (CD): for the least TTL in them and a day at most,
// and that there is nothing, if the zone says for how long (RFC 2308), for five
// minutes at most. Look-ups and forwarded questions share them. A failure is kept for a
// second. But what was known stands in, if it ran out less than a day ago: after 1.8
// seconds in which no server answered, and for thirty seconds, after which servers are
// asked again (RFC 8767). What is asked for often is fetched again before its time is
// over.
//
// Whoever asks for what is being asked for waits for the same answer. A question
// ends early when nobody waits any more.
//
// When the memory is full, those answers go that have not been used for the longest
// time.
type Cache struct {
	opts    CacheOptions
	popular int
	ctx     context.Context // of all questions
	stop    context.CancelFunc

	running sync.WaitGroup // of questions
	mu      sync.Mutex     // guards what follows and all questions
	entries map[key]*list.Element
	used    list.List // of *entry, the last used first
	size    int
	asking  map[key]*question
	failed  map[key]failure
	stats   CacheStats
	closed  bool
}

// CacheStats are the figures of a [Cache].
type CacheStats struct {
	Entries, Bytes int

	Hits     uint64 // answered from what is kept
	Misses   uint64 // asked for
	Stale    uint64 // answered from what had run out
	Prefetch uint64 // asked for before it ran out
	Failed   uint64 // questions that nobody answered
}

// entry is an answer that is kept. What it points to is immutable.
type entry struct {
	key    key
	answer *answer
	born   time.Time
	until  time.Time // good without asking
	stale  time.Time // good if asking fails
	hits   int
}

// ttl is how long the answer was good for when it came.
func (e *entry) expires() time.Time { return e.born.Add(e.answer.ttl) }

func (e *entry) size() int {
	a := e.answer
	return entryBytes + 2*len(e.key.name) + len(a.msg) + 2*len(a.ttls) + 24*len(a.addrs)
}

// failure is what a question came to that nobody answered.
type failure struct {
	outcome
	until time.Time
}

// question is on its way to the servers.
type question struct {
	cancel  context.CancelFunc
	waiters int
	alone   bool          // it goes on though nobody waits
	done    chan struct{} // closed when res is there
	told    bool          // done is closed
	res     outcome
}

// outcome is what a question came to.
type outcome struct {
	answer *answer
	age    time.Duration
	stale  bool
	err    error
}

// message returns the outcome in a message for whoever asked.
func (o *outcome) message(q *query) ([]byte, error) {
	switch {
	case o.err != nil:
		return nil, o.err
	case o.stale: // its age is more than its time
		return o.answer.to(q, 0, staleTTL), nil
	}
	return o.answer.to(q, o.age, maxTTL), nil
}

// NewCache returns an empty Cache. It starts nothing.
func NewCache(o CacheOptions) *Cache {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultBytes
	}
	c := &Cache{opts: o, popular: popular, entries: make(map[key]*list.Element), asking: make(map[key]*question), failed: make(map[key]failure)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends all questions, and returns when they have ended. It does not close the
// Resolvers. A Cache that is closed answers with errors that Are [ErrClosed], and so does
// what was asked and is not answered yet.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.running.Wait()
}

// Stats returns the figures of this moment.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries, s.Bytes = c.used.Len(), c.size
	return s
}

// maxWaiting is how many questions of [Cache.Exchange] wait for one Resolver at once: a
// part of what its caller has for all of them, so that one that is silent leaves some
// for the others.
const maxWaiting = 256

// ErrBusy says that too many questions wait for a Resolver.
var ErrBusy = errors.New("too many questions wait for the dns server of this name")

// errNobody says that nobody is asked for a name.
var errNobody = errors.New("no dns server is asked for this name")

// Exchange answers a question message as [Resolver.Exchange] does, from a hosts file or
// from what is kept if it can. If too many questions wait for the name's Resolver the
// error is [ErrBusy].
func (c *Cache) Exchange(ctx context.Context, msg []byte, network string) ([]byte, error) {
	q, err := parseQuery(msg)
	if err != nil {
		return nil, err
	}
	if answer, ok := c.own(&q); ok {
		return answer, nil
	}
	return c.exchange(ctx, &q, msg, network)
}

// Recall is Exchange for what needs nobody to be asked. It does not wait: ok is
// false where somebody would have to be asked.
func (c *Cache) Recall(ctx context.Context, msg []byte) (answer []byte, ok bool) {
	q, err := parseQuery(msg)
	if err != nil {
		return nil, false
	}
	if answer, ok = c.own(&q); ok {
		return answer, true
	}
	return c.recall(ctx, &q)
}

// own answers from a hosts file, or that there is no such name.
func (c *Cache) own(q *query) (answer []byte, ok bool) {
	for _, h := range c.opts.Hosts {
		if a := h.answer(q); a != nil && !q.noRD {
			return a.to(q, 0, maxTTL), true
		}
	}
	if !c.absent(q.name) {
		return nil, false
	}
	inFile := slices.ContainsFunc(c.opts.Hosts, func(h *Hosts) bool { return h.lookup(q.name) != nil })
	if a := nothing(q, inFile); a != nil {
		return a.to(q, 0, maxTTL), true
	}
	return nil, false
}

func (c *Cache) absent(name string) bool { return c.opts.Absent != nil && c.opts.Absent(name) }

// Of returns what answers as c does, but asks r about every name and has no hosts
// files. What r says is kept apart from what others do, in the same memory. A
// question is asked with what the context of who asked first has in it.
func (c *Cache) Of(r *Resolver) *View { return &View{c, r} }

// View is a part of a [Cache]: see [Cache.Of].
type View struct {
	cache    *Cache
	resolver *Resolver
}

// Exchange is [Cache.Exchange].
func (v *View) Exchange(ctx context.Context, msg []byte, network string) ([]byte, error) {
	q, err := parseQuery(msg)
	if err != nil {
		return nil, err
	}
	q.key.of = v.resolver
	return v.cache.exchange(ctx, &q, msg, network)
}

// Recall is [Cache.Recall].
func (v *View) Recall(ctx context.Context, msg []byte) (answer []byte, ok bool) {
	q, err := parseQuery(msg)
	if err != nil {
		return nil, false
	}
	q.key.of = v.resolver
	return v.cache.recall(ctx, &q)
}

// isKept tells whether what is said to q may be kept.
func (q *query) isKept() bool { return !q.noRD && q.qclass == dns.ClassINET }

// recall answers from what is kept.
func (c *Cache) recall(ctx context.Context, q *query) (answer []byte, ok bool) {
	if !q.isKept() {
		return nil, false
	}
	c.mu.Lock()
	res, ok := c.kept(ctx, q.key, time.Now())
	c.mu.Unlock()
	if !ok {
		return nil, false
	}
	answer, err := res.message(q)
	return answer, err == nil
}

// exchange answers from what is kept, or asks.
func (c *Cache) exchange(ctx context.Context, q *query, msg []byte, network string) ([]byte, error) {
	if answer, ok := c.recall(ctx, q); ok {
		return answer, nil
	}
	r := c.resolver(q.key)
	if r == nil {
		return nil, errNobody
	}
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > maxWaiting {
		return nil, ErrBusy
	}
	if !q.isKept() {
		// To ask what is known already is not for others to be told.
		return r.Exchange(ctx, msg, network)
	}
	res := c.get(ctx, q.key)
	return res.message(q)
}

// resolver returns who is asked.
func (c *Cache) resolver(k key) *Resolver {
	if k.of != nil {
		return k.of
	}
	return c.opts.Choose(k.name)
}

// get returns what is known, or asks.
func (c *Cache) get(ctx context.Context, k key) outcome {
	now := time.Now()
	c.mu.Lock()
	if res, ok := c.kept(ctx, k, now); ok {
		c.mu.Unlock()
		return res
	}
	q, err := c.join(ctx, k, now)
	c.mu.Unlock()
	if err != nil {
		return outcome{err: err}
	}
	return c.wait(ctx, k, q)
}

// kept returns what is known, which counts as a use of it. The caller holds mu.
func (c *Cache) kept(ctx context.Context, k key, now time.Time) (outcome, bool) {
	if e := c.usable(k, now); e != nil {
		c.use(ctx, e, now)
		return e.outcome(now), true
	}
	f, ok := c.failed[k]
	return f.outcome, ok && now.Before(f.until)
}

// outcome is what an entry says at a time.
func (e *entry) outcome(now time.Time) outcome {
	return outcome{answer: e.answer, age: now.Sub(e.born), stale: !now.Before(e.expires())}
}

// usable returns the entry that is good now. The caller holds mu.
func (c *Cache) usable(k key, now time.Time) *entry {
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !now.Before(e.until) {
		return nil
	}
	return e
}

// use notes that an entry is used, and sees that what is popular does not run out. The
// caller holds mu.
func (c *Cache) use(ctx context.Context, e *entry, now time.Time) {
	c.used.MoveToFront(c.entries[e.key])
	e.hits++
	if now.Before(e.expires()) {
		c.stats.Hits++
	} else {
		c.stats.Stale++
	}
	if left := e.expires().Sub(now); e.hits >= c.popular && 0 < left && left <= e.answer.ttl/10 && c.asking[e.key] == nil && !c.closed {
		c.stats.Prefetch++
		c.start(ctx, e.key, now).alone = true
	}
}

// join returns the question for k, with one more who waits for it: see wait. The
// caller holds mu.
func (c *Cache) join(ctx context.Context, k key, now time.Time) (*question, error) {
	if c.closed {
		return nil, ErrClosed
	}
	q := c.asking[k]
	if q == nil {
		c.stats.Misses++
		q = c.start(ctx, k, now)
	}
	q.waiters++
	return q, nil
}

// start asks. The caller holds mu.
func (c *Cache) start(ctx context.Context, k key, now time.Time) *question {
	q := &question{done: make(chan struct{})}
	ctx, q.cancel = context.WithCancel(context.WithoutCancel(ctx)) // its end is nobody's own
	c.asking[k] = q
	c.running.Go(func() {
		defer context.AfterFunc(c.ctx, q.cancel)()
		c.ask(ctx, k, q)
	})
	if el := c.entries[k]; el != nil && now.Before(el.Value.(*entry).stale) {
		patience := time.AfterFunc(stalePatience, func() { c.standIn(k, q) })
		context.AfterFunc(ctx, func() { patience.Stop() })
	}
	return q
}

// standIn tells those who wait what was known, and leaves the question to go on.
func (c *Cache) standIn(k key, q *question) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[k]
	if c.asking[k] != q || q.told || el == nil || !now.Before(el.Value.(*entry).stale) {
		return
	}
	q.alone = true
	c.stats.Stale += uint64(q.waiters)
	q.tell(c.hold(el, now))
}

// hold makes an entry good for some more seconds. The caller holds mu.
func (c *Cache) hold(el *list.Element, now time.Time) outcome {
	e := el.Value.(*entry)
	if until := now.Add(staleHold); e.until.Before(until) {
		e.until = until
	}
	c.used.MoveToFront(el)
	return e.outcome(now)
}

// tell tells those who wait. The caller holds the Cache's mu.
func (q *question) tell(res outcome) {
	if !q.told {
		q.told, q.res = true, res
		close(q.done)
	}
}

// wait waits for the answer to a question that was joined. Whoever leaves last
// sees that it has ended.
func (c *Cache) wait(ctx context.Context, k key, q *question) outcome {
	select {
	case <-q.done:
		return q.res
	case <-ctx.Done():
	}
	c.mu.Lock()
	q.waiters--
	last := q.waiters == 0 && !q.alone
	if last && c.asking[k] == q {
		delete(c.asking, k) // who comes now asks anew
		q.cancel()
	}
	c.mu.Unlock()
	if last {
		<-q.done
	}
	return outcome{err: context.Cause(ctx)}
}

// ask asks the servers, keeps the answer and tells those who wait.
func (c *Cache) ask(ctx context.Context, k key, q *question) {
	defer q.cancel()
	var a *answer
	err := errNobody
	if r := c.resolver(k); r != nil {
		if ask, ok := k.query(); ok {
			a, err = r.ask(ctx, &ask)
		} else {
			err = errNotQuery
		}
	}
	if err != nil && c.ctx.Err() != nil {
		err = ErrClosed
	}
	now := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking[k] != q {
		q.tell(outcome{err: context.Canceled}) // nobody waits, and another may have asked since
		return
	}
	delete(c.asking, k)
	if err == nil && !isBad(a) {
		c.keep(k, a, now)
		q.tell(outcome{answer: a})
		return
	}
	c.stats.Failed++
	if el := c.entries[k]; el != nil {
		if !now.Before(el.Value.(*entry).stale) {
			c.drop(el)
		} else if res := c.hold(el, now); !q.told {
			c.stats.Stale += uint64(q.waiters)
			q.tell(res)
		}
	}
	res := outcome{answer: a, err: err}
	c.keepFailure(k, res, now)
	q.tell(res)
}

// keepFailure sees that a question that failed is not asked again at once. The caller
// holds mu.
func (c *Cache) keepFailure(k key, res outcome, now time.Time) {
	if len(c.failed) >= maxFailures {
		clear(c.failed) // most have run out
	}
	k.name = strings.Clone(k.name) // it may be part of something longer
	c.failed[k] = failure{res, now.Add(failHold)}
}

// keep puts an answer in the place of what was known before. The caller holds mu.
func (c *Cache) keep(k key, a *answer, now time.Time) {
	if el := c.entries[k]; el != nil {
		c.drop(el)
	}
	delete(c.failed, k)
	if a.ttl == 0 || len(a.msg) > maxKept {
		return
	}
	k.name = strings.Clone(k.name) // it may be part of something longer
	e := &entry{key: k, answer: a, born: now, until: now.Add(a.ttl)}
	e.stale = e.until.Add(maxStale)
	c.entries[k] = c.used.PushFront(e)
	c.size += e.size()
	for c.size > c.opts.MaxBytes {
		c.drop(c.used.Back())
	}
}

// drop forgets an entry. The caller holds mu.
func (c *Cache) drop(el *list.Element) {
	e := c.used.Remove(el).(*entry)
	delete(c.entries, e.key)
	c.size -= e.size()
}

// addrs returns those of an outcome, as far as anybody tries them.
func (o *outcome) addrs(host string) ([]netip.Addr, error) {
	switch {
	case o.err != nil:
		return nil, unanswered(host, o.err)
	case isBad(o.answer):
		return nil, failed(host, o.answer.rcode)
	case len(o.answer.addrs) == 0:
		return nil, notFound(host)
	}
	return o.answer.addrs[:min(len(o.answer.addrs), maxAddrs)], nil
}
