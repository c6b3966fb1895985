package users

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"tunroute/router/inbound"
)

// verifier knows passwords.
type verifier interface {
	// verify returns who a user is; [inbound.ErrDenied] says that the password
	// is wrong.
	verify(ctx context.Context, user, password string) (inbound.Identity, error)
	// version changes when what verify has said of a user no longer counts.
	version(user string) string
	// atATime is how many verify may run at once.
	atATime() int
}

// What a Guard allows.
const (
	// remembered is how long who was right does not have to prove it again: a
	// browser opens many connections in a row.
	remembered = time.Minute
	// maxRemembered users.
	maxRemembered = 4096

	// firstDelay is how long the first refusal is held back, and each one after
	// it twice as long, up to lastDelay: a client has 30 s for all it says.
	firstDelay = 250 * time.Millisecond
	lastDelay  = 8 * time.Second
	// maxFails after which a source is refused unheard, for lockTime.
	maxFails = 10
	lockTime = time.Minute
	// turns is how many passwords of a source are looked at or held back at a time:
	// a program that takes a second to look has 30 s for a house behind one address,
	// and a guesser gets no more than so many beyond maxFails.
	turns = 4
	// maxSources whose failures are kept. There are more while more have a password
	// looked at, which are clients that we have a connection of.
	maxSources = 4096

	// complainEvery is how often it is told that users cannot be checked.
	complainEvery = time.Minute
)

// Guard checks users by way of a [File] or a [Command]. It is safe for concurrent use.
type Guard struct {
	verifier verifier
	log      *slog.Logger
	key      [32]byte      // of what is remembered
	slots    chan struct{} // a token for each that is being verified

	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	mu      sync.Mutex // guards what follows
	known   map[string]memory
	sources map[netip.Addr]*source
	failed  int // checks, since that was last told
	told    time.Time
}

// memory is that a user was right: not the password, but a hash of it under a key that
// only this process has.
type memory struct {
	sum   [sha256.Size]byte
	who   inbound.Identity
	until time.Time
}

// source is where passwords come from, or wrong ones have come from.
type source struct {
	turn  chan struct{} // a token for each that has its turn
	open  int           // Checks
	fails int           // without a minute between two
	last  time.Time
}

// NewGuard returns a Guard before v, a [*File] or a [Command].
func NewGuard(v verifier, log *slog.Logger) *Guard {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Guard{
		verifier: v, log: log, now: time.Now, sleep: sleep,
		slots: make(chan struct{}, v.atATime()),
		known: make(map[string]memory), sources: make(map[netip.Addr]*source),
	}
	rand.Read(g.key[:])
	return g
}

var _ inbound.Checker = (*Guard)(nil)

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errLocked is told of a source that has guessed too often.
var errLocked = errors.Join(inbound.ErrDenied, errors.New("too many wrong passwords from there"))

// Check implements [inbound.Checker].
func (g *Guard) Check(ctx context.Context, from netip.Addr, user, password string) (inbound.Identity, error) {
	sum := g.sum(user, password)
	if who, ok := g.recall(user, sum); ok {
		return who, nil
	}
	from = inbound.SourceOf(from)
	s := g.enter(from)
	defer g.leave(from, s)
	if !g.locked(s) {
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-ctx.Done():
			return inbound.Identity{}, context.Cause(ctx)
		}
		if who, ok := g.recall(user, sum); ok { // by one before it
			return who, nil
		}
	}
	who, err := g.verify(ctx, s, user, password)
	switch {
	case err == errLocked:
		if err := g.sleep(ctx, lastDelay); err != nil {
			return inbound.Identity{}, err
		}
		return inbound.Identity{}, errLocked
	case err == nil:
		// Failures of the same source stay: they may be another's.
		g.remember(user, sum, who)
		return who, nil
	case ctx.Err() != nil: // the client has gone, or its time is over
		return inbound.Identity{}, err
	case !errors.Is(err, inbound.ErrDenied):
		g.complain(err)
		return inbound.Identity{}, errors.Join(inbound.ErrDenied, err)
	}
	delay := g.blame(from, s)
	if err := g.sleep(ctx, delay); err != nil {
		return inbound.Identity{}, err
	}
	return inbound.Identity{}, inbound.ErrDenied
}

// complain tells that users cannot be checked. Any client may be why.
func (g *Guard) complain(err error) {
	g.mu.Lock()
	g.failed++
	now, times := g.now(), g.failed
	due := now.Sub(g.told) >= complainEvery
	if due {
		g.failed, g.told = 0, now
	}
	g.mu.Unlock()
	if due {
		g.log.Error("users cannot be checked", "err", err, "times", times)
	}
}

// verify is verifier's, for as many at a time as can run, unless the source is locked.
func (g *Guard) verify(ctx context.Context, s *source, user, password string) (inbound.Identity, error) {
	if g.locked(s) {
		return inbound.Identity{}, errLocked
	}
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	case <-ctx.Done():
		return inbound.Identity{}, context.Cause(ctx)
	}
	if g.locked(s) { // by those before it
		return inbound.Identity{}, errLocked
	}
	return g.verifier.verify(ctx, user, password)
}

func (g *Guard) sum(user, password string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, g.key[:])
	for _, s := range []string{user, g.verifier.version(user), password} {
		mac.Write([]byte{byte(len(s) >> 8), byte(len(s))})
		mac.Write([]byte(s))
	}
	mac.Sum(sum[:0])
	return sum
}

// recall returns who a user is that was right before.
func (g *Guard) recall(user string, sum [sha256.Size]byte) (inbound.Identity, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.known[user]
	if !ok || !hmac.Equal(m.sum[:], sum[:]) || g.now().After(m.until) {
		return inbound.Identity{}, false
	}
	return m.who, true
}

func (g *Guard) remember(user string, sum [sha256.Size]byte, who inbound.Identity) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxRemembered {
		clear(g.known) // each of them costs one look at the hash
	}
	g.known[user] = memory{sum, who, g.now().Add(remembered)}
}

// enter returns a source, until it is left.
func (g *Guard) enter(from netip.Addr) *source {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[from]
	if s == nil {
		g.makeRoomLocked(g.now())
		s = &source{turn: make(chan struct{}, turns)}
		g.sources[from] = s
	}
	s.open++
	return s
}

// leave forgets a source without a fault.
func (g *Guard) leave(from netip.Addr, s *source) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.open--; s.open == 0 && s.fails == 0 {
		delete(g.sources, from)
	}
}

// locked tells whether a source is refused unheard.
func (g *Guard) locked(s *source) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return s.fails >= maxFails && g.now().Sub(s.last) <= lockTime
}

// blame notes a failure and returns how long to hold the refusal back.
func (g *Guard) blame(from netip.Addr, s *source) time.Duration {
	g.mu.Lock()
	now := g.now()
	if now.Sub(s.last) > lockTime {
		s.fails = 0
	}
	s.fails++
	s.last = now
	fails := s.fails
	g.mu.Unlock()

	// Each time that they have doubled: a guesser fills no disk.
	if fails&(fails-1) == 0 || fails == maxFails {
		// Not the user: it may be a password in the wrong field.
		g.log.Warn("wrong user or password", "src", from, "times", fails, "locked", fails >= maxFails)
	}
	return min(firstDelay<<min(fails-1, 10), lastDelay)
}

// makeRoomLocked forgets who has been quiet, or anybody who has nothing open.
func (g *Guard) makeRoomLocked(now time.Time) {
	if len(g.sources) < maxSources {
		return
	}
	for from, s := range g.sources {
		if s.open == 0 && now.Sub(s.last) > lockTime {
			delete(g.sources, from)
		}
	}
	for from, s := range g.sources {
		if len(g.sources) < maxSources {
			return
		}
		if s.open == 0 {
			delete(g.sources, from)
		}
	}
}
