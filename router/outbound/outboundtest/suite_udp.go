package outboundtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

func (s suite) udp(t *testing.T) {
	if s.NoUDP {
		d, ok := s.dialer(t).(outbound.PacketDialer)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if conn, err := d.OpenUDP(ctx); !errors.Is(err, outbound.ErrNoUDP) {
			t.Errorf("OpenUDP: %v, %v, want an ErrNoUDP", conn, err)
		}
		return
	}
	for _, s.rows = range []bool{false, true} {
		t.Run(map[bool]string{false: "one by one", true: "in rows"}[s.rows], func(t *testing.T) {
			t.Run("two remotes", s.udpTwoRemotes)
			t.Run("a name", s.udpName)
			t.Run("sizes", s.udpSizes)
			t.Run("a stranger", s.udpStranger)
			t.Run("close", s.udpClose)
		})
	}
}

// rowConn is a PacketConn whose datagrams are queued and read in batches.
type rowConn struct {
	outbound.PacketConn
	queue outbound.Queuer
	read  func([]byte) (int, netip.AddrPort, error)
}

func inRows(c outbound.PacketConn) outbound.PacketConn {
	return rowConn{c, outbound.Queue(c), ReadBatches(c)}
}

func (c rowConn) WriteTo(p []byte, t flow.Target) error {
	err := c.queue.Queue(p, t)
	c.queue.Flush()
	return err
}

func (c rowConn) ReadFrom(b []byte) (int, netip.AddrPort, error) { return c.read(b) }

// ReadBatches returns a ReadFrom that reads batches and gives their datagrams one
// by one.
func ReadBatches(c outbound.PacketConn) func(b []byte) (int, netip.AddrPort, error) {
	batches := outbound.Batches(c)
	var waiting []datagram
	return func(b []byte) (int, netip.AddrPort, error) {
		for len(waiting) == 0 {
			err := batches.ReadBatch(func(payloads [][]byte, from []netip.AddrPort) {
				for i, p := range payloads {
					waiting = append(waiting, datagram{bytes.Clone(p), from[i]})
				}
			})
			if err != nil {
				return 0, netip.AddrPort{}, err
			}
		}
		d := waiting[0]
		waiting = waiting[1:]
		return copy(b, d.payload), d.from, nil
	}
}

// conversation is an open PacketConn and a reader for it.
type conversation struct {
	outbound.PacketConn
	got chan datagram
	err chan error // what ended the reader
}

type datagram struct {
	payload []byte
	from    netip.AddrPort
}

// converse opens a conversation that ends with the test.
func (s suite) converse(t *testing.T) *conversation {
	t.Helper()
	d := s.dialer(t).(outbound.PacketDialer)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := d.OpenUDP(ctx)
	if err != nil {
		t.Fatalf("OpenUDP: %v", err)
	}
	if s.rows {
		conn = inRows(conn)
	}
	c := &conversation{conn, make(chan datagram, 16), make(chan error, 1)}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				c.err <- err
				return
			}
			c.got <- datagram{bytes.Clone(buf[:n]), from}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		c.ended(t)
	})
	return c
}

// ended waits for the reader and returns what ended it; a second call returns
// the same.
func (c *conversation) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.err:
		c.err <- err
		return err
	case <-time.After(patience):
		t.Fatal("ReadFrom did not end with Close")
		return nil
	}
}

// send prepares target and sends to it.
func (c *conversation) send(t *testing.T, target flow.Target, payload []byte) {
	t.Helper()
	prepared, err := c.Prepare(t.Context(), target)
	if err != nil {
		t.Fatalf("Prepare %v: %v", target, err)
	}
	if err := c.WriteTo(payload, prepared); err != nil {
		t.Fatalf("WriteTo %v, %d bytes: %v", prepared, len(payload), err)
	}
}

func (c *conversation) receive(t *testing.T) datagram {
	t.Helper()
	select {
	case d := <-c.got:
		return d
	case <-time.After(patience):
		t.Fatal("no answer")
		return datagram{}
	}
}

func echoUDP(conn *net.UDPConn, from netip.AddrPort, payload []byte) {
	conn.WriteToUDPAddrPort(payload, from)
}

// Two remotes answer one conversation, each as itself, and both see it come
// from the same address.
func (s suite) udpTwoRemotes(t *testing.T) {
	c := s.converse(t)
	sawFrom := func(conn *net.UDPConn, from netip.AddrPort, payload []byte) {
		conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%s from %v", payload, from), from)
	}
	one, two := ServeUDP(t, loopback4, sawFrom), ServeUDP(t, loopback4, sawFrom)
	var said [2]string
	for i, remote := range []netip.AddrPort{one, two} {
		c.send(t, flow.AddrTarget(remote), []byte("hello"))
		d := c.receive(t)
		if d.from != remote {
			t.Errorf("the answer of %v came from %v", remote, d.from)
		}
		said[i] = string(d.payload)
	}
	if said[0] != said[1] {
		t.Errorf("one remote said %q, the other %q", said[0], said[1])
	}
	c.send(t, flow.AddrTarget(one), []byte("hello"))
	if d := c.receive(t); d.from != one || string(d.payload) != said[0] {
		t.Errorf("later %v said %q, want %q of %v", d.from, d.payload, said[0], one)
	}
}

// What Prepare makes of a name is the outbound's affair; the answer comes.
func (s suite) udpName(t *testing.T) {
	c := s.converse(t)
	remote := ServeUDP(t, loopback4, echoUDP)
	c.send(t, flow.Target{Name: "localhost", Port: remote.Port()}, []byte("hello"))
	if d := c.receive(t); string(d.payload) != "hello" || d.from.Port() != remote.Port() {
		t.Errorf("got %q from %v, want the echo from port %d", d.payload, d.from, remote.Port())
	}
}

func (s suite) udpSizes(t *testing.T) {
	c := s.converse(t)
	remote := ServeUDP(t, loopback4, echoUDP)
	for _, size := range []int{1, 0, 1472, 1473, 9000, s.MaxUDP} {
		payload := bytes.Repeat([]byte{byte(size)}, size)
		c.send(t, flow.AddrTarget(remote), payload)
		if d := c.receive(t); !bytes.Equal(d.payload, payload) || d.from != remote {
			t.Errorf("%d bytes came back as %d bytes from %v, want them from %v", size, len(d.payload), d.from, remote)
		}
	}
	prepared, err := c.Prepare(t.Context(), flow.AddrTarget(remote))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteTo(make([]byte, 1<<16), prepared); err == nil {
		t.Error("WriteTo took 64 KiB, which no datagram holds")
	}
}

// Any remote may answer: one that learns of the conversation from another.
func (s suite) udpStranger(t *testing.T) {
	if s.NoStrangers {
		t.Skip("not let in by this server")
	}
	c := s.converse(t)
	stranger, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	remote := ServeUDP(t, loopback4, func(_ *net.UDPConn, from netip.AddrPort, payload []byte) {
		stranger.WriteToUDPAddrPort(payload, from)
	})
	c.send(t, flow.AddrTarget(remote), []byte("hello"))
	want := stranger.LocalAddr().(*net.UDPAddr).AddrPort()
	if d := c.receive(t); d.from != want {
		t.Errorf("the stranger's datagram came from %v, want %v", d.from, want)
	}
}

// Close ends a ReadFrom that waits, and all that comes after.
func (s suite) udpClose(t *testing.T) {
	c := s.converse(t)
	remote := flow.AddrTarget(ServeUDP(t, loopback4, echoUDP))
	c.send(t, remote, []byte("hello"))
	c.receive(t)
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := c.ended(t); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadFrom returned %v after Close, want net.ErrClosed", err)
	}
	if _, _, err := c.ReadFrom(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("another ReadFrom returned %v, want net.ErrClosed", err)
	}
	if s.rows {
		return // Queue need not tell
	}
	if err := c.WriteTo([]byte("hello"), remote); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WriteTo returned %v after Close, want net.ErrClosed", err)
	}
}
