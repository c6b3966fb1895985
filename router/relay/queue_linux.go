package relay

import (
	"runtime"
	"sync"
)

// readyQueue are the flows that wait for a worker, in the order in which they
// came: a flow that has used up its budget goes to the end.
type readyQueue struct {
	most int // workers at a time: as many as can run at once

	mu          sync.Mutex
	first, last *Flow
	workers     int     // that run
	idle        *worker // kept for the next time
}

// push queues f and sees to it that there is a worker for it. It does not block.
func (q *readyQueue) push(f *Flow) {
	q.mu.Lock()
	q.append(f)
	w := q.hireLocked()
	q.mu.Unlock()
	if w != nil {
		go q.work(w)
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
	if q.first == nil {
		q.dismissLocked(w)
		w = nil
	}
	q.mu.Unlock()
	if w != nil {
		go q.work(w)
	}
}

// work gives flows their turns until none waits.
func (q *readyQueue) work(w *worker) {
	q.mu.Lock()
	for q.first != nil {
		f := q.first
		q.first, f.next = f.next, nil
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
	if q.first == nil {
		q.first = f
	} else {
		q.last.next = f
	}
	q.last = f
}

// hireLocked returns a worker that may run, or nil.
func (q *readyQueue) hireLocked() *worker {
	if q.workers == q.most {
		return nil
	}
	q.workers++
	w := q.idle
	if w == nil {
		return newWorker()
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
	mu          sync.Mutex
	first, last *Flow
	running     bool
}

func (q *endQueue) push(f *Flow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		q.first = f
	} else {
		q.last.next = f
	}
	q.last = f
	if !q.running {
		q.running = true
		go q.run()
	}
}

func (q *endQueue) run() {
	q.mu.Lock()
	for q.first != nil {
		f := q.first
		q.first, f.next = f.next, nil
		q.mu.Unlock()
		f.owner.Tell()
		f.loop.work.Done()
		q.mu.Lock()
	}
	q.running = false
	q.mu.Unlock()
}
