//go:build !portable

package relay

import (
	"runtime"
	"sync"
)

// readyQueue are the flows that wait for a worker, in the order in which they
// came. Those that moved little in their last turn go first, so that an answer does
// not wait for whole files; but they do not keep the others from theirs.
type readyQueue struct {
	most int // workers at a time: as many as can run at once

	mu           sync.Mutex
	sparse, bulk flowList
	ahead        int     // turns that sparse flows had while a bulk one waited
	workers      int     // that run
	idle         *worker // kept for the next time
}

// sparse is how many bytes a flow of requests and answers moves in a turn at the
// most; mostAhead is how many of them go before one that moved more.
const (
	sparse    = 16 << 10
	mostAhead = 16
)

// flowList is a list of flows, which are in one at a time.
type flowList struct{ first, last *Flow }

func (l *flowList) push(f *Flow) {
	if l.first == nil {
		l.first = f
	} else {
		l.last.next = f
	}
	l.last = f
}

// pop returns nil where the list is empty.
func (l *flowList) pop() *Flow {
	f := l.first
	if f != nil {
		l.first, f.next = f.next, nil
	}
	return f
}

// push queues f and sees to it that there is a worker for it. It does not block.
func (q *readyQueue) push(f *Flow) {
	q.mu.Lock()
	q.append(f)
	w := q.hireLocked()
	q.mu.Unlock()
	if w != nil {
		go w.work()
	}
}

// runOne gives f its turn right here, if not all workers run already.
func (q *readyQueue) runOne(f *Flow) {
	q.mu.Lock()
	w := q.hireLocked()
	if w == nil {
		q.append(f)
	}
	q.mu.Unlock()
	if w == nil {
		return
	}
	again := w.turn(f)
	w.flow = nil
	q.mu.Lock()
	if again {
		q.append(f)
	}
	if q.sparse.first == nil && q.bulk.first == nil {
		q.dismissLocked(w)
		w = nil
	}
	q.mu.Unlock()
	if w != nil {
		go w.work()
	}
}

// work gives flows their turns until none waits.
func (q *readyQueue) work(w *worker) {
	q.mu.Lock()
	for f := q.next(); f != nil; f = q.next() {
		q.mu.Unlock()
		again := w.turn(f)
		w.flow = nil
		runtime.Gosched() // for who reads the TUN, and who waits for sockets
		q.mu.Lock()
		if again {
			q.append(f)
		}
	}
	q.dismissLocked(w)
	q.mu.Unlock()
}

// append is called with mu held.
func (q *readyQueue) append(f *Flow) {
	if f.bulk {
		q.bulk.push(f)
	} else {
		q.sparse.push(f)
	}
}

// next returns the flow whose turn it is, or nil. It is called with mu held.
func (q *readyQueue) next() *Flow {
	if q.bulk.first != nil && (q.sparse.first == nil || q.ahead == mostAhead) {
		q.ahead = 0
		return q.bulk.pop()
	}
	if q.bulk.first != nil {
		q.ahead++
	}
	return q.sparse.pop()
}

// hireLocked returns a worker that may run, or nil.
func (q *readyQueue) hireLocked() *worker {
	if q.workers == q.most {
		return nil
	}
	q.workers++
	w := q.idle
	if w == nil {
		return newWorker(q)
	}
	q.idle, w.next = w.next, nil
	return w
}

func (q *readyQueue) dismissLocked(w *worker) {
	q.workers--
	w.next = q.idle
	q.idle = w
}

// endQueue are flows that are to be told of, which may take its time: one goroutine
// does it for all.
type endQueue struct {
	mu      sync.Mutex
	flows   flowList
	running bool
}

func (q *endQueue) push(f *Flow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flows.push(f)
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *endQueue) run() {
	q.mu.Lock()
	for f := q.flows.pop(); f != nil; f = q.flows.pop() {
		q.mu.Unlock()
		f.owner.Tell()
		f.loop.work.Done()
		q.mu.Lock()
	}
	q.running = false
	q.mu.Unlock()
}
