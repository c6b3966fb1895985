package stack_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// BenchmarkLongPath sends one way to and from a client that is 100 ms away; an
// operation is 64 KiB. It starts when the windows have opened.
func BenchmarkLongPath(b *testing.B) {
	const (
		chunk  = 64 << 10
		warmup = 128 << 20
		rtt    = 100 * time.Millisecond
		mtu    = 1500
	)
	for _, up := range []bool{true, false} {
		b.Run(fmt.Sprintf("up=%v", up), func(b *testing.B) {
			host := stacktest.NewHost(mtu)
			b.Cleanup(host.Close)
			served := make(chan struct{})
			start(b, stack.Options{Device: newLongPath(host.Device(), rtt/2), Handler: &handler{tcp: func(_ context.Context, r *stack.TCPRequest) {
				defer close(served)
				c, err := r.Accept()
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				buf := make([]byte, chunk)
				for err == nil {
					if up {
						_, err = c.Read(buf)
					} else {
						_, err = c.Write(buf)
					}
				}
			}}}, nil)
			c, err := host.DialTCP(context.Background(), netip.AddrPort{}, families()[0].server)
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, chunk)
			move := func() {
				if up {
					_, err = c.Write(buf)
				} else {
					_, err = io.ReadFull(c, buf)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			for range warmup / chunk {
				move()
			}
			b.SetBytes(chunk)
			for b.Loop() {
				move()
			}
			b.StopTimer()
			c.Reset()
			<-served
		})
	}
}

// longPath is a device whose packets take their time, each way. It loses and
// reorders none.
type longPath struct {
	stack.Device
	delay time.Duration
	in    chan late
	out   chan late
	end   func()
}

// late is a packet that arrives at a time.
type late struct {
	at     time.Time
	packet []byte
	err    error
}

func newLongPath(d stack.Device, delay time.Duration) *longPath {
	// As many packets as are on the way at 5 Gbit/s.
	const room = 1 << 16
	closed := make(chan struct{})
	p := &longPath{Device: d, delay: delay, in: make(chan late, room), out: make(chan late, room), end: sync.OnceFunc(func() { close(closed) })}
	go func() {
		defer close(p.in)
		bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 1<<16)
		}
		for {
			n, err := d.Read(bufs, sizes, 0)
			at := time.Now().Add(delay)
			for i := range n {
				p.in <- late{at: at, packet: append([]byte(nil), bufs[i][:sizes[i]]...)}
			}
			if err != nil {
				p.in <- late{err: err}
				return
			}
		}
	}()
	go func() {
		for {
			select {
			case l := <-p.out:
				time.Sleep(time.Until(l.at))
				if _, err := d.Write([][]byte{l.packet}, 0); err != nil {
					return
				}
			case <-closed:
				return
			}
		}
	}()
	return p
}

func (p *longPath) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	l, ok := <-p.in
	if !ok || l.err != nil {
		return 0, io.ErrClosedPipe
	}
	time.Sleep(time.Until(l.at))
	n := 0
	for {
		sizes[n] = copy(bufs[n][offset:], l.packet)
		n++
		if n == len(bufs) || len(p.in) == 0 {
			return n, nil
		}
		if l = <-p.in; l.err != nil {
			return n, nil
		}
		time.Sleep(time.Until(l.at))
	}
}

func (p *longPath) Write(bufs [][]byte, offset int) (int, error) {
	at := time.Now().Add(p.delay)
	for i, b := range bufs {
		select {
		case p.out <- late{at: at, packet: append([]byte(nil), b[offset:]...)}:
		default:
			return i, io.ErrShortWrite
		}
	}
	return len(bufs), nil
}

func (p *longPath) Close() error {
	p.end()
	return p.Device.Close()
}
