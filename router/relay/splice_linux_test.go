//go:build !portable

package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

// openFiles returns how many file descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestIdleSocketsHaveNoPipe: a flow between sockets has a pipe while something is on the
// way in it, and none when it is idle; none is left when the loop has ended.
func TestIdleSocketsHaveNoPipe(t *testing.T) {
	before := openFiles(t)
	t.Run("flows", func(t *testing.T) {
		start := betweenSockets(t)
		const flows = 50
		var clients []peer
		for range flows {
			client, upstream, _, _ := start(t, t.Context())
			client.Write([]byte("ping"))
			if _, err := io.ReadFull(upstream, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, client)
		}
		// Two sockets each of the flow and two of the test, and few pipes.
		if n := openFiles(t) - before; n > 4*flows+20 {
			t.Errorf("%d files for %d idle flows", n, flows)
		}
		for _, c := range clients {
			c.Break()
		}
	})
	deadline := time.Now().Add(time.Minute)
	for openFiles(t) > before && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if n := openFiles(t); n > before {
		t.Errorf("%d files, %d before", n, before)
	}
}

// TestSocketsWithoutPipes: where no file can be had for a pipe, everything arrives all
// the same.
func TestSocketsWithoutPipes(t *testing.T) {
	start := betweenSockets(t)
	client, upstream, n, done := start(t, context.Background())
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 3 // below what is open: no new ones
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	const size = 8 << 20
	sent := make([]byte, size)
	rand.Read(sent)
	go func() {
		client.Write(sent)
		client.CloseWrite()
	}()
	got, err := io.ReadAll(upstream)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d arrived, or others: %v", len(got), size, err)
	}
	upstream.Write([]byte("bye"))
	upstream.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "bye" {
		t.Errorf("got %q, %v", got, err)
	}
	if r := wait(t, done); r.end != EOF || n.Up.Load() != size || n.Down.Load() != 3 {
		t.Errorf("ended with %v, %v, up %d, down %d", r.end, r.err, n.Up.Load(), n.Down.Load())
	}
}

// TestSocketsHoldUpTheFasterSide: a client that never reads stops its upstream, and the
// flow can be canceled all the same.
func TestSocketsHoldUpTheFasterSide(t *testing.T) {
	start := betweenSockets(t)
	ctx, cancel := context.WithCancel(context.Background())
	_, upstream, n, done := start(t, ctx)
	up := upstream.(tcpPeer)
	up.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	total := 0
	for b := make([]byte, 1<<20); ; {
		m, err := up.Write(b)
		total += m
		if err != nil {
			if !os.IsTimeout(err) {
				t.Fatal(err)
			}
			break
		}
		if total > 256<<20 {
			t.Fatal("nothing holds up the upstream")
		}
	}
	if n.Down.Load() > int64(total) {
		t.Errorf("%d bytes down, of %d", n.Down.Load(), total)
	}
	cancel()
	if r := wait(t, done); r.end != Canceled {
		t.Errorf("ended with %v, %v", r.end, r.err)
	}
}
