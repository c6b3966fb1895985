package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkPathTCP is TCP: up and down are one stream, an operation being a write
// or a read of the size; echo is a round trip of the size; connect is a
// connection that is opened, used for one byte each way and closed, by so many
// clients at once.
func BenchmarkPathTCP(b *testing.B) {
	ways := ways(b)
	for _, part := range []struct {
		name    string
		measure func(*testing.B, way, int)
		sizes   []int
		format  string
	}{
		{"up", up, []int{1 << 10, 64 << 10}, "size=%d"},
		{"down", down, []int{1 << 10, 64 << 10}, "size=%d"},
		{"echo", roundTrip, []int{64, 16 << 10}, "size=%d"},
		{"connect", connect, []int{1, 64}, "clients=%d"},
	} {
		b.Run(part.name, func(b *testing.B) {
			for _, n := range part.sizes {
				for _, w := range ways {
					b.Run(fmt.Sprintf(part.format, n)+"/way="+w.name, func(b *testing.B) {
						b.ReportAllocs()
						part.measure(b, w, n)
					})
				}
			}
		})
	}
}

// open connects, and has the connection closed with the benchmark.
func open(b *testing.B, w way, s service) conn {
	b.Helper()
	c, err := w.tcp(s)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func up(b *testing.B, w way, size int) {
	c := open(b, w, sink)
	block := make([]byte, size)
	b.SetBytes(int64(size))
	// Not b.Loop: the time until the last byte has arrived belongs to it.
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, block[:1]); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
}

func down(b *testing.B, w way, size int) {
	c := open(b, w, source)
	block := make([]byte, size)
	b.SetBytes(int64(size))
	for b.Loop() {
		if _, err := io.ReadFull(c, block); err != nil {
			b.Fatal(err)
		}
	}
}

func roundTrip(b *testing.B, w way, size int) {
	c := open(b, w, echo)
	block := make([]byte, size)
	b.SetBytes(int64(size))
	for b.Loop() {
		if err := exchange(c, block); err != nil {
			b.Fatal(err)
		}
	}
}

func exchange(c io.ReadWriter, block []byte) error {
	if _, err := c.Write(block); err != nil {
		return err
	}
	_, err := io.ReadFull(c, block)
	return err
}

func connect(b *testing.B, w way, clients int) {
	var left atomic.Int64
	left.Store(int64(b.N))
	errs := make(chan error, clients)
	b.ResetTimer()
	for range clients {
		go func() {
			block := make([]byte, 1)
			for left.Add(-1) >= 0 {
				c, err := w.tcp(echo)
				if err == nil {
					err = exchange(c, block)
					c.Close()
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			b.Error(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
}

// window is how many datagrams are on the way at once: less than any socket on
// it loses.
const window = 32

// BenchmarkPathUDP is datagrams that are sent back: an operation is one there
// and back.
func BenchmarkPathUDP(b *testing.B) {
	ways := ways(b)
	for _, size := range []int{64, 1200} {
		for _, w := range ways {
			b.Run(fmt.Sprintf("size=%d/way=%s", size, w.name), func(b *testing.B) {
				b.ReportAllocs()
				c, err := w.udp()
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				block := make([]byte, size)
				pingPong(b, c, func() []byte { return block }, nil)
			})
		}
	}
}

// pingPong sends b.N datagrams, each of which is answered, with at most window on
// the way at once. check looks at the answers; nil does not.
func pingPong(b *testing.B, c datagrams, next func() []byte, check func([]byte) error) {
	// One that is lost would be waited for: it fails the benchmark.
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		b.Fatal(err)
	}
	answer := make([]byte, 2048)
	receive := func() {
		n, err := c.Read(answer)
		if err == nil && check != nil {
			err = check(answer[:n])
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	send := func() {
		if _, err := c.Write(next()); err != nil {
			b.Fatal(err)
		}
	}
	send() // the way is open
	receive()
	b.ResetTimer()
	for i := range b.N {
		if i >= window {
			receive()
		}
		send()
	}
	for range min(b.N, window) {
		receive()
	}
	b.StopTimer()
}
