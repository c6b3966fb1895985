//go:build !portable

package relay

import (
	"errors"
	"io"
	"syscall"
	"testing"
)

// TestLoopPassesUrgentData: a byte that telnet servers send as urgent does not
// keep back what follows.
func TestLoopPassesUrgentData(t *testing.T) {
	start := onLoop(t)
	client, upstream, _, done := start(t, t.Context())
	raw, err := upstream.(tcpPeer).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	upstream.Write([]byte("abc"))
	if _, err := io.ReadFull(client, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		err = syscall.Sendto(int(fd), []byte("X"), syscall.MSG_OOB, nil)
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	upstream.Write([]byte("def"))
	upstream.CloseWrite()
	client.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "Xdef" {
		t.Errorf("the client read %q, %v, want all behind the urgent byte and it too", got, err)
	}
	wait(t, done)
}

// TestLoopNoticesAClientThatBreaksHalfClosed: one that has said all, and that the
// upstream has nothing to say to.
func TestLoopNoticesAClientThatBreaksHalfClosed(t *testing.T) {
	start := onLoop(t)
	client, upstream, _, done := start(t, t.Context())
	client.CloseWrite()
	if _, err := upstream.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the upstream read %v, want EOF", err)
	}
	client.Break()
	if r := wait(t, done); r.end != Client || !errors.Is(r.err, syscall.ECONNRESET) {
		t.Errorf("Relay = %v, %v, want client and ECONNRESET", r.end, r.err)
	}
	if _, err := upstream.Write([]byte("x")); err == nil {
		// The first write may still be taken; the RST is on its way.
		if _, err = upstream.Read(make([]byte, 1)); err == nil {
			t.Error("the upstream was not told")
		}
	}
}

// TestLoopPassesTheLastWords of an upstream that does not want to hear more.
func TestLoopPassesTheLastWords(t *testing.T) {
	start := onLoop(t)
	client, upstream, _, done := start(t, t.Context())
	client.Write(make([]byte, 16<<10)) // never read: its close will be a RST
	for len(upstreamQueue(t, upstream.(tcpPeer))) == 0 {
	}
	upstream.Write([]byte("413"))
	got := make([]byte, 3)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "413" {
		t.Fatalf("the client read %q, %v", got, err)
	}
	upstream.(tcpPeer).Close()
	if r := wait(t, done); r.end != Upstream {
		t.Errorf("Relay = %v, %v, want upstream", r.end, r.err)
	}
}

// upstreamQueue returns a byte that waits to be read, without reading it.
func upstreamQueue(t *testing.T, p tcpPeer) []byte {
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	n := 0
	raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	return b[:max(n, 0)]
}

// TestLoopPassesOnAResetThatTheWriteMet: it must not look like an end in order to
// a client that reads what came before.
func TestLoopPassesOnAResetThatTheWriteMet(t *testing.T) {
	start := onLoop(t)
	client, upstream, _, done := start(t, t.Context())
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		client.Write(make([]byte, 64<<20)) // more than all buffers have room for
	}()
	for len(upstreamQueue(t, upstream.(tcpPeer))) == 0 {
	}
	upstream.Write([]byte("the beginning"))
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	upstream.Break()
	if r := wait(t, done); r.end != Upstream || !errors.Is(r.err, syscall.ECONNRESET) {
		t.Errorf("Relay = %v, %v, want upstream and ECONNRESET", r.end, r.err)
	}
	s := client.(*memPeer).s
	s.mu.Lock()
	if s.outEOF {
		t.Error("the client was told of an end in order before the reset")
	}
	s.mu.Unlock()
	<-stuck
}
