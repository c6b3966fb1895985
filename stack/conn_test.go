package stack_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

// pair returns the two ends of a connection.
func pair(t testing.TB, fam family) (*stacktest.Conn, *stack.Conn, *stack.Stack) {
	t.Helper()
	conns := make(chan *stack.Conn, 1)
	host, s := onHost(t, accept(conns, nil))
	client, err := host.DialTCP(within(t), netip.AddrPort{}, fam.server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server := receive(t, "connection", conns)
	t.Cleanup(func() { server.Close() })
	return client, server, s
}

// fill writes n random bytes and returns their hash.
func fill(w io.Writer, n int64) (hash.Hash, error) {
	sum := sha256.New()
	random := rand.NewChaCha8([32]byte{1})
	_, err := io.CopyN(io.MultiWriter(w, sum), random, n)
	return sum, err
}

func TestEcho(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		client, server, _ := pair(t, fam)
		const n = 3 << 20
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := io.Copy(server, server); err != nil {
				t.Errorf("server: %v", err)
			}
			if err := server.CloseWrite(); err != nil {
				t.Errorf("server: %v", err)
			}
		})
		var want hash.Hash
		wg.Go(func() {
			var err error
			if want, err = fill(client, n); err != nil {
				t.Errorf("client: %v", err)
			}
			if err := client.CloseWrite(); err != nil {
				t.Errorf("client: %v", err)
			}
		})
		got := sha256.New()
		if m, err := io.Copy(got, client); m != n || err != nil {
			t.Errorf("client has read %d bytes, %v; want %d", m, err, n)
		}
		wg.Wait()
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Error("the echo is not what was sent")
		}
	})
}

// TestHalfClose: each direction ends alone, and the other goes on.
func TestHalfClose(t *testing.T) {
	fam := families()[0]
	for _, row := range []struct {
		name  string
		first func(client *stacktest.Conn, server *stack.Conn) (closer, other closeWriter)
	}{
		{"client first", func(c *stacktest.Conn, s *stack.Conn) (closeWriter, closeWriter) { return c, s }},
		{"server first", func(c *stacktest.Conn, s *stack.Conn) (closeWriter, closeWriter) { return s, c }},
	} {
		t.Run(row.name, func(t *testing.T) {
			client, server, s := pair(t, fam)
			first, second := row.first(client, server)
			for _, end := range []struct{ from, to closeWriter }{{first, second}, {second, first}} {
				if _, err := end.from.Write([]byte("last words")); err != nil {
					t.Fatal(err)
				}
				if err := end.from.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(end.to); string(b) != "last words" || err != nil {
					t.Fatalf("read %q, %v", b, err)
				}
				if _, err := end.from.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
					t.Errorf("write after CloseWrite: %v, want EPIPE", err)
				}
			}
			client.Close()
			server.Close()
			eventually(t, "nothing is left", func() bool { return s.Endpoints() == 0 && s.Stats().Established == 0 })
		})
	}
}

type closeWriter interface {
	net.Conn
	CloseWrite() error
}

func TestResetReachesClient(t *testing.T) {
	for name, end := range map[string]func(c *stack.Conn){
		"Reset": (*stack.Conn).Reset,
		"Close with data unread": func(c *stack.Conn) {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam family) {
				client, server, s := pair(t, fam)
				if _, err := client.Write([]byte("unread")); err != nil {
					t.Fatal(err)
				}
				end(server)
				if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("client reads %v, want ECONNRESET", err)
				}
				if n := s.Endpoints(); n != 0 {
					t.Errorf("%d endpoints left", n)
				}
			})
		})
	}
}

// TestResetReachesServer: both directions learn of a reset, however often they
// ask and whoever asks first.
func TestResetReachesServer(t *testing.T) {
	read := func(c *stack.Conn) error { _, err := c.Read(make([]byte, 1)); return err }
	write := func(c *stack.Conn) error { _, err := c.Write([]byte("x")); return err }
	for name, order := range map[string][]func(*stack.Conn) error{
		"read first":  {read, read, write, write, read},
		"write first": {write, read, read, write},
	} {
		t.Run(name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, fam family) {
				client, server, s := pair(t, fam)
				client.Reset()
				eventually(t, "the reset has come", func() bool { return s.Endpoints() == 0 })
				for i, op := range order {
					if err := op(server); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("operation %d: %v, want ECONNRESET", i, err)
					}
				}
			})
		})
	}
}

// TestResetWakes: a Read and a Write that wait are told of a reset, both.
func TestResetWakes(t *testing.T) {
	for range 20 { // who asks first is chance
		client, server, _ := pair(t, families()[0])
		errs := make(chan error, 2)
		go func() {
			_, err := server.Read(make([]byte, 1))
			errs <- err
		}()
		go func() {
			_, err := io.Copy(server, zeros{}) // until the buffers are full, then it waits
			errs <- err
		}()
		if _, err := io.ReadFull(client, make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
		client.Reset()
		for range 2 {
			if err := receive(t, "end of Read and Write", errs); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("got %v, want ECONNRESET", err)
			}
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestDataBeforeReset: what the client had sent before can still be read.
func TestDataBeforeReset(t *testing.T) {
	client, server, s := pair(t, families()[0])
	if _, err := client.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	if n, err := server.Read(b[:1]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	client.Reset()
	eventually(t, "the reset has come", func() bool { return s.Endpoints() == 0 })
	if n, err := server.Read(b); string(b[:n]) != "ata" || err != nil {
		t.Errorf("Read: %q, %v", b[:n], err)
	}
	if _, err := server.Read(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read: %v, want ECONNRESET", err)
	}
}

// TestResetBehindFIN: Read has seen the end already, Write is told of the reset
// as Linux tells it in CLOSE-WAIT.
func TestResetBehindFIN(t *testing.T) {
	client, server, s := pair(t, families()[0])
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := server.Read(b); err != io.EOF {
		t.Fatalf("Read: %v, want EOF", err)
	}
	client.Reset()
	eventually(t, "the reset has come", func() bool { return s.Endpoints() == 0 })
	if _, err := server.Write(b); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write: %v, want EPIPE", err)
	}
	if _, err := server.Read(b); err != io.EOF {
		t.Errorf("Read: %v, want EOF still", err)
	}
}

func TestClosed(t *testing.T) {
	_, server, _ := pair(t, families()[0])
	for range 2 {
		if err := server.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	b := make([]byte, 1)
	for name, err := range map[string]error{
		"Read":             second(server.Read(b)),
		"Write":            second(server.Write(b)),
		"CloseWrite":       server.CloseWrite(),
		"SetDeadline":      server.SetDeadline(time.Time{}),
		"SetReadDeadline":  server.SetReadDeadline(time.Now()),
		"SetWriteDeadline": server.SetWriteDeadline(time.Now()),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want net.ErrClosed", name, err)
		}
	}
}

func second(_ int, err error) error { return err }

func TestCloseWakes(t *testing.T) {
	for name, end := range map[string]func(*stack.Conn){"Close": func(c *stack.Conn) { c.Close() }, "Reset": (*stack.Conn).Reset} {
		t.Run(name, func(t *testing.T) {
			client, server, _ := pair(t, families()[0])
			errs := make(chan error, 2)
			go func() {
				_, err := server.Read(make([]byte, 1))
				errs <- err
			}()
			go func() {
				_, err := io.Copy(server, zeros{})
				errs <- err
			}()
			if _, err := io.ReadFull(client, make([]byte, 1<<10)); err != nil {
				t.Fatal(err)
			}
			end(server)
			for range 2 {
				if err := receive(t, "end of Read and Write", errs); !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v, want net.ErrClosed", err)
				}
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	client, server, _ := pair(t, families()[0])
	b := make([]byte, 16)
	isTimeout := func(err error) bool {
		var n net.Error
		return errors.Is(err, os.ErrDeadlineExceeded) && errors.As(err, &n) && n.Timeout()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	// A time that has passed ends everything at once, even with data there.
	_, err := client.Write([]byte("one"))
	must(err)
	must(server.SetDeadline(time.Now().Add(-time.Second)))
	if _, err := server.Read(b); !isTimeout(err) {
		t.Errorf("Read: %v, want a timeout", err)
	}
	if _, err := server.Write(b); !isTimeout(err) {
		t.Errorf("Write: %v, want a timeout", err)
	}

	// No deadline lifts it.
	must(server.SetDeadline(time.Time{}))
	n, err := server.Read(b)
	must(err)
	if string(b[:n]) != "one" {
		t.Errorf("Read: %q", b[:n])
	}

	// One to come ends a Read that waits, and only a Read.
	begin := time.Now()
	must(server.SetReadDeadline(begin.Add(20 * time.Millisecond)))
	if _, err := server.Read(b); !isTimeout(err) || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("Read: %v after %s, want a timeout after 20 ms", err, time.Since(begin))
	}
	_, err = server.Write([]byte("two"))
	must(err)

	// One that is set while a Read waits counts for it; so does one that is
	// moved.
	must(server.SetReadDeadline(time.Now().Add(time.Hour)))
	errs := make(chan error, 1)
	go func() {
		_, err := server.Read(make([]byte, 1))
		errs <- err
	}()
	must(server.SetReadDeadline(time.Now().Add(10 * time.Millisecond)))
	if err := receive(t, "end of Read", errs); !isTimeout(err) {
		t.Errorf("Read: %v, want a timeout", err)
	}

	// The same of a Write that waits because the client does not read.
	must(server.SetWriteDeadline(time.Now().Add(time.Second)))
	if n, err := io.Copy(server, zeros{}); !isTimeout(err) || n == 0 {
		t.Errorf("Write: %d bytes, %v, want a timeout", n, err)
	}
	// The connection is good after all of them.
	must(server.SetDeadline(time.Time{}))
	_, err = client.Write([]byte("three"))
	must(err)
	n, err = server.Read(b)
	must(err)
	if string(b[:n]) != "three" {
		t.Errorf("Read: %q", b[:n])
	}
}

// TestConcurrentUse is for the race detector: everything at once on one
// connection, ended from several sides.
func TestConcurrentUse(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 10 {
		client, server, _ := pair(t, families()[0])
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(io.Discard, server) })
		wg.Go(func() { io.Copy(io.Discard, server) })
		wg.Go(func() { io.Copy(server, zeros{}) })
		wg.Go(func() { io.Copy(client, zeros{}) })
		wg.Go(func() {
			for i := time.Duration(0); ctx.Err() == nil && server.SetDeadline(time.Now().Add(i*time.Microsecond+time.Hour)) == nil; i++ {
			}
		})
		if _, err := io.ReadFull(client, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { server.CloseWrite() })
		wg.Go(func() { server.Close() })
		wg.Go(func() { server.Reset() })
		wg.Go(func() { client.Reset() })
		wg.Wait()
	}
}
