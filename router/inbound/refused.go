package inbound

import (
	"net/netip"
	"sync"
	"time"
)

// notLetIn is an [ErrDenied] in words of its own, of which the log is told.
type notLetIn struct{ error }

func (e notLetIn) Unwrap() error      { return e.error }
func (notLetIn) Is(target error) bool { return target == ErrDenied }

// SourceOf returns what of an address belongs to one source: a host has a whole /64 of
// IPv6. All clients on unix sockets are one.
func SourceOf(a netip.Addr) netip.Addr {
	if a.Is6() && !a.Is4In6() {
		p, _ := a.WithZone("").Prefix(64)
		return p.Addr()
	}
	return a.Unmap()
}

const (
	// tellAgain is how long the log is not told again of who is refused: some try
	// every few seconds.
	tellAgain = time.Minute
	// maxTold bounds who is remembered; then all are forgotten.
	maxTold = 4096
)

// told are the sources that the log was told of. The zero value is none.
type told struct {
	mu   sync.Mutex
	when map[netip.Addr]time.Time
}

// due says whether it is time to tell of a source, and notes that it was told of.
func (t *told) due(from netip.Addr, now time.Time) bool {
	from = SourceOf(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, ok := t.when[from]; ok && now.Sub(last) < tellAgain {
		return false
	}
	if t.when == nil || len(t.when) >= maxTold {
		t.when = make(map[netip.Addr]time.Time)
	}
	t.when[from] = now
	return true
}
