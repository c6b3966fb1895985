package udpnat

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/pace"
)

// Defaults of [Options].
const (
	DefaultIdle = 2 * time.Minute // RFC 4787 REQ-5: at least two minutes
	// A session costs a socket and a goroutine, through SOCKS two of each:
	// 9 or 16 KB. 4,096 of them stay below 70 MB and a limit of 10,000
	// files.
	DefaultMaxSessions = 4096
	DefaultMaxPaths    = 1024
	// DefaultQueueBytes is room for the first flights of 1,000 QUIC clients that
	// begin while nobody answers.
	DefaultQueueBytes = 16 << 20
)

// Writer is the client's side. Its methods are called concurrently and do not
// keep payload.
type Writer interface {
	// WriteUDP sends payload to the client at to, as if from had sent it.
	WriteUDP(payload []byte, from, to netip.AddrPort) error
	// RefuseUDP tells the client at src that a datagram of length bytes to
	// dst went nowhere.
	RefuseUDP(src, dst netip.AddrPort, length int, e syscall.Errno)
}

// RowWriter is what a [Writer] also is that sends several datagrams at less cost
// than one by one.
type RowWriter interface {
	// WriteUDPs is WriteUDP of each of payloads, in order.
	WriteUDPs(payloads [][]byte, from, to netip.AddrPort) error
}

// Decision is where a path goes.
type Decision struct {
	Target   flow.Target
	Way      any                   // comparable: the session's key, with the source
	Dialer   outbound.PacketDialer // of the Way; nil: it carries no UDP
	Drop     bool                  // tell the client nothing
	Up, Down *pace.Bucket          // how fast bytes go from and to the client; nil: no limit
	Release  func()                // called once when the path ends; may be nil
	Tag      any                   // comes back in the Record
	Flow     *outbound.Flow        // what Prepare is told of it; may be nil
}

// Record is a path that has ended.
type Record struct {
	Source, Destination netip.AddrPort // as the client has them
	Decision            Decision
	Up, Down            int64 // payload bytes
	Sent, Received      int64 // datagrams
	Start               time.Time
	Err                 error // why it ended; nil for idle
}

// Options configure a [Table]. Decide and Writer are required.
type Options struct {
	// Decide says where a new path goes. It must not block.
	Decide func(src, dst netip.AddrPort) Decision
	Writer Writer
	// Done is called for each path that ends, from goroutines that may take
	// their time. nil: nobody wants to know.
	Done func(Record)

	// RealSenders has replies come from who has sent them, and not from where
	// the client believes to have sent to: for clients that hear of names by
	// name. Where a sender is not known it is the destination all the same.
	RealSenders bool

	Idle        time.Duration // 0: DefaultIdle
	MaxSessions int           // 0: DefaultMaxSessions
	MaxPaths    int           // of one session; 0: DefaultMaxPaths
	QueueBytes  int           // that wait in all paths together; 0: DefaultQueueBytes
}

// cooldown is how long a session that could not be opened is refused at once,
// so that a client that repeats itself does not become a storm of dials.
const cooldown = time.Second

// noUDPFor is how long an outbound that carries no UDP is not asked again. A
// server's config may change; a browser that falls back from QUIC should not pay
// a dial for each new source port until then.
const noUDPFor = time.Minute

// hungUpFor is how long, where a server hung up instead of saying so: it may be one
// that is being restarted.
const hungUpFor = 5 * time.Second

// Table is the table of sessions. Its methods are safe for concurrent use.
type Table struct {
	opts  Options
	epoch time.Time       // see nanos
	rows  RowWriter       // opts.Writer, if it is one
	ctx   context.Context // ends with Close
	stop  context.CancelFunc
	work  sync.WaitGroup

	// last are the paths that Send found last, while they are in paths, by the
	// client's port: readers of several queues have one each. Set under mu.
	last [lastPaths]atomic.Pointer[path]

	waiting struct {
		mu    sync.Mutex   // guards what follows
		dirty []*session   // those with datagrams that wait for Flush
		spare [][]*session // slices for it, of flushes that have ended
	}

	mu       sync.RWMutex // guards what follows; never held across I/O
	paths    map[pathKey]*path
	sessions map[sessionKey]*session
	refused  map[pathKey]refusal
	noUDP    map[any]time.Time // ways that have said that they carry no UDP, and until when that is believed
	wheel    *wheel            // of sessions and paths
	closed   bool
	evicted  uint64

	limited atomic.Uint64 // datagrams that went too fast
	queued  atomic.Int64  // bytes in the queues of paths
}

type pathKey struct{ src, dst netip.AddrPort }

// refusal is a path that goes nowhere, kept for cooldown, so that a client that
// goes on sending costs a look-up and not a decision and a record each time.
type refusal struct {
	until  time.Time
	silent bool
}

// maxRefusals that are kept; what is beyond is refused without a record.
const maxRefusals = 4096

type sessionKey struct {
	src netip.AddrPort
	way any
}

// New returns an empty table. [Table.Run] must run for entries to expire.
func New(o Options) *Table {
	if o.Idle <= 0 {
		o.Idle = DefaultIdle
	}
	if o.MaxSessions <= 0 {
		o.MaxSessions = DefaultMaxSessions
	}
	if o.MaxPaths <= 0 {
		o.MaxPaths = DefaultMaxPaths
	}
	if o.QueueBytes <= 0 {
		o.QueueBytes = DefaultQueueBytes
	}
	if o.Done == nil {
		o.Done = func(Record) {}
	}
	t := &Table{opts: o, epoch: time.Now().Add(-time.Hour), paths: make(map[pathKey]*path), sessions: make(map[sessionKey]*session), noUDP: make(map[any]time.Time), refused: make(map[pathKey]refusal)}
	t.rows, _ = o.Writer.(RowWriter)
	t.wheel = newWheel(t.tick(), max(o.Idle, cooldown), t.nanos(time.Now()))
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

// nanos is the table's clock, in nanoseconds: it goes on when the machine's is set,
// and began an hour before the table, so that 0 is long ago. (An idle time of more
// than an hour would only make more of an answer that never came.)
func (t *Table) nanos(at time.Time) int64 { return int64(at.Sub(t.epoch)) }

// tick is how late an entry may expire.
func (t *Table) tick() time.Duration {
	return min(max(t.opts.Idle/8, 10*time.Millisecond), cooldown/2)
}

// Run expires idle entries until ctx ends, then ends all sessions and returns
// when their goroutines have.
func (t *Table) Run(ctx context.Context) {
	tick := time.NewTicker(t.tick())
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.expire(time.Now())
		case <-ctx.Done():
			t.stop()
			t.mu.Lock()
			t.closed = true
			all := make([]*session, 0, len(t.sessions))
			for _, s := range t.sessions {
				all = append(all, s)
			}
			t.mu.Unlock()
			for _, s := range all {
				t.end(s, context.Cause(ctx))
			}
			t.work.Wait()
			return
		}
	}
}

// Send takes a datagram of a client, which may wait for Flush. It does not block
// and does not keep payload; for a path that is open it does not allocate either.
// False says that the client should be told at once that the port is unreachable.
func (t *Table) Send(src, dst netip.AddrPort, payload []byte) bool {
	last := t.lastOf(src)
	p := last.Load()
	if p == nil || p.src != src || p.dst != dst {
		key := pathKey{src, dst}
		var no refusal
		var refused bool
		t.mu.RLock()
		if p = t.paths[key]; p != nil {
			last.Store(p)
		} else {
			no, refused = t.refused[key]
		}
		t.mu.RUnlock()
		if p == nil {
			if refused && time.Now().Before(no.until) {
				return no.silent
			}
			var ok bool
			if p, ok = t.open(src, dst); p == nil {
				return ok
			}
		}
	}
	return p.send(payload)
}

// maxSpare is how many flushes may run at once without making each other's next
// allocate: those of the readers of a device.
const maxSpare = 16

// Flush sends what waits for it: datagrams that Send took in a row go out together.
// It does not block. Beside other calls of Send and Flush it may send what those
// have brought, and leave to another Flush, which is under way, what its caller
// has: each datagram goes out once, and those of a path in order.
func (t *Table) Flush() {
	w := &t.waiting
	w.mu.Lock()
	dirty := w.dirty
	if len(dirty) == 0 {
		w.mu.Unlock()
		return
	}
	w.dirty = nil
	if last := len(w.spare) - 1; last >= 0 {
		w.dirty, w.spare = w.spare[last], w.spare[:last]
	}
	w.mu.Unlock()
	for _, s := range dirty {
		s.dirty.Store(false) // first: what is queued from now on may come too late for this flush
		s.queuer.Flush()
	}
	clear(dirty)
	w.mu.Lock()
	if len(w.spare) < maxSpare {
		w.spare = append(w.spare, dirty[:0])
	}
	w.mu.Unlock()
}

// markDirty has the next Flush look at s. Packet tempo.
func (t *Table) markDirty(s *session) {
	if s.dirty.Load() || s.dirty.Swap(true) {
		return
	}
	t.waiting.mu.Lock()
	t.waiting.dirty = append(t.waiting.dirty, s)
	t.waiting.mu.Unlock()
}

// open makes the path of a first datagram. Without a path, ok says whether the
// datagram is dropped in silence.
func (t *Table) open(src, dst netip.AddrPort) (_ *path, ok bool) {
	d := t.opts.Decide(src, dst)
	release := func() {
		if d.Release != nil {
			d.Release()
		}
	}
	now := time.Now()
	t.mu.Lock()
	if d.Drop || d.Dialer == nil || now.Before(t.noUDP[d.Way]) {
		t.refuseLocked(src, dst, d, now)
		t.mu.Unlock()
		release()
		return nil, d.Drop
	}
	if p := t.paths[pathKey{src, dst}]; p != nil || t.closed {
		t.mu.Unlock()
		release()
		return p, true
	}
	key := sessionKey{src, d.Way}
	s := t.sessions[key]
	var victim *session
	if s == nil {
		if len(t.sessions) >= t.opts.MaxSessions {
			victim = t.victimLocked()
		}
		s = newSession(t, key, d.Dialer, now)
		t.sessions[key] = s
		t.wheel.add(&s.due, t.nanos(now.Add(t.opts.Idle)))
		t.work.Go(s.run)
	}
	p := newPath(s, src, dst, d, now)
	if !s.add(p, t.opts.MaxPaths) {
		t.mu.Unlock()
		release()
		return nil, true
	}
	t.paths[pathKey{src, dst}] = p
	t.wheel.add(&p.due, t.nanos(now.Add(t.opts.Idle)))
	t.work.Go(p.prepare)
	if victim != nil {
		t.work.Go(func() { t.end(victim, errEvicted) })
	}
	t.mu.Unlock()
	return p, true
}

// refuseLocked keeps and tells a refusal.
func (t *Table) refuseLocked(src, dst netip.AddrPort, d Decision, now time.Time) {
	if t.closed || len(t.refused) >= maxRefusals {
		return
	}
	t.refused[pathKey{src, dst}] = refusal{now.Add(cooldown), d.Drop}
	t.work.Go(func() {
		t.opts.Done(Record{Source: src, Destination: dst, Decision: d, Start: now, Err: outbound.ErrNoUDP})
	})
}

var errEvicted = errors.New("made room for another session")

// victimLocked chooses a session that has been idle for long: the longest of a
// few taken at random (map order), since the longest of all would take a scan
// of all for every new session under attack.
func (t *Table) victimLocked() *session {
	const sample = 16
	var oldest *session
	n := 0
	for _, s := range t.sessions {
		if !s.chosen && (oldest == nil || s.used.Load() < oldest.used.Load()) {
			oldest = s
		}
		if n++; n >= sample && oldest != nil {
			break
		}
	}
	if oldest != nil {
		oldest.chosen = true
		t.evicted++
	}
	return oldest
}

// expire ends what has been idle, or has failed and cooled down.
func (t *Table) expire(now time.Time) {
	var sessions []*session
	var paths []*path
	t.mu.Lock()
	at := t.nanos(now)
	t.wheel.advance(at, func(d *due) (again int64) {
		if d.session != nil {
			if again = d.session.expires(t.opts.Idle); again <= at {
				sessions = append(sessions, d.session)
				return 0
			}
			return again
		}
		if again = d.path.expires(t.opts.Idle); again <= at {
			paths = append(paths, d.path)
			return 0
		}
		return again
	})
	for k, r := range t.refused {
		if now.After(r.until) {
			delete(t.refused, k)
		}
	}
	for way, until := range t.noUDP {
		if now.After(until) {
			delete(t.noUDP, way)
		}
	}
	t.mu.Unlock()
	for _, s := range sessions {
		t.end(s, nil)
	}
	for _, p := range paths {
		t.endPath(p)
	}
}

// schedule has expire look at d at that time, if d is still in the table.
func (t *Table) schedule(d *due, at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.linked() {
		t.wheel.add(d, t.nanos(at))
	}
}

// markNoUDP takes note that a way has said, by err, that it carries no UDP.
func (t *Table) markNoUDP(way any, err error, now time.Time) {
	believed := noUDPFor
	if outbound.HungUp(err) {
		believed = hungUpFor
	}
	t.mu.Lock()
	t.noUDP[way] = now.Add(believed)
	t.mu.Unlock()
}

// end takes a session out of the table and closes it, once.
func (t *Table) end(s *session, err error) {
	t.mu.Lock()
	if t.sessions[s.key] != s {
		t.mu.Unlock()
		return
	}
	delete(t.sessions, s.key)
	s.due.unlink()
	paths, conn := s.close()
	for _, p := range paths {
		t.forgetLocked(p)
	}
	t.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	if cause := s.cause(); cause != nil {
		err = cause
	}
	for _, p := range paths {
		p.finish(err)
	}
}

func (t *Table) endPath(p *path) {
	t.mu.Lock()
	if t.paths[pathKey{p.src, p.dst}] != p {
		t.mu.Unlock()
		return
	}
	t.forgetLocked(p)
	p.session.remove(p)
	t.mu.Unlock()
	p.finish(p.cause())
}

// forgetLocked takes a path out of the table.
func (t *Table) forgetLocked(p *path) {
	delete(t.paths, pathKey{p.src, p.dst})
	p.due.unlink()
	t.lastOf(p.src).CompareAndSwap(p, nil)
}

// lastPaths is a power of two. Two clients that send at once share a place as often
// as one in so many times, and then each of their datagrams is looked up.
const lastPaths = 64

func (t *Table) lastOf(src netip.AddrPort) *atomic.Pointer[path] {
	return &t.last[src.Port()%lastPaths]
}

// Stats are the sizes of the table now, and how many sessions had to make room.
type Stats struct {
	Sessions, Paths int
	Evicted         uint64
	Limited         uint64 // datagrams that went faster than the bandwidth of their path
}

// Stats returns the sizes.
func (t *Table) Stats() Stats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return Stats{Sessions: len(t.sessions), Paths: len(t.paths), Evicted: t.evicted, Limited: t.limited.Load()}
}

// Open returns a Record of each path that is open, as far as it has come, in no
// order. The Decision is the table's own: its Release may not be called.
func (t *Table) Open() []Record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	open := make([]Record, 0, len(t.paths))
	for _, p := range t.paths {
		open = append(open, p.record(nil))
	}
	return open
}
