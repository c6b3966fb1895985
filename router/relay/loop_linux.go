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
	"unsafe"
)

// Loop relays between [Stream]s and sockets. A flow that is idle has neither a
// goroutine nor a buffer; one that has something to do has a goroutine until it
// has not. Payload goes from the client's queue to the socket, and from the
// socket into the client's queue, without a copy between.
//
// One goroutine waits for all sockets, in an epoll set of the Loop's own, which
// itself waits in the poller of the Go runtime.
type Loop struct {
	epoll *os.File
	conn  syscall.RawConn // of epoll

	mu    sync.RWMutex
	flows map[int32]*event // by file descriptor
	work  sync.WaitGroup   // flows, until done has returned
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
	l := &Loop{epoll: os.NewFile(uintptr(fd), "epoll"), flows: make(map[int32]*event)}
	if l.conn, err = l.epoll.SyscallConn(); err != nil {
		l.epoll.Close()
		return nil, err
	}
	return l, nil
}

// Run waits for sockets until ctx ends, then ends all flows, and returns when
// their done functions have.
func (l *Loop) Run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { l.epoll.Close() })
	defer stop()
	events := make([]syscall.EpollEvent, 256)
	n := 0
	wait := func(fd uintptr) bool {
		for {
			var err error
			n, err = syscall.EpollWait(int(fd), events, 0)
			if err != syscall.EINTR {
				return n != 0
			}
		}
	}
	for l.conn.Read(wait) == nil && n > 0 {
		l.mu.RLock()
		for _, e := range events[:n] {
			// A number may be another flow's by now; it is woken in vain.
			if f := l.flows[e.Fd]; f != nil {
				f.wake(upstreamEvents(e.Events))
			}
		}
		l.mu.RUnlock()
	}
	l.epoll.Close()
	l.mu.RLock()
	all := make([]*event, 0, len(l.flows))
	for _, f := range l.flows {
		all = append(all, f)
	}
	l.mu.RUnlock()
	for _, f := range all {
		f.cancel(context.Cause(ctx))
	}
	l.work.Wait()
}

// Relay does what the function Relay does, and returns at once: when the flow
// has ended, done is called, from a goroutine that may take its time. If there
// is an error, nothing was done with the connections.
func (l *Loop) Relay(ctx context.Context, client Stream, upstream *net.TCPConn, n *Counters, done func(End, error)) error {
	raw, err := upstream.SyscallConn()
	if err != nil {
		return err
	}
	f := &event{loop: l, client: client, upstream: upstream, n: n, done: done}
	f.writev, f.readFull = f.toUpstream, f.fromUpstream
	f.state.Store(running) // what wakes it has to wait until all of it is there
	// The socket is nobody else's and is closed by the flow alone: its number
	// stays good.
	if err := raw.Control(func(fd uintptr) {
		f.fd = int32(fd)
		// Else urgent data (RFC 6093) stays in the way: SIOCINQ says 0 at it,
		// whatever is behind.
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_OOBINLINE, 1)
	}); err != nil {
		return err
	}
	l.mu.Lock()
	l.flows[f.fd] = f
	l.mu.Unlock()
	l.work.Add(1)
	cerr := l.conn.Control(func(fd uintptr) {
		err = syscall.EpollCtl(int(fd), syscall.EPOLL_CTL_ADD, int(f.fd), &syscall.EpollEvent{
			Events: syscall.EPOLLIN | syscall.EPOLLOUT | syscall.EPOLLRDHUP | edgeTriggered, Fd: f.fd,
		})
	})
	if err := errors.Join(cerr, err); err != nil {
		l.forget(f)
		l.work.Done()
		return os.NewSyscallError("epoll_ctl", err)
	}
	client.Wake(f.clientEvents)
	f.stop = context.AfterFunc(ctx, func() { f.cancel(context.Cause(ctx)) })
	f.state.Or(up | down)
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		f.cause.Store(&cause)
		f.state.Or(stopped)
	}
	go f.run()
	return nil
}

// Flows returns how many flows there are.
func (l *Loop) Flows() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.flows)
}

func (l *Loop) forget(f *event) {
	l.mu.Lock()
	if l.flows[f.fd] == f {
		delete(l.flows, f.fd)
	}
	l.mu.Unlock()
}

// edgeTriggered is EPOLLET, which syscall has as a negative number.
const edgeTriggered = 1 << 31

// What a flow is woken for, and that it runs.
const (
	up      uint32 = 1 << iota // there may be something to send up, or room for it
	down                       // the same down
	hangup                     // the upstream has said that it has no more, or has broken
	stopped                    // cancel was called
	running                    // a goroutine runs the flow
)

// event is a flow of a Loop. All but the atomic state and the counters belongs to
// the goroutine that runs it.
type event struct {
	loop     *Loop
	client   Stream
	upstream *net.TCPConn
	fd       int32
	n        *Counters
	done     func(End, error)
	stop     func() bool // of the context

	state atomic.Uint32
	cause atomic.Pointer[error] // of cancel

	upDone, downDone bool // the direction has ended in order
	eof              bool // the upstream may have no more: look
	ended            bool

	writev   func([][]byte) (int, error) // toUpstream and fromUpstream, bound once
	readFull func([]byte) (int, error)
	side     error // toUpstream's or fromUpstream's error, to tell the sides apart
	iovs     []syscall.Iovec
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

func (f *event) clientEvents(readable, writable bool) {
	var w uint32
	if readable {
		w |= up
	}
	if writable {
		w |= down
	}
	f.wake(w)
}

// wake has the flow run for what w says. It does not block.
func (f *event) wake(w uint32) {
	if f.state.Or(w|running)&running == 0 {
		go f.run()
	}
}

func (f *event) cancel(cause error) {
	f.cause.Store(&cause)
	f.wake(stopped)
}

// budget of one direction before another flow has its turn: about what a core
// copies in a tenth of a millisecond.
const budget = 256 << 10

func (f *event) run() {
	for {
		// What comes from here on is seen by the next round.
		w := f.state.And(running) &^ running
		if w == 0 {
			if f.state.CompareAndSwap(running, 0) {
				return
			}
			continue
		}
		more := f.step(w)
		if f.ended {
			return // still marked as running: nobody runs it again
		}
		if more != 0 {
			f.state.Or(more)
			runtime.Gosched()
		}
	}
}

// step does what can be done, and returns what is left when the budget is used
// up.
func (f *event) step(w uint32) (more uint32) {
	if w&stopped != 0 {
		f.fail(Canceled, *f.cause.Load())
		return 0
	}
	if w&hangup != 0 {
		f.eof = true
	}
	switch {
	case w&up == 0:
	case !f.upDone:
		more |= f.stepUp()
	case !f.downDone:
		f.checkClient()
	}
	if w&hangup != 0 && f.downDone && !f.ended {
		f.checkUpstream()
	}
	if w&down != 0 && !f.downDone && !f.ended {
		more |= f.stepDown()
	}
	if f.upDone && f.downDone && !f.ended {
		f.end(EOF, nil)
		f.client.Close()
		f.upstream.Close()
		f.finish(EOF, nil)
	}
	return more
}

// stepUp moves what the client has sent.
func (f *event) stepUp() (more uint32) {
	for sent := 0; sent < budget; {
		f.side = nil
		n, err := f.client.Forward(f.writev)
		f.n.Up.Add(int64(n))
		sent += n
		switch {
		case err == nil:
		case err == again:
			return 0
		case f.side != nil:
			err := f.opError("write", f.side)
			// Whoever does not want to hear more may have said why.
			f.eof = true
			for !f.downDone && !f.ended && f.stepDown() != 0 {
			}
			f.fail(Upstream, err)
			return 0
		case err == io.EOF:
			f.upDone = true
			// If the upstream has gone already, its own direction says so.
			_ = f.upstream.CloseWrite()
			return 0
		default:
			f.fail(Client, err)
			return 0
		}
	}
	return up
}

// stepDown moves what the upstream has sent.
func (f *event) stepDown() (more uint32) {
	for got := 0; got < budget; {
		queued, err := queuedBytes(f.fd)
		if err != nil {
			f.fail(Upstream, f.opError("read", err))
			return 0
		}
		if queued == 0 {
			f.atEnd()
			return 0
		}
		f.side = nil
		n, err := f.client.Fill(min(queued, budget), f.readFull)
		f.n.Down.Add(int64(n))
		got += n
		switch {
		case err == nil:
		case err == again:
			return 0
		case f.side != nil:
			f.fail(Upstream, f.opError("read", f.side))
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
func (f *event) atEnd() {
	if !f.eof {
		return
	}
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(f.fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	switch {
	case err == again || err == syscall.EINTR || n > 0:
		// More is to come, and is told.
	case err != nil:
		f.fail(Upstream, f.opError("read", err))
	default:
		f.downDone = true
		_ = f.client.CloseWrite()
	}
}

// checkClient looks whether a client that has said all has broken since.
func (f *event) checkClient() {
	if _, err := f.client.Forward(f.writev); err != nil && err != io.EOF && err != again {
		f.fail(Client, err)
	}
}

// checkUpstream does the same for an upstream that has said all.
func (f *event) checkUpstream() {
	errno, err := syscall.GetsockoptInt(int(f.fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err == nil && errno != 0 {
		f.fail(Upstream, f.opError("read", syscall.Errno(errno)))
	}
}

// toUpstream is Forward's write.
func (f *event) toUpstream(bufs [][]byte) (int, error) {
	// More than the kernel takes at once (UIO_MAXIOV), or the budget, is for
	// the next time.
	f.iovs = f.iovs[:0]
	size := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		iov := syscall.Iovec{Base: unsafe.SliceData(b)}
		iov.SetLen(len(b))
		f.iovs = append(f.iovs, iov)
		if size += len(b); size >= budget || len(f.iovs) == maxIovs {
			break
		}
	}
	for {
		n, _, errno := syscall.Syscall(syscall.SYS_WRITEV, uintptr(f.fd), uintptr(unsafe.Pointer(&f.iovs[0])), uintptr(len(f.iovs)))
		switch errno {
		case 0:
			f.idle()
			return int(n), nil
		case syscall.EINTR:
		case again:
			f.idle()
			return 0, again
		default:
			f.idle()
			f.side = errno
			return 0, errno
		}
	}
}

// maxIovs is the kernel's UIO_MAXIOV.
const maxIovs = 1024

// idle lets go of what toUpstream refers to; a flow that has a few slices at a
// time keeps the room for them.
func (f *event) idle() {
	const keep = 8
	clear(f.iovs)
	if cap(f.iovs) > keep {
		f.iovs = nil
	}
}

// fromUpstream is Fill's read: b is not longer than what is queued.
func (f *event) fromUpstream(b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(f.fd), b)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			f.side = err
			return 0, err
		case n < len(b): // cannot be: nobody else reads
			f.side = io.ErrUnexpectedEOF
			return n, io.ErrUnexpectedEOF
		default:
			return n, nil
		}
	}
}

// queuedBytes is SIOCINQ (tcp(7)): what can be read at once, in bytes.
func queuedBytes(fd int32) (int, error) {
	var n int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// fail breaks the flow.
func (f *event) fail(side End, err error) {
	if f.ended {
		return
	}
	f.end(side, err)
	f.client.Reset()
	Reset(f.upstream)
	f.finish(side, err)
}

// end takes the flow out of the Loop. The socket is still open: its number is
// not another's.
func (f *event) end(End, error) {
	f.ended = true
	f.stop()
	f.loop.forget(f)
}

func (f *event) finish(side End, err error) {
	defer f.loop.work.Done()
	f.done(side, err)
}

func (f *event) opError(op string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: f.upstream.LocalAddr(), Addr: f.upstream.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}
