package resolve

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// A machine's servers and direct names are dozens, a busy gateway's some
	// thousands. An entry takes about 300 octets, its name, and 24 for each
	// address: 2 MB with short names of two addresses, and less than 10 MB
	// whatever servers answer.
	maxEntries = 4096

	// More addresses than this nobody tries: each costs a quarter of a second
	// (RFC 8305 §5), and a look-up and all attempts together have ten.
	maxAddrs = 64

	// How long after its time an answer may stand in for one that cannot be
	// had: RFC 8767 §5 suggests one to three days.
	maxStale = 24 * time.Hour

	// How long it does so before servers are asked again (RFC 8767 §5,
	// "failure recheck timer").
	staleHold = 30 * time.Second

	// How long servers have before an answer stands in. RFC 8767 §5 suggests
	// 1.8 s, and to wait on behind the client's back; here nothing is waited
	// for that nobody wants, so it has to suffice for two dead servers before
	// one that answers, and to leave half of a connect's ten seconds.
	stalePatience = 5 * time.Second
)

// Cache looks up names as its [Resolver] does, and keeps what servers have said
// for as long as they said. It is safe for concurrent use, and all of it is in
// memory: a new one is empty.
//
// Kept are addresses, for the least TTL on the way to them and a day at most, and
// that there are none, if the zone says for how long (RFC 2308), for five minutes
// at most. A failure is not kept. Instead, what was known stands in, if it ran out
// less than a day ago: for thirty seconds, after which servers are asked again
// (RFC 8767). They have five seconds then.
//
// Whoever looks up what is being asked for waits for the same answer. A question
// ends early when none of them waits any more.
//
// A few thousand answers are kept; beyond that, those go that have not been used
// for the longest time.
type Cache struct {
	resolver *Resolver
	max      int

	mu      sync.Mutex // guards what follows and all questions
	entries map[key]*list.Element
	used    list.List // of *entry, the last used first
	asking  map[key]*question
}

// key is a question: a name in lower case without the final dot, and a type.
type key struct {
	name  string
	qtype uint16
}

// entry is an answer that is kept.
type entry struct {
	key   key
	addrs []netip.Addr // none where there are none; immutable
	until time.Time    // good without asking
	stale time.Time    // good if asking fails
}

// question is on its way to the servers.
type question struct {
	cancel  context.CancelFunc
	waiters int
	done    chan struct{} // closed when res is there
	res     result
}

// NewCache returns an empty Cache of what r says.
func NewCache(r *Resolver) *Cache {
	return &Cache{resolver: r, max: maxEntries, entries: make(map[key]*list.Element), asking: make(map[key]*question)}
}

// LookupNetIP is [Resolver.LookupNetIP], with these differences: an error may have
// the name in lower case and without its final dot, and of a family's addresses the
// first 64 count. If it has to ask it blocks as the Resolver does.
//
// The addresses of a family are in the order of the answer each time. They are not
// rotated, since an order may mean something and callers try all of them. The slice
// is the caller's own; it is all that is allocated where addresses are known and
// host is in lower case.
func (c *Cache) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	now := time.Now()
	if addrs := c.known(network, name, now); addrs != nil {
		return addrs, nil
	}
	if addrs, ok, err := unasked(network, host); ok {
		return addrs, err
	}
	types := typesOf(network)
	results := make([]result, len(types))
	questions := make([]*question, len(types))
	c.mu.Lock()
	for i, t := range types {
		k := key{name, t}
		if e := c.usable(k, now); e != nil {
			results[i] = resultOf(name, e.addrs, nil)
		} else {
			questions[i] = c.join(k, now)
		}
	}
	c.mu.Unlock()
	for i, q := range questions {
		if q != nil {
			results[i] = c.wait(ctx, key{name, types[i]}, q)
		}
	}
	return merge(results)
}

// known returns addresses where nothing has to be asked for and there are any.
func (c *Cache) known(network, name string, now time.Time) []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found [2][]netip.Addr
	for i, t := range typesOf(network) {
		e := c.usable(key{name, t}, now)
		if e == nil {
			return nil
		}
		found[i] = e.addrs
	}
	return slices.Concat(found[0], found[1])
}

// usable returns the entry that is good now, and notes that it is used. The caller
// holds mu.
func (c *Cache) usable(k key, now time.Time) *entry {
	el := c.entries[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !now.Before(e.until) {
		return nil
	}
	c.used.MoveToFront(el)
	return e
}

// join returns the question for k, with one more who waits for it: see wait. The
// caller holds mu.
func (c *Cache) join(k key, now time.Time) *question {
	q := c.asking[k]
	if q == nil {
		q = &question{done: make(chan struct{})}
		ctx := context.Background() // it is nobody's own
		if el := c.entries[k]; el != nil && now.Before(el.Value.(*entry).stale) {
			ctx, q.cancel = context.WithTimeoutCause(ctx, stalePatience, errTimeout)
		} else {
			ctx, q.cancel = context.WithCancel(ctx)
		}
		c.asking[k] = q
		go c.ask(ctx, k, q)
	}
	q.waiters++
	return q
}

// wait waits for the answer to a question that was joined. Whoever leaves last
// sees that it has ended.
func (c *Cache) wait(ctx context.Context, k key, q *question) result {
	select {
	case <-q.done:
		return q.res
	case <-ctx.Done():
	}
	c.mu.Lock()
	q.waiters--
	last := q.waiters == 0
	if last && c.asking[k] == q {
		delete(c.asking, k) // who comes now asks anew
		q.cancel()
	}
	c.mu.Unlock()
	if last {
		<-q.done
	}
	return result{err: unanswered(k.name, context.Cause(ctx))}
}

// ask asks the servers, and tells those who wait.
func (c *Cache) ask(ctx context.Context, k key, q *question) {
	defer q.cancel()
	a, err := c.resolver.ask(ctx, k.name, k.qtype)
	now := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(q.done)
	if c.asking[k] != q {
		return // nobody waits, and another may have asked since
	}
	delete(c.asking, k)
	if err == nil {
		a.addrs = a.addrs[:min(len(a.addrs), maxAddrs)]
		c.keep(k, a, now)
		q.res = resultOf(k.name, a.addrs, nil)
		return
	}
	q.res = result{err: err}
	if el := c.entries[k]; el != nil {
		e := el.Value.(*entry)
		if !now.Before(e.stale) {
			c.drop(el)
			return
		}
		e.until = now.Add(staleHold)
		c.used.MoveToFront(el)
		q.res = resultOf(k.name, e.addrs, nil)
	}
}

// keep puts an answer in the place of what was known before. The caller holds mu.
func (c *Cache) keep(k key, a answer, now time.Time) {
	if el := c.entries[k]; el != nil {
		c.drop(el)
	}
	if a.ttl == 0 {
		return
	}
	k.name = strings.Clone(k.name) // it may be part of something longer
	e := &entry{key: k, addrs: slices.Clone(a.addrs), until: now.Add(a.ttl)}
	e.stale = e.until.Add(maxStale)
	c.entries[k] = c.used.PushFront(e)
	if c.used.Len() > c.max {
		c.drop(c.used.Back())
	}
}

// drop forgets an entry. The caller holds mu.
func (c *Cache) drop(el *list.Element) {
	delete(c.entries, el.Value.(*entry).key)
	c.used.Remove(el)
}
