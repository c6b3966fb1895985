//go:build !portable

package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
)

// sockets is what a flow between two sockets has instead of a [Stream]. Payload goes
// from one to the other by splice(2), through a pipe that the flow has only while there
// is something in it.
type sockets struct {
	client   int32 // its file descriptor, which is nobody else's
	up, down half
}

// half is one direction.
type half struct {
	pipe    *pipe // nil: there is nothing on the way
	pending int   // bytes in it
}

// RelaySockets does what [Loop.Relay] does, between two sockets.
func (l *Loop) RelaySockets(client, upstream *net.TCPConn, n *Counters, owner Owner) (*Flow, error) {
	c, err := detach(client)
	if err != nil {
		return nil, err
	}
	u, err := detach(upstream)
	if err != nil {
		syscall.Close(c)
		return nil, err
	}
	closeBoth := func() {
		syscall.Close(c)
		syscall.Close(u)
	}
	f := &Flow{loop: l, sockets: &sockets{client: int32(c)}, fd: int32(u), n: n, owner: owner}
	f.state.Store(running) // what wakes it has to wait until all of it is there
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		closeBoth()
		return nil, net.ErrClosed
	}
	l.flows[f.fd], l.flows[f.sockets.client] = f, f
	l.count++
	l.work.Add(1)
	l.mu.Unlock()
	if err := errors.Join(l.watch(c), l.watch(u)); err != nil {
		l.forget(f)
		l.work.Done()
		closeBoth()
		return nil, err
	}
	client.Close()
	upstream.Close()
	f.state.Or(up | down)
	l.ready.push(f)
	return f, nil
}

// events returns what a flow between sockets is woken for.
func (f *Flow) events(fd int32, e uint32) uint32 {
	if f.sockets == nil || fd == f.fd {
		return upstreamEvents(e)
	}
	var w uint32
	if e&syscall.EPOLLIN != 0 {
		w |= up
	}
	if e&syscall.EPOLLOUT != 0 {
		w |= down
	}
	if e&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0 {
		w |= up | down | clientHangup
	}
	return w
}

// stepSockets is step of a flow between sockets.
func (w *worker) stepSockets(f *Flow, what uint32) (more uint32) {
	s := f.sockets
	if what&up != 0 && !f.upDone {
		if w.stepHalf(f, &s.up, Client, Upstream) {
			more |= up
		}
	}
	if what&down != 0 && !f.downDone && !f.ended {
		if w.stepHalf(f, &s.down, Upstream, Client) {
			more |= down
		}
	}
	// Of a direction that has ended, only this tells that its side has broken.
	if what&hangup != 0 && f.downDone && !f.ended {
		f.checkSocket(f.fd, Upstream)
	}
	if what&clientHangup != 0 && f.upDone && !f.ended {
		f.checkSocket(s.client, Client)
	}
	if f.upDone && f.downDone && !f.ended {
		f.over(EOF, nil, func() {
			syscall.Close(int(s.client))
			syscall.Close(int(f.fd))
		})
	}
	return more
}

// ends returns the sockets of a direction, what counts its bytes and where it is noted
// that it has ended.
func (f *Flow) ends(from End) (src, dst int32, count func(int), done *bool) {
	if from == Client {
		return f.sockets.client, f.fd, func(n int) { f.n.Up.Add(int64(n)) }, &f.upDone
	}
	return f.fd, f.sockets.client, func(n int) { f.n.Down.Add(int64(n)) }, &f.downDone
}

// stepHalf moves what one side has sent, and says whether there may be more when the
// budget is used up.
func (w *worker) stepHalf(f *Flow, h *half, from, to End) (more bool) {
	src, dst, count, done := f.ends(from)
	for sent := 0; sent < budget; {
		if h.pending == 0 {
			if h.pipe == nil {
				h.pipe = f.loop.pipes.get()
			}
			if h.pipe == nil {
				return w.copyHalf(f, from, to)
			}
			n, err := splice(src, h.pipe.w, pipeSize)
			switch {
			case err == again:
				h.release(&f.loop.pipes)
				return false
			case err != 0:
				f.failSockets(from, os.NewSyscallError("read", err))
				return false
			case n == 0:
				h.release(&f.loop.pipes)
				*done = true
				f.n.OneWay.Store(true)
				// If it has gone already, its own direction says so.
				_ = syscall.Shutdown(int(dst), syscall.SHUT_WR)
				return false
			}
			h.pending = n
		}
		n, err := splice(h.pipe.r, dst, h.pending)
		if err == again {
			return false
		}
		if err != 0 {
			w.writeFailed(f, from, to, err)
			return false
		}
		h.pending -= n
		count(n)
		sent += n
		w.moved += n
	}
	return true
}

// writeFailed ends a flow whose side to takes no more. It may have said why before it
// went: that is brought to the other side first.
func (w *worker) writeFailed(f *Flow, from, to End, err syscall.Errno) {
	back, done := &f.sockets.down, f.downDone
	if to == Client {
		back, done = &f.sockets.up, f.upDone
	}
	if !done {
		w.failing++
		for w.failing == 1 && !f.ended && w.stepHalf(f, back, to, from) {
		}
		w.failing--
	}
	f.failSockets(to, os.NewSyscallError("write", err))
}

// copyHalf is stepHalf where there is no pipe to be had, for want of files: what is
// looked at is taken out of the one socket when it is in the other.
func (w *worker) copyHalf(f *Flow, from, to End) (more bool) {
	src, dst, count, done := f.ends(from)
	b := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(b)
	for sent := 0; sent < budget; {
		n, _, err := syscall.Recvfrom(int(src), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == again:
			return false
		case err == syscall.EINTR:
			continue
		case err != nil:
			f.failSockets(from, os.NewSyscallError("read", err))
			return false
		case n == 0:
			*done = true
			f.n.OneWay.Store(true)
			_ = syscall.Shutdown(int(dst), syscall.SHUT_WR)
			return false
		}
		n, err = syscall.SendmsgN(int(dst), b[:n], nil, nil, syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL)
		switch {
		case err == again:
			return false
		case err == syscall.EINTR:
			continue
		case err != nil:
			w.writeFailed(f, from, to, err.(syscall.Errno))
			return false
		}
		for left := n; left > 0; {
			got, _, err := syscall.Recvfrom(int(src), b[:left], syscall.MSG_DONTWAIT)
			if err != nil && err != syscall.EINTR {
				f.failSockets(from, os.NewSyscallError("read", err))
				return false
			}
			left -= max(got, 0)
		}
		count(n)
		sent += n
		w.moved += n
	}
	return true
}

func (f *Flow) checkSocket(fd int32, side End) {
	errno, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR)
	if err == nil && errno != 0 {
		f.failSockets(side, os.NewSyscallError("read", syscall.Errno(errno)))
	}
}

// failSockets breaks a flow between sockets.
func (f *Flow) failSockets(side End, err error) {
	if f.ended {
		return
	}
	f.over(side, err, func() {
		for _, fd := range []int32{f.sockets.client, f.fd} {
			_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
			syscall.Close(int(fd))
		}
	})
}

// release gives the pipe back, if there is one: to be used again if it is empty.
func (h *half) release(p *pipePool) {
	if h.pipe == nil {
		return
	}
	if h.pending > 0 {
		h.pipe.close()
	} else {
		p.put(h.pipe)
	}
	h.pipe, h.pending = nil, 0
}

// splice moves up to n bytes without waiting. It returns -1 where errno is not 0.
func splice(from, to int32, n int) (int, syscall.Errno) {
	const move, nonblock = 1, 2
	for {
		r, _, errno := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), move|nonblock)
		if errno != syscall.EINTR {
			return int(r), errno
		}
	}
}

// pipe is a pipe.
type pipe struct{ r, w int32 }

func (p *pipe) close() {
	syscall.Close(int(p.r))
	syscall.Close(int(p.w))
}

// pipeSize is what a pipe is asked to hold: each of its slots of a page takes a piece of
// a packet, however small, and with 16 of them, which is what it has by itself, a
// splice of a fast stream moves some 20 KB.
const pipeSize = 256 << 10

// maxPipes that are kept empty: more flows than there are workers seldom have something
// on the way at a time.
const maxPipes = 64

// pipePool are empty pipes.
type pipePool struct {
	mu    sync.Mutex
	empty []*pipe
}

// get returns an empty pipe, nil where there is none to be had.
func (p *pipePool) get() *pipe {
	p.mu.Lock()
	if last := len(p.empty) - 1; last >= 0 {
		one := p.empty[last]
		p.empty = p.empty[:last]
		p.mu.Unlock()
		return one
	}
	p.mu.Unlock()
	var fds [2]int
	if syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK) != nil {
		return nil
	}
	// Without privilege there is a limit to it (pipe(7)), and then it is smaller.
	_, _, _ = syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fds[1]), syscall.F_SETPIPE_SZ, pipeSize)
	return &pipe{int32(fds[0]), int32(fds[1])}
}

func (p *pipePool) put(one *pipe) {
	p.mu.Lock()
	if len(p.empty) < maxPipes {
		p.empty = append(p.empty, one)
		one = nil
	}
	p.mu.Unlock()
	if one != nil {
		one.close()
	}
}

// close closes the pipes when no flow is left.
func (p *pipePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.empty {
		one.close()
	}
	p.empty = nil
}
