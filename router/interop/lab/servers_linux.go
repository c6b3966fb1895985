package lab

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Ports of the servers on every target.
const (
	// WebPort: any path is a [Page].
	WebPort = 80
	// EchoPort: TCP and UDP.
	EchoPort = 7
	// AnswerPort: TCP; when the client has said all, it is told how many
	// bytes that were.
	AnswerPort = 9001
	// StreamPort: TCP; the client begins with a line "SEED SIZE", then both
	// sides send SIZE bytes at once and close their half: the client
	// [Stream](SEED+UpSeed, SIZE), the server Stream(SEED, SIZE).
	StreamPort = 9002
	// ShortPort: TCP; the server sends one byte and closes the connection.
	ShortPort = 9003
	// ClosedPort: nobody listens.
	ClosedPort = 9
)

// UpSeed is what StreamPort adds to the seed for what the client sends.
const UpSeed = 1 << 32

// Page is what the web server answers to a request for a host from a client.
func Page(host, from string) string { return fmt.Sprintf("the page of %s for %s\n", host, from) }

// Servers are what srv offers at the targets.
type Servers struct {
	work sync.WaitGroup

	mu       sync.Mutex // guards received
	received map[uint64]chan string
}

// serve starts all servers on a node; they stop when the test ends.
func serve(t testing.TB, n *Node) *Servers {
	s := &Servers{received: make(map[uint64]chan string)}
	t.Cleanup(s.work.Wait) // after the listeners have closed

	any := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Unspecified(), port) }
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, Page(r.Host, from))
	})}
	l := n.Listen(t, any(WebPort))
	s.work.Go(func() { web.Serve(l) })
	t.Cleanup(func() { web.Close() })

	for port, handle := range map[uint16]func(*net.TCPConn){
		EchoPort:   func(c *net.TCPConn) { io.Copy(c, c) },
		AnswerPort: answer,
		StreamPort: s.stream,
		ShortPort:  func(c *net.TCPConn) { c.Write([]byte{'x'}) },
	} {
		s.accept(t, n.Listen(t, any(port)), handle)
	}
	for i := range Targets {
		for _, a := range []netip.Addr{Target4(i + 1), Target6(i + 1)} {
			// A socket for each: an answer comes from where the question went.
			c := n.ListenUDP(t, netip.AddrPortFrom(a, EchoPort))
			s.work.Go(func() { echo(c) })
		}
	}
	return s
}

// accept serves the connections of a listener until it is closed, which closes
// them too.
func (s *Servers) accept(t testing.TB, l net.Listener, handle func(*net.TCPConn)) {
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	s.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			s.work.Go(func() {
				handle(c.(*net.TCPConn))
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			c.Close()
		}
	})
}

func echo(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteToUDPAddrPort(b[:n], from)
		}
	}
}

func answer(c *net.TCPConn) {
	n, err := io.Copy(io.Discard, c)
	if err == nil {
		fmt.Fprintf(c, "%d bytes\n", n)
	}
}

func (s *Servers) stream(c *net.TCPConn) {
	var seed uint64
	var size int64
	in := bufio.NewReaderSize(c, 256<<10)
	line, err := in.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(line, "%d %d\n", &seed, &size)
	}
	if err != nil {
		return
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		if _, err := io.CopyBuffer(onlyWriter{c}, Stream(seed, size), make([]byte, 256<<10)); err == nil {
			c.CloseWrite()
		}
	})
	h := sha256.New()
	_, err = io.CopyBuffer(h, onlyReader{in}, make([]byte, 256<<10))
	sum := hex.EncodeToString(h.Sum(nil))
	if err != nil {
		sum = err.Error()
	}
	select {
	case s.sum(seed) <- sum:
	default: // of a client before, which nobody has asked about
	}
	sending.Wait()
}

// sum is where the sums of what came with a seed are sent.
func (s *Servers) sum(seed uint64) chan string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.received[seed]
	if c == nil {
		c = make(chan string, 1)
		s.received[seed] = c
	}
	return c
}

// Received waits for the end of what a client of StreamPort sends with a seed and
// returns its sum, or why there is none. It is called once for each client.
func (s *Servers) Received(seed uint64) string {
	select {
	case sum := <-s.sum(seed):
		return sum
	case <-time.After(deadline):
		return "the end of it has not come"
	}
}

// Without ReaderFrom and WriterTo, for the sake of the buffer's size.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// Stream returns size bytes that follow from seed and do not repeat.
func Stream(seed uint64, size int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), size)
}

// Sum returns the SHA-256 of a [Stream], in hexadecimal.
func Sum(seed uint64, size int64) string {
	h := sha256.New()
	io.CopyBuffer(h, onlyReader{Stream(seed, size)}, make([]byte, 256<<10))
	return hex.EncodeToString(h.Sum(nil))
}
