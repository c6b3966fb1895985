package outboundtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
)

// patience is how long anything in the suite may take that should take no time.
// It decides nothing but when a test that hangs is given up.
const patience = 10 * time.Minute

// Options say what the outbound under test, or a server behind it, is known not
// to do. The zero value is an outbound that does everything.
type Options struct {
	// Refused is what [outbound.Errno] says of a closed port, where that is
	// not ECONNREFUSED: SOCKS4 has one reply for all failures, ssh -D none.
	Refused syscall.Errno
	// NoHalfClose: an answer that comes after our FIN is lost.
	NoHalfClose bool
	// NoIPv6: a target with an IPv6 address is ENETUNREACH.
	NoIPv6 bool
	// NoUDP: OpenUDP is missing, or an ErrNoUDP.
	NoUDP bool
	// NoStrangers: datagrams of a remote that was not sent any do not come
	// through.
	NoStrangers bool
	// NoBind: it is no Binder, or its Bind is an ErrNoBind.
	NoBind bool
	// BindEnds: whoever connects that is not the peer ends a BIND.
	BindEnds bool
	// MaxUDP is the longest payload that comes through; 0 is 65507, what an
	// IPv4 datagram holds.
	MaxUDP int
}

// Env is what the outbound under test may use of the suite.
type Env struct {
	// Resolver knows the name "localhost", at 127.0.0.1. A server that
	// resolves it by itself may take ::1.
	Resolver outbound.Resolver
}

// Run runs the suite. It calls dialer once for each test, in which the outbound
// and all that belongs to it live.
func Run(t *testing.T, o Options, dialer func(t testing.TB, env Env) outbound.Dialer) {
	o.Refused = cmp.Or(o.Refused, syscall.ECONNREFUSED)
	o.MaxUDP = cmp.Or(o.MaxUDP, 65507)
	s := suite{Options: o, dialer: func(t testing.TB) outbound.Dialer {
		t.Helper()
		return dialer(t, Env{Resolver: Names{"localhost": {loopback4}}})
	}}
	t.Run("success", s.success)
	t.Run("refusal", s.refusal)
	t.Run("IPv6", s.ipv6)
	t.Run("cancel", s.cancel)
	t.Run("half-close by the client", s.halfCloseByClient)
	t.Run("half-close by the target", s.halfCloseByTarget)
	t.Run("early data", s.earlyData)
	t.Run("slow reader", s.slowReader)
	t.Run("large transfer", s.largeTransfer)
	t.Run("concurrent use", s.concurrentUse)
	t.Run("UDP", s.udp)
	t.Run("BIND", s.bind)
}

type suite struct {
	Options
	dialer func(testing.TB) outbound.Dialer
	rows   bool // datagrams are queued and read in batches
}

// dial connects d to t and closes the connection at the end of the test.
func dial(t testing.TB, d outbound.Dialer, target flow.Target) outbound.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := d.DialTCP(ctx, target)
	if err != nil {
		t.Fatalf("DialTCP %v: %v", target, err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// echo sends text over conn, to a target that sends it back.
func echo(conn net.Conn, text string) error {
	if _, err := io.WriteString(conn, text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(conn, b); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if string(b) != text {
		return fmt.Errorf("echo of %q is %q", text, b)
	}
	return nil
}

func serveEcho(conn *net.TCPConn) { io.Copy(conn, conn) }

// loopbacks are the addresses that "localhost" may have.
func loopbacks(t testing.TB) []netip.Addr {
	if hasIPv6(t) {
		return []netip.Addr{loopback4, loopback6}
	}
	return []netip.Addr{loopback4}
}

func (s suite) success(t *testing.T) {
	d := s.dialer(t)
	target := serveAll(t, loopbacks(t), serveEcho)
	for _, target := range []flow.Target{
		flow.AddrTarget(target),
		{Name: "localhost", Port: target.Port()},
	} {
		if err := echo(dial(t, d, target), "hello"); err != nil {
			t.Errorf("%v: %v", target, err)
		}
	}
}

// A closed port is an error with the right errno. The connection beside it is
// nil, not a nil pointer in an interface.
func (s suite) refusal(t *testing.T) {
	d := s.dialer(t)
	target := ClosedPort(t, loopback4)
	for _, target := range []flow.Target{
		flow.AddrTarget(target),
		{Name: "localhost", Port: target.Port()},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := d.DialTCP(ctx, target)
		cancel()
		if conn != nil || err == nil {
			t.Fatalf("DialTCP to the closed port %v: %v, %v", target, conn, err)
		}
		if got := outbound.Errno(err); got != s.Refused {
			t.Errorf("Errno of %q is %v, want %v", err, got, s.Refused)
		}
	}
}

func (s suite) ipv6(t *testing.T) {
	needIPv6(t)
	d := s.dialer(t)
	target := flow.AddrTarget(Serve(t, loopback6, serveEcho))
	if !s.NoIPv6 {
		if err := echo(dial(t, d, target), "hello"); err != nil {
			t.Error(err)
		}
		return
	}
	conn, err := d.DialTCP(t.Context(), target)
	if err == nil {
		conn.Close()
		t.Fatalf("DialTCP %v succeeded", target)
	}
	if got := outbound.Errno(err); got != syscall.ENETUNREACH {
		t.Errorf("Errno of %q is %v, want ENETUNREACH", err, got)
	}
}

// A dial that hangs ends with its context, promptly, and leaves nothing open;
// the next one works.
func (s suite) cancel(t *testing.T) {
	d := s.dialer(t)
	target := flow.AddrTarget(Serve(t, loopback4, serveEcho))
	if err := echo(dial(t, d, target), "hello"); err != nil {
		t.Fatal(err)
	}
	before, errFiles := openFiles()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if conn, err := d.DialTCP(ctx, target); err == nil {
		conn.Close()
		t.Error("DialTCP with a context that has ended succeeded")
	}

	full, unblock := FullPort(t)
	var running sync.WaitGroup
	for i := range 8 {
		running.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// Early in the dial or late, wherever it then is.
			after := time.Duration(i) * 15 * time.Millisecond
			var ended time.Time
			var mu sync.Mutex
			timer := time.AfterFunc(after, func() {
				mu.Lock()
				ended = time.Now()
				mu.Unlock()
				cancel()
			})
			defer timer.Stop()
			conn, err := d.DialTCP(ctx, flow.AddrTarget(full))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				conn.Close()
				t.Errorf("DialTCP to a full listener succeeded")
			case ended.IsZero():
				t.Errorf("DialTCP to a full listener ended by itself: %v", err)
			case time.Since(ended) > 5*time.Second:
				t.Errorf("DialTCP returned %v after the end of its context", time.Since(ended))
			}
		})
	}
	running.Wait()
	unblock()

	conn := dial(t, d, target)
	if err := echo(conn, "hello again"); err != nil {
		t.Errorf("after the cancelled dials: %v", err)
	}
	conn.Close()
	if errFiles != nil {
		t.Log(errFiles)
		return
	}
	// A server in this process has its own to close.
	var after int
	if !eventually(func() bool { after, _ = openFiles(); return after <= before }) {
		t.Errorf("%d file descriptors are open, %d were before the cancelled dials", after, before)
	}
}

// eventually says whether ok becomes true.
func eventually(ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return true
		}
	}
	return ok()
}

// The client says all it has to say and ends; the target answers after that.
func (s suite) halfCloseByClient(t *testing.T) {
	if s.NoHalfClose {
		t.Skip("not kept by this server")
	}
	d := s.dialer(t)
	target := Serve(t, loopback4, func(conn *net.TCPConn) {
		b, err := io.ReadAll(conn)
		fmt.Fprintf(conn, "you said %q, %v", b, err)
	})
	conn := dial(t, d, flow.AddrTarget(target))
	io.WriteString(conn, "a question")
	if err := conn.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
	b, err := io.ReadAll(conn)
	if want := `you said "a question", <nil>`; err != nil || string(b) != want {
		t.Errorf("got %q, %v, want %q", b, err, want)
	}
}

// The target says all it has to say and ends; what the client says after that
// arrives.
func (s suite) halfCloseByTarget(t *testing.T) {
	if s.NoHalfClose {
		t.Skip("not kept by this server")
	}
	d := s.dialer(t)
	heard := make(chan string, 1)
	target := Serve(t, loopback4, func(conn *net.TCPConn) {
		io.WriteString(conn, "a speech")
		conn.CloseWrite()
		b, err := io.ReadAll(conn)
		heard <- fmt.Sprintf("%q, %v", b, err)
	})
	conn := dial(t, d, flow.AddrTarget(target))
	if b, err := io.ReadAll(conn); err != nil || string(b) != "a speech" {
		t.Fatalf("got %q, %v, want the speech", b, err)
	}
	io.WriteString(conn, "a comment")
	conn.CloseWrite()
	select {
	case got := <-heard:
		if want := `"a comment", <nil>`; got != want {
			t.Errorf("the target heard %s, want %s", got, want)
		}
	case <-time.After(patience):
		t.Error("the target did not hear the end of what we said")
	}
}

// The target speaks first, and more than one segment.
func (s suite) earlyData(t *testing.T) {
	d := s.dialer(t)
	banner := bytes.Repeat([]byte("220 welcome\r\n"), 10000)
	target := Serve(t, loopback4, func(conn *net.TCPConn) {
		conn.Write(banner)
		serveEcho(conn)
	})
	for range 5 {
		conn := dial(t, d, flow.AddrTarget(target))
		got := make([]byte, len(banner))
		if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, banner) {
			t.Fatalf("%d of %d bytes of the banner came, %v; equal: %v", n, len(banner), err, bytes.Equal(got, banner))
		}
		if err := echo(conn, "hello"); err != nil {
			t.Fatal(err)
		}
	}
}

// A client that does not read stops the target, and gets every byte when it
// does.
func (s suite) slowReader(t *testing.T) {
	d := s.dialer(t)
	// More than all the socket buffers on a way through three servers hold.
	const size = 64 << 20
	stopped := make(chan int, 1) // how many bytes went in before nothing went in any more
	sum := make(chan [32]byte, 1)
	target := Serve(t, loopback4, func(conn *net.TCPConn) {
		src := newSource(size)
		h := sha256.New()
		buf := make([]byte, 64<<10)
		sent := 0
		for {
			n, err := src.Read(buf)
			if err != nil {
				break
			}
			h.Write(buf[:n])
			for b := buf[:n]; len(b) > 0; {
				conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				n, err := conn.Write(b)
				b = b[n:]
				sent += n
				if errors.Is(err, os.ErrDeadlineExceeded) {
					select {
					case stopped <- sent:
					default:
					}
				} else if err != nil {
					return
				}
			}
		}
		select {
		case stopped <- sent: // never stopped: the test says so
		default:
		}
		sum <- [32]byte(h.Sum(nil))
	})
	conn := dial(t, d, flow.AddrTarget(target))
	select {
	case n := <-stopped:
		if n == size {
			t.Errorf("%d bytes were taken from the target while nobody read them", n)
		}
	case <-time.After(patience):
		t.Fatal("the target neither stopped nor finished")
	}
	h := sha256.New()
	if n, err := io.CopyN(h, conn, size); err != nil {
		t.Fatalf("%d of %d bytes came: %v", n, size, err)
	}
	if got, want := [32]byte(h.Sum(nil)), <-sum; got != want {
		t.Errorf("the bytes changed: sha256 %x, want %x", got, want)
	}
}

// newSource returns size bytes that look random.
func newSource(size int64) io.Reader {
	var seed [32]byte
	return io.LimitReader(rand.NewChaCha8(seed), size)
}

// Both directions at once, and every byte.
func (s suite) largeTransfer(t *testing.T) {
	d := s.dialer(t)
	const size = 16 << 20
	heard := make(chan [32]byte, 1)
	target := Serve(t, loopback4, func(conn *net.TCPConn) {
		var send sync.WaitGroup
		defer send.Wait()
		send.Go(func() { io.Copy(conn, newSource(size)) })
		h := sha256.New()
		io.CopyN(h, conn, size)
		heard <- [32]byte(h.Sum(nil))
	})
	conn := dial(t, d, flow.AddrTarget(target))
	var send sync.WaitGroup
	defer send.Wait()
	send.Go(func() { io.Copy(conn, newSource(size)) })

	h := sha256.New()
	n, err := io.CopyN(h, conn, size)
	if err != nil {
		t.Fatalf("%d of %d bytes came: %v", n, size, err)
	}
	whole := sha256.New()
	io.Copy(whole, newSource(size))
	want := [32]byte(whole.Sum(nil))
	if got := [32]byte(h.Sum(nil)); got != want {
		t.Errorf("we got sha256 %x, want %x", got, want)
	}
	select {
	case got := <-heard:
		if got != want {
			t.Errorf("the target got sha256 %x, want %x", got, want)
		}
	case <-time.After(patience):
		t.Error("the target did not get all of it")
	}
}

func (s suite) concurrentUse(t *testing.T) {
	d := s.dialer(t)
	target := Serve(t, loopback4, serveEcho)
	var running sync.WaitGroup
	for i := range 32 {
		running.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, err := d.DialTCP(ctx, flow.AddrTarget(target))
			if err != nil {
				t.Errorf("flow %d: %v", i, err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			if err := echo(conn, strings.Repeat(fmt.Sprint(i), 1000)); err != nil {
				t.Errorf("flow %d: %v", i, err)
			}
		})
	}
	running.Wait()
}
