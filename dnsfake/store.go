package dnsfake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// How long an answer waits at most for its lease to be in the file. A
	// write to the page cache takes microseconds; where it takes longer the
	// disk is so busy that it holds writers up, or broken.
	saveWait = 200 * time.Millisecond

	// How long a lease may be in the page cache only, from where a crash of
	// the machine takes it. To have the disk write takes milliseconds, and
	// each time wears a flash.
	syncDelay = 5 * time.Second

	// How long to leave a file alone that cannot be written.
	retryDelay = 10 * time.Second

	// How often the log says so.
	repeatEvery = time.Hour

	// Uses of a lease are written when the file's are older than this, or a
	// quarter of the quarantine: then a lease read from the file was last
	// used no later than that after what the file says.
	maxUseAge = 15 * time.Minute

	// The longest notes that wait while the disk hangs: what more than a hundred
	// thousand names take. Beyond that the file counts as one that cannot be written.
	maxPending = 4 << 20

	// A file is written anew when it is longer than its leases would take,
	// twice and this more.
	compactFrom = 1 << 20
)

// ErrInUse says that another daemon keeps its leases in a file.
var ErrInUse = errors.New("another tunroute keeps its leases there")

var errBehind = errors.New("the disk is too slow for what changes")

// store keeps the leases of a pool in a file.
//
// Whatever changes a lease makes a note of it, under the pool's lock. One
// goroutine, run, writes the notes that there are while the next ones come: so an
// answer waits for one or two writes, however many others there are, and none has
// to be held back so that more can join it. What may take long (a sync, writing the
// file anew) run leaves to other goroutines. While the file is written anew, notes
// go to the old one and into side, whose content follows in the new one; they are
// such that it does no harm if the new one has some of that already.
//
// Where writing fails nothing is noted, so that memory is bounded and answers do
// not wait, until the file has been written anew. So it is where a write takes so long
// that maxPending is reached.
type store struct {
	pool   *Pool
	path   string
	useAge uint32 // seconds
	most   int    // maxPending

	failing atomic.Bool // the file does not have what it should have
	unsaved atomic.Uint64
	warned  atomic.Int64 // the pool's time of the last warning of a slow disk

	// Guarded by Pool.mu.
	pending *notes // what is to be written
	writing *notes // what is being written; nil where nothing is
	side    *notes // what follows what is written anew; nil where nothing is, or it is of no use any more
	lost    bool   // something is in none of them, and only a file written anew will have it
	closed  bool
	wake    chan struct{} // there is something pending

	// Of run, or of whoever calls its parts in its place.
	file    *os.File // nil where there is none; locked
	size    int64    // of what is good in it
	dirty   bool     // something is not synced
	newName bool     // the directory is not synced
	said    string   // the last error that was logged
	saidAt  time.Time
}

// notes are some entries.
type notes struct {
	entries []byte
	uses    []use
	done    chan struct{} // closed when they are written, or cannot be
}

// use is what of an entry goes to lease.saved when it is written.
type use struct {
	l    *lease
	time uint32
}

func newNotes() *notes { return &notes{done: make(chan struct{})} }

// settle notes in the leases what the file has now.
func (b *notes) settle() {
	for _, u := range b.uses {
		u.l.save(u.time)
	}
}

// save notes that the file knows of a use at that time.
func (l *lease) save(time uint32) {
	for {
		was := l.saved.Load()
		if was >= time || l.saved.CompareAndSwap(was, time) {
			return
		}
	}
}

// Open has the pool keep its leases in a file, and leases what is in there. It
// comes before everything else that is done with the pool, and [Pool.Run] writes
// the file. The error is [ErrInUse] where another daemon has it, or
// [errors.ErrUnsupported]: nothing has changed then. All other troubles with the
// file are logged, and a file that cannot be written is tried again: names have
// addresses without it.
//
// A file, or the part of it, that cannot be read is set aside, with .bad at the
// end of its name. Where the ranges are not those of the file, leases keep their
// places if there still are such.
func (p *Pool) Open(path string) error {
	s := &store{
		pool:    p,
		path:    path,
		useAge:  uint32(max(min(time.Duration(p.quarantine)/4, maxUseAge), time.Second) / time.Second),
		most:    maxPending,
		pending: newNotes(),
		wake:    make(chan struct{}, 1),
	}
	s.warned.Store(-int64(warnEvery))
	s.failing.Store(true) // nothing is in the file yet
	file, err := lock(s.path)
	if errors.Is(err, ErrInUse) || errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("leases in %s: %w", path, err)
	}
	p.base = int64(time.Second)
	p.store = s
	if err != nil {
		s.fail(err)
		return nil
	}
	s.file = file
	if s.load() {
		s.failing.Store(false)
	} else {
		s.rewriteNow()
	}
	return nil
}

// lock opens the file of a path, or makes it, and locks it. Where it can only be read it
// is opened for that.
func lock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			var readErr error
			if f, readErr = os.Open(path); readErr != nil {
				return nil, err
			}
		}
		if err := lockFile(f); err != nil {
			f.Close()
			return nil, err
		}
		// It may have been written anew and given back in between.
		is, err := os.Stat(path)
		was, err2 := f.Stat()
		switch {
		case err == nil && err2 == nil && !was.Mode().IsRegular():
			f.Close()
			return nil, errors.New("not a regular file")
		case err == nil && err2 == nil && os.SameFile(is, was):
			return f, nil
		}
		f.Close()
		if err := errors.Join(err, err2); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// load leases what the file has, and says whether it can be appended to.
func (s *store) load() bool {
	p := s.pool
	info, err := s.file.Stat()
	if err == nil && info.Size() == 0 {
		return false // a new one
	}
	var j *journal
	if err == nil {
		j, err = readJournal(s.file)
	}
	if err != nil {
		s.setAside(err.Error(), 0)
		return false
	}
	if j.damaged() {
		s.setAside("a part of it cannot be read", j.leases.len())
	} else if j.tail > 0 {
		p.log.Info("leases", "file", s.path, "cut", j.tail) // a crash; see readJournal
	}
	p.base = int64(max(j.clock, 1)) * int64(time.Second) // never ahead of the time that it was
	j.leases.all(func(l *lease) {
		// It may have been used since the file was told.
		l.used.Store(min(int64(l.saved.Load()+s.useAge+1)*int64(time.Second), p.base))
		l.seen = l.used.Load()
	})
	same := j.ranges == p.ranges
	if same {
		p.leases = j.leases
		p.leases.order()
	} else {
		p.migrate(j)
		p.log.Info("leases", "file", s.path, "from", fmt.Sprint(j.v4, " ", j.v6), "to", fmt.Sprint(p.v4, " ", p.v6))
	}
	s.size = j.good
	p.log.Info("leases", "file", s.path, "leases", p.leases.len())
	return same && !j.damaged() && s.writable()
}

// writable says whether the file can be written to, and cuts off what is not good.
func (s *store) writable() bool { return s.file.Truncate(s.size) == nil }

// setAside keeps a file that is not what it should be.
func (s *store) setAside(why string, kept int) {
	aside := s.path + ".bad"
	err := os.Remove(aside)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		if err = os.Link(s.path, aside); err != nil {
			err = os.Rename(s.path, aside) // there are file systems without links
		}
	}
	if err != nil {
		s.pool.log.Error("leases: the file is not good", "file", s.path, "why", why, "kept", kept, "err", err)
		return
	}
	s.pool.log.Error("leases: the file is not good, and is set aside", "file", s.path, "why", why, "kept", kept, "aside", aside)
}

// fail notes and tells that the file cannot be written.
func (s *store) fail(err error) {
	s.failing.Store(true)
	s.tell(slog.LevelError, "leases are not kept; tried again", err)
}

// tell logs an error, unless it was the last one and that was a short while ago.
func (s *store) tell(level slog.Level, what string, err error) {
	now, text := s.pool.now(), what+err.Error()
	if text != s.said || now.Sub(s.saidAt) >= repeatEvery {
		s.said, s.saidAt = text, now
		s.pool.log.Log(context.Background(), level, what, "file", s.path, "err", err)
	}
}

// note notes a change of a lease and returns the notes in which it is; nil where it
// is not going to be written. The caller holds Pool.mu.
func (s *store) note(kind byte, l *lease, now int64) *notes {
	if s == nil || s.closed || s.failing.Load() && s.side == nil {
		return nil
	}
	b, at := s.pending, second(now)
	if len(b.entries) >= s.most {
		s.lost, s.side = true, nil
		s.failing.Store(true)
		return nil
	}
	name := ""
	switch kind {
	case entryLease:
		name = l.name
		b.uses = append(b.uses, use{l, at})
	case entryUse:
		b.uses = append(b.uses, use{l, at})
	}
	b.entries = appendEntry(b.entries, kind, l.slot, at, name)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return b
}

// noteUse is note for a use at now, if the file knows of none that is recent. The
// caller holds Pool.mu.
func (s *store) noteUse(l *lease, now int64) *notes {
	switch {
	case s.knows(l, now):
		return nil
	case l.saved.Load() > 0:
		return s.note(entryUse, l, now)
	case len(s.pending.entries) > 0:
		return s.pending // its lease is there or before
	}
	return s.writing
}

// knows reports whether the file need not be told of a use at now, so that nobody
// has to wait for that.
func (s *store) knows(l *lease, now int64) bool {
	if s == nil || s.failing.Load() {
		return true
	}
	at := l.saved.Load()
	return at > 0 && second(now) <= at+s.useAge
}

// wait waits until b has been written, or for saveWait.
func (s *store) wait(b *notes) {
	if b == nil {
		return
	}
	select {
	case <-b.done:
		return
	default:
	}
	timer := time.NewTimer(saveWait)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
		s.unsaved.Add(1)
		now, last := s.pool.stamp(), s.warned.Load()
		if now-last >= int64(warnEvery) && s.warned.CompareAndSwap(last, now) {
			s.pool.log.Warn("leases: the disk is slow, and answers do not wait for it", "file", s.path, "limit", saveWait)
		}
	}
}

// second returns a time as the file has it.
func second(stamp int64) uint32 { return uint32(stamp / int64(time.Second)) }

// Run writes the file that [Pool.Open] was given, until ctx ends; then it writes
// what there is, and gives the file back. Without a file it only waits for that.
// It is called once, and returns nil.
func (p *Pool) Run(ctx context.Context) error {
	if p.store == nil {
		<-ctx.Done()
		return nil
	}
	p.store.run(ctx)
	return nil
}

func (s *store) run(ctx context.Context) {
	p := s.pool
	pinned := time.NewTicker(time.Duration(s.useAge) * time.Second / 4)
	defer pinned.Stop()
	var (
		syncs    = make(chan error, 1)
		rewrites = make(chan rewritten, 1)
		syncing  bool
		anew     bool             // a rewrite is running
		syncAt   <-chan time.Time // nil where nothing is to be synced
		retryAt  <-chan time.Time
	)
	rewrite := func(r rewritten) {
		anew, retryAt = true, nil
		go func() { rewrites <- s.rewrite(r) }()
	}
	if s.failing.Load() {
		retryAt = time.After(retryDelay)
	}
	for ctx.Err() == nil {
		if s.dirty && syncAt == nil && !syncing {
			delay := syncDelay
			if s.newName {
				delay = 0 // some of what is in it may have been synced in the old file
			}
			syncAt = time.After(delay)
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
			if s.flush() != nil && !anew && retryAt == nil {
				retryAt = time.After(retryDelay)
			}
		case <-syncAt:
			syncAt, syncing = nil, true
			sync := s.sync()
			go func() { syncs <- sync() }()
		case err := <-syncs:
			syncing = false
			if err != nil {
				s.fail(err)
				if !anew && retryAt == nil {
					retryAt = time.After(retryDelay)
				}
			}
		case <-pinned.C:
			s.notePinned()
			if !anew && retryAt == nil && !s.failing.Load() && s.size > s.worth()*2+compactFrom {
				rewrite(s.begin())
			}
		case <-retryAt:
			rewrite(s.begin())
		case r := <-rewrites:
			if more, ok := s.more(r); ok {
				rewrite(more)
				continue
			}
			anew = false
			if s.finish(r) != nil {
				retryAt = time.After(retryDelay)
			} else {
				syncAt = nil // sooner
			}
		}
	}
	p.mu.Lock()
	p.store.closed = true
	p.mu.Unlock()
	if anew {
		if r := <-rewrites; r.file != nil {
			s.discard(r)
		}
	}
	if syncing {
		<-syncs
	}
	s.close()
}

// close writes what is left, and gives the file back.
func (s *store) close() {
	p := s.pool
	p.mu.Lock()
	s.closed, s.side = true, nil
	if !s.failing.Load() {
		s.pending.entries = appendEntry(s.pending.entries, entryClock, 0, second(p.stamp()), "")
	}
	p.mu.Unlock()
	err := s.flush()
	if err == nil && s.dirty {
		err = s.sync()()
	}
	if err != nil {
		s.fail(err)
	}
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// flush writes what is pending.
func (s *store) flush() error {
	p := s.pool
	p.mu.Lock()
	b := s.pending
	if len(b.entries) == 0 {
		p.mu.Unlock()
		return nil
	}
	s.pending, s.writing = newNotes(), b
	if s.side != nil && len(s.side.entries) >= s.most {
		s.side = nil
	}
	if s.side != nil {
		s.side.entries = append(s.side.entries, b.entries...)
		s.side.uses = append(s.side.uses, b.uses...)
	}
	lost := s.lost
	p.mu.Unlock()

	var err error
	if s.failing.Load() {
		if lost {
			err = errBehind
			s.fail(err)
		}
	} else {
		// At the end of what is good: behind it may be a part of a write that
		// has failed.
		if _, err = s.file.WriteAt(b.entries, s.size); err == nil {
			s.size += int64(len(b.entries))
			s.dirty = true
			b.settle()
		} else {
			s.fail(err)
		}
	}
	p.mu.Lock()
	s.writing = nil
	p.mu.Unlock()
	close(b.done)
	return err
}

// sync returns what makes a crash of the machine harmless for all that has been
// written.
func (s *store) sync() func() error {
	file, newName := s.file, s.newName
	s.dirty, s.newName = false, false
	return func() error {
		err := file.Sync()
		if newName && err == nil {
			err = syncDir(s.path)
		}
		if errors.Is(err, os.ErrClosed) {
			return nil // it has been replaced by one that is synced
		}
		return err
	}
}

// syncDir has the disk know of a new name, where directories can be synced: some file
// systems do not, and those that we may not read cannot be.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = d.Sync()
		d.Close()
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// worth returns the length of a file with the leases of now and nothing else.
func (s *store) worth() int64 {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	return headerLen + int64(p.leases.len())*entryLen + int64(p.leases.octets)
}

// notePinned notes the use of leases that flows use.
func (s *store) notePinned() {
	p := s.pool
	now := p.stamp()
	p.leases.all(func(l *lease) {
		if l.pins.Load() <= 0 || second(now) <= l.saved.Load()+s.useAge/2 {
			return
		}
		p.mu.Lock()
		if l.pins.Load() > 0 { // and so not ended
			s.note(entryUse, l, now)
		}
		p.mu.Unlock()
	})
}

// rewritten is a file that is being written to take the place of another.
type rewritten struct {
	file *os.File // nil before there is one
	size int64
	rest []byte // to be appended
	uses []use  // what the leases are to be told when it is in place
	last bool   // rest is so short that to write and sync it takes no time
	err  error
}

// begin begins to write the file anew: from now on side is filled.
func (s *store) begin() rewritten {
	s.pool.mu.Lock()
	s.side, s.lost = newNotes(), false
	s.pool.mu.Unlock()
	return rewritten{}
}

// rewrite writes all leases to a new file, or what r has for one, and syncs it. It
// is called beside everything else.
func (s *store) rewrite(r rewritten) rewritten {
	if r.file == nil {
		r.file, r.err = s.create()
		if r.err == nil {
			r.size, r.err = s.writeAll(r.file)
		}
	} else {
		var n int
		n, r.err = r.file.WriteAt(r.rest, r.size)
		r.size += int64(n)
	}
	if r.err == nil {
		r.err = r.file.Sync()
	}
	return r
}

// create makes the new file, and locks it before others can. One that is there already
// is what a crash has left, or another daemon is about to have it.
func (s *store) create() (*os.File, error) {
	f, err := lock(s.path + ".new")
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// writeAll writes all leases. What changes meanwhile is in side.
func (s *store) writeAll(to io.WriterAt) (size int64, err error) {
	p := s.pool
	failing := s.failing.Load()
	w := bufio.NewWriterSize(io.NewOffsetWriter(to, 0), 1<<16)
	write := func(b []byte) {
		if err == nil {
			_, err = w.Write(b)
			size += int64(len(b))
		}
	}
	buf := make([]byte, 0, 2*entryLen+maxName)
	write(appendHeader(buf, p.ranges))
	write(appendEntry(buf, entryClock, 0, second(p.stamp()), ""))
	p.leases.all(func(l *lease) {
		used := max(second(l.used.Load()), l.saved.Load())
		if l.pins.Load() > 0 {
			used = second(p.stamp())
		}
		b := appendEntry(buf, entryLease, l.slot, used, l.name)
		if l.hidden.Load() && l.name != "" {
			b = appendEntry(b, entryDrop, l.slot, used, "")
		}
		write(b)
		if failing {
			l.save(used) // nobody goes by it before the file is in place
		}
	})
	if err == nil {
		err = w.Flush()
	}
	return size, err
}

// more says whether what has come since is to be written and synced before the new file
// takes its place, and then what: until that is short, and then once more, so that what
// a crash of the machine may take is no older than one short sync.
func (s *store) more(r rewritten) (rewritten, bool) {
	const few = 1 << 16
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if r.err != nil || s.side == nil || len(s.side.entries) == 0 || r.last && len(s.side.entries) <= few {
		return r, false
	}
	r.last = len(s.side.entries) <= few
	r.rest, r.uses = s.side.entries, append(r.uses, s.side.uses...)
	s.side = newNotes()
	return r, true
}

// finish puts the new file in the place of the old one.
func (s *store) finish(r rewritten) error {
	p := s.pool
	p.mu.Lock()
	side := s.side // nobody else adds to it, and what is pending comes after it
	p.mu.Unlock()
	if side == nil && r.err == nil {
		r.err = errBehind
	}
	failing := s.failing.Load()
	defer func() {
		p.mu.Lock()
		s.side = nil
		s.failing.Store(failing || s.lost)
		p.mu.Unlock()
	}()
	if r.err == nil && s.file == nil {
		// Nobody has locked the name yet.
		if s.file, r.err = lock(s.path); r.err == nil {
			if info, err := s.file.Stat(); err == nil && info.Size() > 0 {
				s.setAside("it could not be opened before", 0)
			}
		}
	}
	if r.err == nil {
		_, r.err = r.file.WriteAt(side.entries, r.size)
		r.size += int64(len(side.entries))
	}
	if r.err == nil {
		r.err = os.Rename(s.path+".new", s.path)
	}
	if r.err != nil {
		s.discard(r)
		if failing {
			s.fail(r.err)
			return r.err
		}
		s.tell(slog.LevelWarn, "leases: the file is not made shorter", r.err)
		return nil
	}
	s.file.Close()
	s.file, s.size, s.dirty, s.newName = r.file, r.size, true, true
	side.settle()
	for _, u := range r.uses {
		u.l.save(u.time)
	}
	if failing && s.said != "" {
		p.log.Info("leases are kept again", "file", s.path)
	}
	failing, s.said = false, ""
	return nil
}

// discard removes a new file that does not take the place of the old one.
func (s *store) discard(r rewritten) {
	if r.file != nil {
		os.Remove(s.path + ".new") // while nobody else can have it
		r.file.Close()
	}
}

// rewriteNow writes the file anew where nobody waits.
func (s *store) rewriteNow() {
	_ = s.finish(s.rewrite(s.begin())) // it has been told
}
