package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
)

// buffers returns n buffers with room for packets of the given size, and their
// sizes.
func buffers(n, size int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, Headroom+size)
	}
	return bufs, make([]int, n)
}

// packet returns a buffer that holds payload behind the headroom.
func packet(payload ...byte) []byte {
	return append(make([]byte, Headroom), payload...)
}

func TestPipeCarriesPacketsBothWays(t *testing.T) {
	a, b := Pipe(1500)
	defer a.Close()
	for _, dir := range []struct{ from, to Device }{{a, b}, {b, a}} {
		sent := [][]byte{packet(1), packet(2, 2), packet(bytes.Repeat([]byte{3}, 1500)...)}
		if n, err := dir.from.Write(sent, Headroom); n != 3 || err != nil {
			t.Fatalf("%s: Write = %d, %v", dir.from.Name(), n, err)
		}
		bufs, sizes := buffers(2, 1500)
		var got [][]byte
		for len(got) < len(sent) {
			n, err := dir.to.Read(bufs, sizes, Headroom)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				got = append(got, bytes.Clone(bufs[i][Headroom:Headroom+sizes[i]]))
			}
		}
		for i := range sent {
			if !bytes.Equal(got[i], sent[i][Headroom:]) {
				t.Errorf("%s: packet %d is %d bytes, want %d", dir.to.Name(), i, len(got[i]), len(sent[i])-Headroom)
			}
		}
	}
}

func TestPipeRefusesBadPackets(t *testing.T) {
	for _, tt := range []struct {
		name string
		bad  []byte
		want error
	}{
		{"empty", packet(), syscall.EINVAL},
		{"shorter than offset", make([]byte, 3), syscall.EINVAL},
		{"longer than mtu", packet(make([]byte, 1281)...), syscall.EMSGSIZE},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := Pipe(1280)
			defer a.Close()
			n, err := a.Write([][]byte{packet(1), tt.bad, packet(2)}, Headroom)
			if n != 1 || !errors.Is(err, tt.want) {
				t.Errorf("Write = %d, %v, want 1, %v", n, err, tt.want)
			}
			bufs, sizes := buffers(4, 1280)
			if n, err := b.Read(bufs, sizes, Headroom); n != 1 || err != nil {
				t.Errorf("Read = %d, %v, want the packet before the bad one", n, err)
			}
		})
	}
}

func TestPipeReadWantsRoomForThePacket(t *testing.T) {
	a, b := Pipe(1500)
	defer a.Close()
	if _, err := a.Write([][]byte{packet(1, 2, 3)}, Headroom); err != nil {
		t.Fatal(err)
	}
	bufs, sizes := buffers(1, 2)
	if _, err := b.Read(bufs, sizes, Headroom); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("Read into a short buffer = %v, want %v", err, io.ErrShortBuffer)
	}
}

func TestPipeBlocksWhenFullAndDropsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 3*pipeSlots + 7
		a, b := Pipe(1500)
		written := 0
		go func() {
			for i := range total {
				p := packet(0, 0, 0, 0)
				binary.BigEndian.PutUint32(p[Headroom:], uint32(i))
				if _, err := a.Write([][]byte{p}, Headroom); err != nil {
					t.Error(err)
				}
				written++
			}
		}()
		synctest.Wait() // the writer is blocked for good
		if written != pipeSlots {
			t.Fatalf("%d packets written while nobody reads, want %d", written, pipeSlots)
		}
		bufs, sizes := buffers(5, 1500)
		for next := 0; next < total; {
			n, err := b.Read(bufs, sizes, Headroom)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if got := binary.BigEndian.Uint32(bufs[i][Headroom:]); int(got) != next {
					t.Fatalf("packet %d came in place of %d", got, next)
				}
				next++
			}
		}
		a.Close()
	})
}

func TestPipeCloseOfEitherEndEndsBoth(t *testing.T) {
	for name, closer := range map[string]func(a, b Device) Device{
		"reader": func(_, b Device) Device { return b },
		"writer": func(a, _ Device) Device { return a },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := Pipe(1500)
				bufs, sizes := buffers(1, 1500)
				errs := make(chan error, 2)
				go func() { // full: blocks
					for {
						if _, err := a.Write([][]byte{packet(1)}, Headroom); err != nil {
							errs <- err
							return
						}
					}
				}()
				go func() { // empty: blocks
					_, err := a.Read(bufs, sizes, Headroom)
					errs <- err
				}()
				synctest.Wait()
				closer(a, b).Close()
				for range 2 {
					if err := <-errs; !errors.Is(err, os.ErrClosed) {
						t.Errorf("blocked call returned %v, want %v", err, os.ErrClosed)
					}
				}
				for _, d := range []Device{a, b} {
					if _, err := d.Write([][]byte{packet(1)}, Headroom); !errors.Is(err, os.ErrClosed) {
						t.Errorf("%s: Write after Close = %v", d.Name(), err)
					}
					if _, err := d.Read(bufs, sizes, Headroom); !errors.Is(err, os.ErrClosed) {
						t.Errorf("%s: Read after Close = %v", d.Name(), err)
					}
					if err := d.Close(); err != nil {
						t.Errorf("%s: second Close = %v", d.Name(), err)
					}
				}
			})
		})
	}
}

// Every packet arrives exactly once, whoever reads and writes at the same time.
func TestPipeConcurrentReadersAndWriters(t *testing.T) {
	const writers, readers, each = 3, 3, 2000
	a, b := Pipe(1500)
	var mu sync.Mutex
	seen := make(map[uint32]int)
	done := make(chan struct{})

	var reading, writing sync.WaitGroup
	for range readers {
		reading.Go(func() {
			bufs, sizes := buffers(1, 1500) // one buffer: readers must wake one another
			for {
				n, err := b.Read(bufs, sizes, Headroom)
				if err != nil {
					return
				}
				mu.Lock()
				for i := range n {
					seen[binary.BigEndian.Uint32(bufs[i][Headroom:])]++
				}
				if len(seen) == writers*each {
					close(done)
				}
				mu.Unlock()
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			for i := 0; i < each; i += 4 {
				var batch [][]byte
				for k := range 4 {
					p := packet(0, 0, 0, 0)
					binary.BigEndian.PutUint32(p[Headroom:], uint32(w*each+i+k))
					batch = append(batch, p)
				}
				if n, err := a.Write(batch, Headroom); n != 4 || err != nil {
					t.Errorf("Write = %d, %v", n, err)
				}
			}
		})
	}
	writing.Wait()
	<-done
	a.Close()
	reading.Wait()
	for id, n := range seen {
		if n != 1 {
			t.Errorf("packet %d arrived %d times", id, n)
		}
	}
}

func TestPipeDoesNotAllocate(t *testing.T) {
	a, b := Pipe(1500)
	defer a.Close()
	out := make([][]byte, 16)
	for i := range out {
		out[i] = packet(make([]byte, 1400)...)
	}
	bufs, sizes := buffers(16, 1500)
	once := func() {
		if _, err := a.Write(out, Headroom); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Read(bufs, sizes, Headroom); n != 16 || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
	}
	for range pipeSlots {
		once()
	}
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations for a batch, want 0", n)
	}
}

func BenchmarkPipe(b *testing.B) {
	const size = 1500
	near, far := Pipe(size)
	var reading sync.WaitGroup
	reading.Go(func() {
		bufs, sizes := buffers(pipeBatch, size)
		for {
			if _, err := far.Read(bufs, sizes, Headroom); err != nil {
				return
			}
		}
	})
	batch := make([][]byte, 32)
	for i := range batch {
		batch[i] = packet(make([]byte, size)...)
	}
	b.SetBytes(int64(len(batch) * size))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := near.Write(batch, Headroom); err != nil {
			b.Fatal(err)
		}
	}
	near.Close()
	reading.Wait()
}
