package udpnat

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/pace"
)

// A path's queue holds what a client sends until it hears of the first answer:
// a QUIC client's first flight is about ten datagrams of 1,200 bytes.
const (
	queueDatagrams = 16
	queueBytes     = 64 << 10
)

// session is one client source on one way out.
type session struct {
	table  *Table
	key    sessionKey
	dialer outbound.PacketDialer
	used   atomic.Int64 // of the last datagram either way: see Table.nanos
	due    due          // guarded by table.mu, as is
	chosen bool         // to make room

	dirty  atomic.Bool     // in table.dirty: something waits in
	queuer outbound.Queuer // conn's; set before opened is closed

	opened chan struct{} // closed when conn or err is there
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.RWMutex // guards what follows
	conn    outbound.PacketConn
	err     error     // why there is no conn, or no longer
	failed  time.Time // when err came
	closed  bool
	paths   map[netip.AddrPort]*path   // by destination, as the client has it
	senders map[netip.AddrPort]*sender // by real address: only those that answer for a name
}

// sender is a real address that answers for a name.
type sender struct {
	owner atomic.Pointer[path] // of several names, the last that sent
}

func newSession(t *Table, key sessionKey, d outbound.PacketDialer, now time.Time) *session {
	s := &session{
		table: t, key: key, dialer: d,
		opened:  make(chan struct{}),
		paths:   make(map[netip.AddrPort]*path),
		senders: make(map[netip.AddrPort]*sender),
	}
	s.ctx, s.cancel = context.WithCancel(t.ctx)
	s.used.Store(s.table.nanos(now))
	s.due.session = s
	return s
}

// run opens the conversation and has its replies brought back.
func (s *session) run() {
	conn, err := s.dialer.OpenUDP(s.ctx)
	s.mu.Lock()
	if err == nil && s.closed {
		conn.Close()
		err = context.Canceled
	}
	s.conn, s.err = conn, err
	if err != nil {
		s.conn, s.failed = nil, time.Now()
	} else {
		s.queuer = outbound.Queue(conn)
	}
	s.mu.Unlock()
	close(s.opened)
	if errors.Is(err, outbound.ErrNoUDP) {
		s.table.markNoUDP(s.key.way, err, time.Now())
	}
	if err != nil {
		s.cancel()
		s.table.schedule(&s.due, time.Now().Add(cooldown))
		return // the table keeps s until it has cooled down
	}
	s.table.work.Go(func() { s.read(conn) }) // on a stack that no handshake has grown
}

// read brings replies back until the conversation ends.
func (s *session) read(conn outbound.PacketConn) {
	batches, take := outbound.Batches(conn), s.take
	var err error
	for err == nil {
		err = batches.ReadBatch(take)
	}
	s.mu.Lock()
	if !s.closed {
		s.err = err
	}
	s.mu.Unlock()
	s.table.end(s, err)
}

// take brings replies to the client. Packet tempo.
func (s *session) take(payloads [][]byte, from []netip.AddrPort) {
	now := s.table.nanos(time.Now())
	s.used.Store(now)
	for i := 0; i < len(payloads); {
		n := 1
		for i+n < len(payloads) && from[i+n] == from[i] {
			n++
		}
		s.takeFrom(from[i], payloads[i:i+n], now)
		i += n
	}
}

// takeFrom brings replies of one sender to the client.
func (s *session) takeFrom(from netip.AddrPort, payloads [][]byte, now int64) {
	seen := from
	p := s.answers(from)
	if p != nil {
		if !s.table.opts.RealSenders || from.Addr().IsUnspecified() {
			seen = p.dst
		}
		p.used.Store(now)
		p.answered.Store(now)
		bytes := 0
		for _, b := range payloads {
			bytes += len(b)
		}
		p.down.Add(int64(bytes))
		p.received.Add(int64(len(payloads)))
	} else if from.Addr().IsUnspecified() {
		return // a SOCKS server gave a name that nobody asked for
	}
	if p != nil && p.downShare != nil {
		for _, b := range payloads {
			if p.allows(p.downShare, b) {
				_ = s.table.opts.Writer.WriteUDP(b, seen, s.key.src)
			}
		}
		return
	}
	// The client's family decides; a reply of the other one has no way to it.
	if len(payloads) > 1 && s.table.rows != nil {
		_ = s.table.rows.WriteUDPs(payloads, seen, s.key.src)
		return
	}
	for _, b := range payloads {
		_ = s.table.opts.Writer.WriteUDP(b, seen, s.key.src)
	}
}

// answers returns the path that a reply from a real address belongs to, nil for
// a stranger. See the package's Theory of operation.
func (s *session) answers(from netip.AddrPort) *path {
	s.mu.RLock()
	known := s.senders[from]
	plain := s.paths[from]
	s.mu.RUnlock()
	if known == nil && plain != nil {
		return plain
	}
	var owner *path
	if known != nil {
		owner = known.owner.Load()
		if owner.open() || s.table.nanos(time.Now())-owner.answered.Load() < int64(stream) {
			return owner
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var waiting *path
	for _, p := range s.paths {
		if p.decision.Target.Name != "" && p.dst.Port() == from.Port() && p.sent.Load() > 0 && p.mayBeLocked(owner) &&
			(waiting == nil || p.first.Load() < waiting.first.Load()) {
			waiting = p
		}
	}
	if waiting == nil {
		return owner
	}
	s.leaveLocked(waiting)
	s.learnLocked(waiting, from)
	waiting.guessed = owner != nil
	return waiting
}

// stream is how long after an answer more of the same are still the same name's:
// most answers are more than one datagram.
const stream = time.Second

// mayBeLocked says whether a reply can be the first of p's name, from a sender
// that has answered for owner; nil: for nobody. What owner has had several of, or
// has had a question after p's, is a conversation, in which the far end may speak
// by itself; a single answer may be of an address that both names have.
func (p *path) mayBeLocked(owner *path) bool {
	if owner == nil {
		return p.sender.Load() == nil || p.guessed && p.received.Load() <= 1
	}
	return p.sender.Load() == nil && owner.received.Load() <= 1 && owner.last.Load() < p.first.Load()
}

// learnLocked takes note that from answers for p's name.
func (s *session) learnLocked(p *path, from netip.AddrPort) {
	e := s.senders[from]
	if e == nil {
		e = new(sender)
		s.senders[from] = e
	}
	e.owner.Store(p)
	p.sender.Store(e)
	p.senderAddr = from
}

// leaveLocked takes note that nobody answers for p's name. Who did answers for
// another name that shares the address, if there is one.
func (s *session) leaveLocked(p *path) {
	e := p.sender.Swap(nil)
	if e == nil || e.owner.Load() != p {
		return
	}
	for _, other := range s.paths {
		if other.sender.Load() == e {
			e.owner.Store(other)
			return
		}
	}
	delete(s.senders, p.senderAddr)
}

// add takes in a path, unless there are max already or the session has ended.
func (s *session) add(p *path, max int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.paths) >= max {
		return false
	}
	s.paths[p.dst] = p
	return true
}

func (s *session) remove(p *path) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.paths, p.dst)
	s.leaveLocked(p)
}

// close ends the conversation and returns its paths, and the connection, nil where
// there is none, to be closed without a lock.
func (s *session) close() ([]*path, outbound.PacketConn) {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	paths := make([]*path, 0, len(s.paths))
	for _, p := range s.paths {
		paths = append(paths, p)
	}
	return paths, s.conn
}

func (s *session) cause() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.err
}

// expires says when the session ends unless it is used again.
func (s *session) expires(idle time.Duration) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.failed.IsZero() {
		return s.table.nanos(s.failed.Add(cooldown))
	}
	return s.used.Load() + int64(idle)
}

// path is a session's conversation with one destination.
type path struct {
	session  *session
	src, dst netip.AddrPort // as the client has them
	decision Decision
	start    time.Time
	due      due // guarded by table.mu

	used, first, last, answered atomic.Int64 // see Table.nanos: either way; first and last sent; last answer
	up, down, sent, received    atomic.Int64

	upShare, downShare *pace.Share // nil: no limit

	sender     atomic.Pointer[sender] // who answers for the name; set under session.mu, which guards
	senderAddr netip.AddrPort         // its address, and
	guessed    bool                   // that it had answered for another name

	ready atomic.Pointer[way] // nil: datagrams wait

	mu     sync.Mutex // guards what follows
	queue  [][]byte
	queued int           // bytes
	err    error         // why there is no way, and
	failed syscall.Errno // what the client is told of it
	since  time.Time     // when that was
}

// way is what a path needs to send.
type way struct {
	queuer outbound.Queuer
	target flow.Target
}

func newPath(s *session, src, dst netip.AddrPort, d Decision, now time.Time) *path {
	p := &path{session: s, src: src, dst: dst, decision: d, start: now}
	p.used.Store(s.table.nanos(now))
	p.due.path = p
	if d.Up != nil {
		p.upShare = d.Up.Join(nil)
	}
	if d.Down != nil {
		p.downShare = d.Down.Join(nil)
	}
	return p
}

// send takes a datagram, which waits for the table's Flush; false: refused.
func (p *path) send(payload []byte) bool {
	now := p.session.table.nanos(time.Now())
	if w := p.ready.Load(); w != nil {
		p.touch(now)
		p.write(w, payload, now)
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.failed == 0 // and it is not kept for being asked
	}
	p.touch(now)
	if w := p.ready.Load(); w != nil { // made ready meanwhile
		p.write(w, payload, now)
		return true
	}
	if len(p.queue) < queueDatagrams && p.queued+len(payload) <= queueBytes && p.session.table.mayQueue(len(payload)) {
		p.queue = append(p.queue, append([]byte(nil), payload...))
		p.queued += len(payload)
	}
	return true
}

// unqueueLocked returns what waits, which does no longer.
func (p *path) unqueueLocked() [][]byte {
	queue := p.queue
	p.session.table.queued.Add(-int64(p.queued))
	p.queue, p.queued = nil, 0
	return queue
}

// mayQueue takes room for n bytes that wait, if there is any.
func (t *Table) mayQueue(n int) bool {
	if t.queued.Add(int64(n)) <= int64(t.opts.QueueBytes) {
		return true
	}
	t.queued.Add(-int64(n))
	return false
}

func (p *path) touch(now int64) {
	p.used.Store(now)
	p.session.used.Store(now)
}

// write queues a datagram. An error is a lost one: what ends the conversation is
// the reader's to say.
func (p *path) write(w *way, payload []byte, now int64) {
	if s := p.sender.Load(); s != nil && s.owner.Load() != p {
		s.owner.Store(p)
	}
	p.last.Store(now)
	if p.sent.Add(1) == 1 {
		p.first.Store(now)
	}
	if p.upShare != nil && !p.allows(p.upShare, payload) {
		return
	}
	if w.queuer.Queue(payload, w.target) == nil {
		p.up.Add(int64(len(payload)))
	}
	p.session.table.markDirty(p.session)
}

// allows says whether a datagram is within a bandwidth; otherwise it is lost, and counted.
func (p *path) allows(s *pace.Share, payload []byte) bool {
	ok := s.Allow(len(payload))
	if !ok {
		p.session.table.limited.Add(1)
	}
	return ok
}

// open says that p has sent since its last answer.
func (p *path) open() bool { return p.last.Load() > p.answered.Load() }

// prepare opens the path's way, then sends what waits.
func (p *path) prepare() {
	s := p.session
	defer s.table.Flush()
	<-s.opened // OpenUDP ends with the session
	s.mu.RLock()
	conn, queuer, err := s.conn, s.queuer, s.err
	s.mu.RUnlock()
	var target flow.Target
	if err == nil && conn == nil {
		return // closed
	}
	if err == nil {
		ctx := s.ctx
		if p.decision.Flow != nil {
			ctx = outbound.WithFlow(ctx, p.decision.Flow)
		}
		target, err = conn.Prepare(ctx, p.decision.Target)
	}
	if err != nil {
		p.refuse(err)
		return
	}
	w := &way{queuer: queuer, target: target}
	if target.Name != "" && target.Addr.IsValid() {
		s.mu.Lock()
		s.learnLocked(p, target.AddrPort())
		s.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := s.table.nanos(time.Now())
	for _, b := range p.unqueueLocked() {
		p.write(w, b, now)
	}
	p.ready.Store(w)
}

// refuse tells the client of whatever waits that it went nowhere, and leaves the
// path refusing until it is removed.
func (p *path) refuse(err error) {
	e := outbound.Errno(err)
	if errors.Is(err, outbound.ErrNoUDP) || errors.Is(err, outbound.ErrRejected) {
		e = syscall.ECONNREFUSED
	}
	if errors.Is(err, context.Canceled) {
		e = 0
	}
	p.mu.Lock()
	queue := p.unqueueLocked()
	p.err, p.failed, p.since = err, e, time.Now()
	p.mu.Unlock()
	p.session.table.schedule(&p.due, time.Now().Add(cooldown))
	for _, b := range queue {
		p.session.table.opts.Writer.RefuseUDP(p.src, p.dst, len(b), e)
	}
}

// expires says when the path ends unless it is used again.
func (p *path) expires(idle time.Duration) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.session.table.nanos(p.since.Add(cooldown))
	}
	return p.used.Load() + int64(idle)
}

func (p *path) cause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// finish gives back what the path holds and tells of it.
func (p *path) finish(err error) {
	for _, s := range []*pace.Share{p.upShare, p.downShare} {
		if s != nil {
			s.Leave()
		}
	}
	if p.decision.Release != nil {
		p.decision.Release()
	}
	p.mu.Lock()
	p.unqueueLocked()
	if p.err == nil {
		p.err = net.ErrClosed // who has found the path just now queues nothing more
	}
	p.mu.Unlock()
	p.session.table.opts.Done(p.record(err))
}

func (p *path) record(err error) Record {
	return Record{
		Source: p.src, Destination: p.dst, Decision: p.decision,
		Up: p.up.Load(), Down: p.down.Load(), Sent: p.sent.Load(), Received: p.received.Load(),
		Start: p.start, Err: err,
	}
}
