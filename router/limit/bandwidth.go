package limit

import (
	"sync"
	"time"

	"tunroute/router/flow"
	"tunroute/router/pace"
)

// BandwidthOptions configure a [Bandwidth].
type BandwidthOptions struct {
	Per      Per
	Up, Down int64 // bytes per second from and to clients; 0: no limit
}

// Bandwidth is how fast the bytes of flows go, of all together or of each source or user.
// Its methods are safe for concurrent use.
type Bandwidth struct {
	o BandwidthOptions

	mu    sync.Mutex // guards what follows
	pipes map[who]*Pipe
}

// Pipe is what some flows share.
type Pipe struct {
	Up, Down *pace.Bucket // nil: no limit

	of   *Bandwidth
	who  who
	open int       // guarded by of.mu, as is
	idle time.Time // since when it is 0
}

// pipeIdle is how long a Pipe is kept when it has no flow, so that who comes again at once
// does not find it full.
const pipeIdle = time.Minute

// NewBandwidth returns a Bandwidth without a flow.
func NewBandwidth(o BandwidthOptions) *Bandwidth {
	return &Bandwidth{o: o, pipes: make(map[who]*Pipe)}
}

// Join returns the Pipe for a flow, until the flow leaves it. It does not block.
func (b *Bandwidth) Join(f *flow.Flow) *Pipe {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := whose(b.o.Per, f)
	p := b.pipes[w]
	if p == nil && len(b.pipes) >= maxEntries {
		w = who{rest: true}
		p = b.pipes[w]
	}
	if p == nil {
		p = &Pipe{of: b, who: w}
		if b.o.Up > 0 {
			p.Up = pace.New(b.o.Up)
		}
		if b.o.Down > 0 {
			p.Down = pace.New(b.o.Down)
		}
		b.pipes[w] = p
	}
	p.open++
	return p
}

// Again returns the Pipe for another flow, until that leaves it too. A nil Pipe is none.
func (p *Pipe) Again() *Pipe {
	if p == nil {
		return nil
	}
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.open++
	return p
}

// Leave ends a flow's use of the Pipe. A nil Pipe is none.
func (p *Pipe) Leave() {
	if p == nil {
		return
	}
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	if p.open--; p.open == 0 {
		p.idle = time.Now()
	}
}

// Expire forgets those who have had no flow for a minute.
func (b *Bandwidth) Expire(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w, p := range b.pipes {
		if p.open == 0 && now.Sub(p.idle) >= pipeIdle {
			delete(b.pipes, w)
		}
	}
	if len(b.pipes) == 0 {
		b.pipes = make(map[who]*Pipe) // a map keeps its size for ever
	}
}

// Pipes returns how many sources or users are known.
func (b *Bandwidth) Pipes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pipes)
}
