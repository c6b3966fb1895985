//go:build !portable

package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"tunroute/router/pace"
)

// Loop relays between [Stream]s and sockets. A flow that is idle has neither a
// goroutine nor a buffer. One that has something to do waits in a queue for one of
// a few workers, which are goroutines that end when the queue is empty. Payload
// goes from the client's queue to the socket, and from the socket into the
// client's queue, without a copy between.
//
// One goroutine waits for all sockets, in an epoll set of the Loop's own, which
// itself waits in the poller of the Go runtime.
type Loop struct {
	epoll *os.File
	conn  syscall.RawConn // of epoll

	mu     sync.RWMutex
	flows  map[int32]*Flow // by file descriptor; one between sockets has two
	count  int             // flows
	closed bool            // Run ends
	work   sync.WaitGroup  // flows, until their owners have been told; added to under mu, until closed

	pipes pipePool
	ready readyQueue
	ended endQueue
}

// NewLoop returns a Loop. [Loop.Run] must run for it to relay anything, and
// closes it.
func NewLoop() (*Loop, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil { // or the runtime would not poll it
		syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l := &Loop{epoll: os.NewFile(uintptr(fd), "epoll"), flows: make(map[int32]*Flow)}
	l.ready.most = runtime.GOMAXPROCS(0)
	if l.conn, err = l.epoll.SyscallConn(); err != nil {
		l.epoll.Close()
		return nil, err
	}
	return l, nil
}

// Run waits for sockets until ctx ends, then ends all flows, and returns when
// their owners have been told.
func (l *Loop) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { l.epoll.Close() })
	defer stop()
	events := make([]syscall.EpollEvent, 256)
	n := 0
	wait := func(fd uintptr) bool {
		for {
			var err syscall.Errno
			n, err = call(syscall.SYS_EPOLL_PWAIT, int32(fd), unsafe.Pointer(&events[0]), len(events))
			if err == 0 && n == 0 && othersRan() {
				continue
			}
			if err != syscall.EINTR {
				return n != 0
			}
		}
	}
	for l.conn.Read(wait) == nil && n > 0 {
		var last *Flow
		l.mu.RLock()
		for _, e := range events[:n] {
			// A number may be another flow's by now; it is woken in vain.
			f := l.flows[e.Fd]
			if f == nil || !f.mark(f.events(e.Fd, e.Events)) {
				continue
			}
			if last != nil {
				l.ready.push(last)
			}
			last = f
		}
		l.mu.RUnlock()
		// One of them has its turn here: with few flows, that spares the
		// runtime to wake a thread for a worker.
		if last != nil {
			l.ready.runOne(last)
		}
	}
	l.epoll.Close()
	l.mu.Lock()
	l.closed = true
	all := make([]*Flow, 0, len(l.flows))
	for _, f := range l.flows {
		all = append(all, f)
	}
	l.mu.Unlock()
	for _, f := range all {
		f.Cancel(context.Cause(ctx))
	}
	l.work.Wait()
	l.pipes.close()
}

// othersRan lets other goroutines run and says whether they took their time. The
// runtime looks at its poller when it has nothing else to run, and else every 10 ms:
// who wants to hear of a socket while there is work looks for itself.
func othersRan() bool {
	const long = 20 * time.Microsecond
	start := time.Now()
	runtime.Gosched()
	return time.Since(start) > long
}

// Relay does what the function Relay does, and returns at once: owner is told of
// the end. If there is an error, nothing was done with the connections.
func (l *Loop) Relay(client Stream, upstream *net.TCPConn, n *Counters, owner Owner) (*Flow, error) {
	fd, err := detach(upstream)
	if err != nil {
		return nil, err
	}
	f := &Flow{loop: l, client: client, fd: int32(fd), n: n, owner: owner}
	if n.UpLimit != nil {
		f.upShare = n.UpLimit.Join(func() { f.wake(up) })
	}
	if n.DownLimit != nil {
		f.downShare = n.DownLimit.Join(func() { f.wake(down) })
	}
	f.state.Store(running) // what wakes it has to wait until all of it is there
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		syscall.Close(fd)
		return nil, net.ErrClosed
	}
	l.flows[f.fd] = f
	l.count++
	l.work.Add(1)
	l.mu.Unlock()
	if err := l.watch(fd); err != nil {
		l.forget(f)
		l.work.Done()
		syscall.Close(fd)
		return nil, err
	}
	// From here on the socket is the flow's alone. What package net keeps for one,
	// with its place in the runtime's poller, is more than a kilobyte.
	upstream.Close()
	client.Wake(f.clientEvents)
	f.state.Or(up | down)
	l.ready.push(f)
	return f, nil
}

// watch has Run hear of a socket.
func (l *Loop) watch(fd int) (err error) {
	cerr := l.conn.Control(func(epoll uintptr) {
		err = syscall.EpollCtl(int(epoll), syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{
			Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edgeTriggered, Fd: int32(fd),
		})
	})
	return os.NewSyscallError("epoll_ctl", errors.Join(cerr, err))
}

// detach returns another descriptor of the socket.
func detach(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(own uintptr) {
		// Else urgent data (RFC 6093) stays in the way: SIOCINQ says 0 at it,
		// whatever is behind.
		_ = syscall.SetsockoptInt(int(own), syscall.SOL_SOCKET, syscall.SO_OOBINLINE, 1)
		r, _, errno := syscall.Syscall(syscall.SYS_FCNTL, own, syscall.F_DUPFD_CLOEXEC, 0)
		if errno != 0 {
			err = os.NewSyscallError("fcntl", errno)
		}
		fd = int(r)
	})
	return fd, errors.Join(cerr, err)
}

// Flows returns how many flows there are.
func (l *Loop) Flows() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.count
}

func (l *Loop) forget(f *Flow) {
	l.mu.Lock()
	if l.flows[f.fd] == f {
		delete(l.flows, f.fd)
		l.count--
	}
	if s := f.sockets; s != nil && l.flows[s.client] == f {
		delete(l.flows, s.client)
	}
	if len(l.flows) == 0 {
		l.flows = make(map[int32]*Flow) // a map keeps its size for ever
	}
	l.mu.Unlock()
}

// edgeTriggered is EPOLLET, which syscall has as a negative number.
const edgeTriggered = 1 << 31

// What a flow is woken for, and that it runs.
const (
	up           uint32 = 1 << iota // there may be something to send up, or room for it
	down                            // the same down
	hangup                          // the upstream has said that it has no more, or has broken
	stopped                         // Cancel was called, or the stream stops
	running                         // the flow is in the queue, or with a worker
	clientHangup                    // of a flow between sockets, as hangup
)

// Flow is a flow of a Loop. All but the atomic state and the counters belongs to
// the worker that runs it.
type Flow struct {
	loop    *Loop
	client  Stream   // or
	sockets *sockets // where that is nil
	n       *Counters
	owner   Owner
	fd      int32 // of the upstream's socket, which is nobody else's

	state atomic.Uint32
	cause atomic.Pointer[error] // of Cancel

	upDone, downDone bool // the direction has ended in order
	eof              bool // the upstream may have no more: look
	ended            bool
	bulk             bool // its last turn moved much

	upShare, downShare *pace.Share // of what bounds how fast bytes move; nil: nothing

	side error // of the worker's writev or read, to tell the sides apart
	next *Flow // in the queue
}

func upstreamEvents(e uint32) uint32 {
	var w uint32
	if e&syscall.EPOLLIN != 0 {
		w |= down
	}
	if e&syscall.EPOLLOUT != 0 {
		w |= up
	}
	if e&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		w |= up | down | hangup
	}
	return w
}

func (f *Flow) clientEvents(readable, writable, stop bool) {
	var w uint32
	if readable {
		w |= up
	}
	if writable {
		w |= down
	}
	if stop {
		w |= stopped
	}
	f.wake(w)
}

// mark notes what the flow is woken for and says whether it has to be queued.
func (f *Flow) mark(w uint32) bool { return f.state.Or(w|running)&running == 0 }

// wake has the flow run for what w says. It does not block.
func (f *Flow) wake(w uint32) {
	if f.mark(w) {
		f.loop.ready.push(f)
	}
}

// Cancel breaks the flow, unless it has ended; its owner is told of cause. It does
// not block.
func (f *Flow) Cancel(cause error) {
	f.cause.CompareAndSwap(nil, &cause)
	f.wake(stopped)
}

// budget of one direction before another flow has its turn: about what a core
// copies in a tenth of a millisecond.
const budget = 256 << 10

// turn does what can be done for f. It says whether f has to be queued again.
func (w *worker) turn(f *Flow) bool {
	// What comes from here on is seen by the next turn.
	what := f.state.And(running) &^ running
	w.moved = 0
	more := w.step(f, what)
	f.bulk = w.moved > sparse
	if f.ended {
		return false // still marked as running: nobody runs it again
	}
	if more != 0 {
		f.state.Or(more)
		return true
	}
	return !f.state.CompareAndSwap(running, 0)
}

// step does what can be done, and returns what is left when the budget is used
// up.
func (w *worker) step(f *Flow, what uint32) (more uint32) {
	if what&stopped != 0 {
		err := context.Canceled
		if cause := f.cause.Load(); cause != nil {
			err = *cause
		}
		if f.sockets != nil {
			f.failSockets(Canceled, err)
		} else {
			f.fail(Canceled, err)
		}
		return 0
	}
	if f.sockets != nil {
		return w.stepSockets(f, what)
	}
	if what&hangup != 0 {
		f.eof = true
	}
	switch {
	case what&up == 0:
	case !f.upDone:
		more |= w.stepUp(f)
	case !f.downDone:
		w.checkClient(f)
	}
	if what&hangup != 0 && f.downDone && !f.ended {
		f.checkUpstream()
	}
	if what&down != 0 && !f.downDone && !f.ended {
		more |= w.stepDown(f)
	}
	if f.upDone && f.downDone && !f.ended {
		f.over(EOF, nil, func() {
			f.client.Close()
			syscall.Close(int(f.fd))
		})
	}
	return more
}

// stepUp moves what the client has sent.
func (w *worker) stepUp(f *Flow) (more uint32) {
	w.flow = f
	for sent := 0; sent < budget; {
		f.side = nil
		n, err := f.client.Forward(w.writev)
		f.n.Up.Add(int64(n))
		sent += n
		w.moved += n
		switch {
		case err == nil:
		case err == again:
			return 0
		case f.side != nil:
			err := os.NewSyscallError("write", f.side)
			// Whoever does not want to hear more may have said why. That
			// nothing is left to read is an end in order only if it is what
			// the write has met: a reset that it has told of is not told
			// again.
			f.eof = f.side == syscall.EPIPE
			f.leaveDown() // it would have to wait, and cannot
			for !f.downDone && !f.ended && w.stepDown(f) != 0 {
			}
			f.fail(Upstream, err)
			return 0
		case err == io.EOF:
			f.upDone = true
			f.n.OneWay.Store(true)
			// If the upstream has gone already, its own direction says so.
			_ = syscall.Shutdown(int(f.fd), syscall.SHUT_WR)
			return 0
		default:
			f.fail(Client, err)
			return 0
		}
	}
	return up
}

// stepDown moves what the upstream has sent.
func (w *worker) stepDown(f *Flow) (more uint32) {
	w.flow = f
	for got := 0; got < budget; {
		queued, err := queuedBytes(f.fd)
		if err != nil {
			f.fail(Upstream, os.NewSyscallError("read", err))
			return 0
		}
		if queued == 0 {
			f.atEnd()
			return 0
		}
		most := min(queued, budget)
		if f.downShare != nil {
			if most = f.downShare.Take(most); most == 0 {
				return 0 // it is woken when it may go on
			}
		}
		f.side = nil
		n, err := f.client.Fill(most, w.readFull)
		if f.downShare != nil && n < most {
			f.downShare.Return(most - n)
		}
		f.n.Down.Add(int64(n))
		got += n
		w.moved += n
		switch {
		case err == nil:
		case err == again:
			return 0
		case f.side != nil:
			f.fail(Upstream, os.NewSyscallError("read", f.side))
			return 0
		default:
			f.fail(Client, err)
			return 0
		}
	}
	return down
}

// atEnd looks whether the upstream has ended, where it has said something that
// may be that: without data, only a read tells.
func (f *Flow) atEnd() {
	if !f.eof {
		return
	}
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(f.fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	switch {
	case err == again || err == syscall.EINTR || n > 0:
		// More is to come, and is told.
	case err != nil:
		f.fail(Upstream, os.NewSyscallError("read", err))
	default:
		f.downDone = true
		f.n.OneWay.Store(true)
		_ = f.client.CloseWrite()
	}
}

// checkClient looks whether a client that has said all has broken since.
func (w *worker) checkClient(f *Flow) {
	w.flow = f
	if _, err := f.client.Forward(w.writev); err != nil && err != io.EOF && err != again {
		f.fail(Client, err)
	}
}

// checkUpstream does the same for an upstream that has said all.
func (f *Flow) checkUpstream() {
	errno, err := syscall.GetsockoptInt(int(f.fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err == nil && errno != 0 {
		f.fail(Upstream, os.NewSyscallError("read", syscall.Errno(errno)))
	}
}

// worker is what one turn of a flow needs.
type worker struct {
	flow  *Flow // whose turn it is
	moved int   // bytes in this turn, both ways

	failing int // writeFailed runs
	iovs    []syscall.Iovec

	// toUpstream, fromUpstream and the queue's work, bound once: nothing is
	// allocated for a turn.
	writev   func([][]byte) (int, error)
	readFull func([]byte) (int, error)
	work     func()

	next *worker // that is idle
}

func newWorker(q *readyQueue) *worker {
	w := &worker{iovs: make([]syscall.Iovec, 0, 64)}
	w.writev, w.readFull = w.toUpstream, w.fromUpstream
	w.work = func() { q.work(w) }
	return w
}

// toUpstream is Forward's write.
func (w *worker) toUpstream(bufs [][]byte) (int, error) {
	// More than the kernel takes at once (UIO_MAXIOV), or the budget, is for
	// the next time.
	most := budget
	if s := w.flow.upShare; s != nil {
		if most = s.Take(min(sizeOf(bufs), budget)); most == 0 {
			return 0, again // it is woken when it may go on
		}
		n, err := w.writeUpTo(bufs, most)
		if n < most {
			s.Return(most - n)
		}
		return n, err
	}
	return w.writeUpTo(bufs, most)
}

func sizeOf(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// writeUpTo writes to the upstream; if most is less than budget, no more than that.
func (w *worker) writeUpTo(bufs [][]byte, most int) (int, error) {
	w.iovs = w.iovs[:0]
	size := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if most < budget {
			b = b[:min(len(b), most-size)]
		}
		iov := syscall.Iovec{Base: unsafe.SliceData(b)}
		iov.SetLen(len(b))
		w.iovs = append(w.iovs, iov)
		if size += len(b); size >= most || len(w.iovs) == maxIovs {
			break
		}
	}
	defer clear(w.iovs)
	for {
		n, errno := call(syscall.SYS_WRITEV, w.flow.fd, unsafe.Pointer(&w.iovs[0]), len(w.iovs))
		switch errno {
		case 0:
			return n, nil
		case syscall.EINTR:
		case again:
			return 0, again
		default:
			w.flow.side = errno
			return 0, errno
		}
	}
}

// maxIovs is the kernel's UIO_MAXIOV.
const maxIovs = 1024

// fromUpstream is Fill's read: b is not longer than what is queued.
func (w *worker) fromUpstream(b []byte) (int, error) {
	for {
		n, err := call(syscall.SYS_READ, w.flow.fd, unsafe.Pointer(unsafe.SliceData(b)), len(b))
		switch {
		case err == syscall.EINTR:
		case err != 0:
			w.flow.side = err
			return 0, err
		case n < len(b): // cannot be: nobody else reads
			w.flow.side = io.ErrUnexpectedEOF
			return n, io.ErrUnexpectedEOF
		default:
			return n, nil
		}
	}
}

// queuedBytes is SIOCINQ (tcp(7)): what can be read at once, in bytes.
func queuedBytes(fd int32) (int, error) {
	var n int32
	_, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// call is a system call that does not block, for n of what p points at; a fourth
// argument is 0. It returns -1 where errno is not 0.
//
// The scheduler is not told. From a call of more than 20 µs, as one is that carries
// a packet all the way to its reader, it would take the processor, and for as long as
// it finds such calls it looks for them every 20 µs: a ninth of our CPU time at
// 20,000 requests a second. For this long nothing else needs the processor.
func call(trap uintptr, fd int32, p unsafe.Pointer, n int) (int, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(trap, uintptr(fd), uintptr(p), uintptr(n), 0, 0, 0)
	return int(r), errno
}

// fail breaks the flow.
func (f *Flow) fail(side End, err error) {
	if f.ended {
		return
	}
	f.over(side, err, func() {
		f.client.Reset()
		_ = syscall.SetsockoptLinger(int(f.fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
		syscall.Close(int(f.fd))
	})
}

// leaveDown has what comes down go as fast as it can.
func (f *Flow) leaveDown() {
	if f.downShare != nil {
		f.downShare.Leave()
		f.downShare = nil
	}
}

// over takes the flow out of the Loop, closes its connections and tells its owner.
// The socket is still open when its number is forgotten: it is not another's.
func (f *Flow) over(end End, err error, closeBoth func()) {
	f.ended = true
	if f.upShare != nil {
		f.upShare.Leave()
	}
	f.leaveDown()
	f.loop.forget(f)
	closeBoth()
	if s := f.sockets; s != nil {
		s.up.release(&f.loop.pipes)
		s.down.release(&f.loop.pipes)
	}
	f.owner.Ended(end, err)
	f.loop.ended.push(f)
}
