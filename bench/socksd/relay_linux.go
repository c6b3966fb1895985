package socksd

import (
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is what the kernel lets a pipe hold unless it was told otherwise
// (fs.pipe-max-size).
const pipeSize = 1 << 20

// relay copies in both directions until both have ended. The end of one
// direction is passed on, an error ends both.
func (s *Server) relay(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	for _, d := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		wg.Go(func() {
			if err := s.move(d[0], d[1]); err != nil {
				// As RST, so that nobody takes it for the end of the stream.
				a.SetLinger(0)
				b.SetLinger(0)
				a.Close()
				b.Close()
				return
			}
			d[1].CloseWrite()
		})
	}
	wg.Wait()
}

// move moves bytes from src to dst until src ends. io.Copy would do, but it
// keeps a pipe while it waits: six files for a connection instead of two, and
// some routers are measured with thousands of them.
func (s *Server) move(src, dst *net.TCPConn) error {
	from, err := src.SyscallConn()
	if err != nil {
		return err
	}
	to, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	var p *pipe // while there is something to move
	var n int64 // bytes in it
	var failed error
	read := func(fd uintptr) bool {
		for {
			if p == nil {
				if p, failed = s.pipes.get(); failed != nil {
					return true
				}
			}
			n, failed = unix.Splice(int(fd), nil, p.w, nil, pipeSize, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			switch failed {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				s.pipes.put(p)
				p = nil
				return false
			}
			return true
		}
	}
	write := func(fd uintptr) bool {
		for n > 0 {
			var k int64
			k, failed = unix.Splice(p.r, nil, int(fd), nil, int(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			switch failed {
			case nil:
				n -= k
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
		return true
	}
	// A pipe with bytes in it is of no use to another connection.
	defer func() {
		if p != nil && n > 0 {
			p.close()
		} else if p != nil {
			s.pipes.put(p)
		}
	}()
	for {
		if err := from.Read(read); err != nil {
			return err
		}
		if failed != nil || n == 0 {
			n = max(n, 0)
			return os.NewSyscallError("splice", failed)
		}
		if err := to.Write(write); err != nil {
			return err
		}
		if failed != nil {
			return os.NewSyscallError("splice", failed)
		}
	}
}

// pipe is what splice needs between two sockets.
type pipe struct{ r, w int }

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pipes are those that nobody uses.
type pipes struct {
	mu   sync.Mutex
	free []*pipe // guarded by mu
}

func (l *pipes) get() (*pipe, error) {
	l.mu.Lock()
	if n := len(l.free); n > 0 {
		p := l.free[n-1]
		l.free = l.free[:n-1]
		l.mu.Unlock()
		return p, nil
	}
	l.mu.Unlock()
	var fds [2]int
	if err := syscall.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// Without it there is a smaller pipe.
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{fds[0], fds[1]}, nil
}

// put keeps a pipe, or closes it where there are many.
func (l *pipes) put(p *pipe) {
	l.mu.Lock()
	keep := len(l.free) < 256
	if keep {
		l.free = append(l.free, p)
	}
	l.mu.Unlock()
	if !keep {
		p.close()
	}
}

// close closes the pipes that nobody uses.
func (l *pipes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.free {
		p.close()
	}
	l.free = nil
}
