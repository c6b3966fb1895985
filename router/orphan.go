package router

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// tellAgain is how long a client is not told of again that uses addresses
	// without names: some try for hours, every few seconds.
	tellAgain = time.Hour

	// maxClients bounds who is remembered; then all are forgotten.
	maxClients = 4096
)

// clients are those that somebody was told of. The zero value knows nobody.
type clients struct {
	mu   sync.Mutex
	told map[netip.Addr]time.Time
}

// isNew reports whether a client is to be told of, and notes that it was.
func (c *clients) isNew(a netip.Addr, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, ok := c.told[a]; ok && now.Sub(last) < tellAgain {
		return false
	}
	if c.told == nil || len(c.told) >= maxClients {
		c.told = make(map[netip.Addr]time.Time)
	}
	c.told[a] = now
	return true
}
