package netlab

import (
	"strings"
	"sync"
)

// tailSize is enough for the last words of a program.
const tailSize = 2000

// Tail is a writer that keeps the last of what is written to it. It is safe for
// concurrent use.
type Tail struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - tailSize; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// String returns it without white space around it.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
