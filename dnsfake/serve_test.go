package dnsfake

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// frame is a message as TCP has it.
func frame(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

// readFrame reads one message.
func readFrame(t *testing.T, r io.Reader) *dns.Msg {
	t.Helper()
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(prefix[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return unpack(t, b)
}

func write(t *testing.T, w io.Writer, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// serve runs ServeTCP on one end of a pipe and returns the other, and what waits
// for its end.
func serve(ctx context.Context, s *Server) (client net.Conn, wait func()) {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ServeTCP(ctx, server)
	}()
	return client, func() { <-done }
}

func TestServeTCPAnswersInPieces(t *testing.T) {
	s := newServer(t, Options{})
	client, wait := serve(t.Context(), s)
	msg := frame(question(t, "www.test.", dns.TypeA))
	for range 2 {
		for i := range msg {
			write(t, client, msg[i:i+1])
		}
		if m := readFrame(t, client); len(m.Answer) != 1 {
			t.Errorf("answer %v", m)
		}
	}
	client.Close()
	wait()
}

// A question that waits for the resolver does not hold up the next one.
func TestServeTCPAnswersOutOfOrder(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, Options{Policy: policy(bySuffix, exchangerFunc(func(_ context.Context, query []byte, network string) ([]byte, error) {
		if network != "tcp" {
			t.Errorf("the resolver is asked by %s", network)
		}
		<-release
		return new(dns.Msg).SetReply(unpack(t, query)).Pack()
	}))})
	client, wait := serve(t.Context(), s)
	write(t, client, frame(question(t, "www.local.test.", dns.TypeA)))
	write(t, client, frame(question(t, "www.test.", dns.TypeA)))
	if m := readFrame(t, client); m.Question[0].Name != "www.test." {
		t.Errorf("first answer %v", m)
	}
	close(release)
	if m := readFrame(t, client); m.Question[0].Name != "www.local.test." || m.Rcode != dns.RcodeSuccess {
		t.Errorf("second answer %v", m)
	}
	client.Close()
	wait()
}

func TestServeTCPBoundsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := newServer(t, Options{Policy: policy(local, exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
			<-release
			return new(dns.Msg).SetReply(unpack(t, query)).Pack()
		}))})
		client, wait := serve(t.Context(), s)
		const more = 8
		go func() {
			for range tcpPipeline + more {
				if _, err := client.Write(frame(question(t, "www.test.", dns.TypeA))); err != nil {
					t.Error(err)
				}
			}
		}()
		synctest.Wait()
		if n := s.Stats().Waiting; n != tcpPipeline {
			t.Errorf("%d questions wait, want %d", n, tcpPipeline)
		}
		close(release)
		for range tcpPipeline + more {
			if m := readFrame(t, client); m.Rcode != dns.RcodeSuccess {
				t.Errorf("answer %v", m)
			}
		}
		client.Close()
		wait()
	})
}

// What was asked before the client closed its direction is still answered.
func TestServeTCPAnswersAfterHalfClose(t *testing.T) {
	half := make(chan struct{})
	s := newServer(t, Options{Policy: policy(local, exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
		<-half
		return new(dns.Msg).SetReply(unpack(t, query)).Pack()
	}))})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.ServeTCP(t.Context(), server) })
	write(t, conn, frame(question(t, "www.test.", dns.TypeA)))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(half)
	if m := readFrame(t, conn); m.Rcode != dns.RcodeSuccess {
		t.Errorf("answer %v", m)
	}
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the answer: %d octets, %v, want EOF", n, err)
	}
	wg.Wait()
}

func TestServeTCPEnds(t *testing.T) {
	wait30 := exchangerFunc(func(ctx context.Context, _ []byte, _ string) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for _, tt := range []struct {
		name  string
		drive func(t *testing.T, client net.Conn, cancel func())
		want  time.Duration // when
	}{
		{"when the client closes", func(_ *testing.T, client net.Conn, _ func()) { client.Close() }, 0},
		{"when the client is silent", func(*testing.T, net.Conn, func()) {}, tcpIdle},
		{"when the client sends too slowly", func(t *testing.T, client net.Conn, _ func()) {
			write(t, client, []byte{0})
			time.Sleep(tcpIdle - 1)
			write(t, client, []byte{9})
		}, tcpIdle},
		{"when the context does", func(_ *testing.T, _ net.Conn, cancel func()) { cancel() }, 0},
		{"when the context does, with a question at the resolver", func(t *testing.T, client net.Conn, cancel func()) {
			write(t, client, frame(question(t, "www.local.test.", dns.TypeA)))
			cancel()
		}, 0},
		{"when the client takes no answer", func(t *testing.T, client net.Conn, _ func()) {
			write(t, client, frame(question(t, "www.test.", dns.TypeA)))
		}, tcpWrite},
		{"when the client takes no answer of the resolver", func(t *testing.T, client net.Conn, _ func()) {
			write(t, client, frame(question(t, "no.fails.test.", dns.TypeTXT)))
		}, tcpWrite},
		{"when the message is too short to answer, after silence", func(t *testing.T, client net.Conn, _ func()) {
			write(t, client, []byte{0, 0, 0, 3, 1, 2, 3})
		}, tcpIdle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, Options{
					Policy: policy(bySuffix, exchangerFunc(func(ctx context.Context, query []byte, network string) ([]byte, error) {
						if strings.HasPrefix(unpack(t, query).Question[0].Name, "no.") {
							return nil, errors.New("no")
						}
						return wait30(ctx, query, network)
					})),
				})
				start := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				client, wait := serve(ctx, s)
				defer client.Close()
				tt.drive(t, client, cancel)
				wait()
				if took := time.Since(start); took != tt.want {
					t.Errorf("ended after %v, want %v", took, tt.want)
				}
				if _, err := client.Read(make([]byte, 1)); err == nil {
					t.Error("the connection is still open")
				}
			})
		})
	}
}

func TestServeOnSockets(t *testing.T) {
	known := zone(t, "www.local.test. 300 IN A 192.0.2.1")
	s := newServer(t, Options{Policy: policy(bySuffix, exchangerFunc(func(ctx context.Context, query []byte, network string) ([]byte, error) {
		if client := ctx.Value(clientKey{}); client != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("by %s it is %v who asks", network, client)
		}
		return known.Exchange(ctx, query, network)
	}))})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, []net.PacketConn{pc}, []net.Listener{l}) }()

	var wg sync.WaitGroup
	for _, tt := range []struct{ network, addr string }{
		{"udp", pc.LocalAddr().String()},
		{"tcp", l.Addr().String()},
	} {
		for range 4 {
			wg.Go(func() {
				client := dns.Client{Net: tt.network, Timeout: time.Minute}
				for _, name := range []string{"www.test.", "www.local.test."} {
					m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), tt.addr)
					if err != nil || len(m.Answer) != 1 {
						t.Errorf("%s by %s: %v, %v", name, tt.network, m, err)
					}
				}
			})
		}
	}
	wg.Wait()

	idle, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := pc.WriteTo([]byte{0}, pc.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the packet socket is open: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

func TestServeWithoutSocketsEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := newServer(t, Options{}).Serve(ctx, nil, nil); err != nil || ctx.Err() == nil {
			t.Errorf("Serve: %v, context %v", err, ctx.Err())
		}
	})
}

// brokenListener fails with one error after the other, and then for good.
type brokenListener struct {
	errs   []error
	closed bool
}

func (l *brokenListener) Accept() (net.Conn, error) {
	err := l.errs[0]
	if len(l.errs) > 1 {
		l.errs = l.errs[1:]
	}
	return nil, err
}
func (l *brokenListener) Close() error   { l.closed = true; return nil }
func (l *brokenListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestServeOutlivesShortages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		l := &brokenListener{errs: []error{
			&net.OpError{Op: "accept", Err: syscall.EMFILE},
			&net.OpError{Op: "accept", Err: syscall.ECONNABORTED},
			broken,
		}}
		start := time.Now()
		err := newServer(t, Options{}).Serve(t.Context(), nil, []net.Listener{l})
		if took := time.Since(start); !errors.Is(err, broken) || took != 2*acceptPause || !l.closed {
			t.Errorf("Serve ended after %v with %v, closed %v", took, err, l.closed)
		}
	})
}

// A client has its share of the connections, and leaves the others theirs.
func TestServeTCPConnectionsAreShared(t *testing.T) {
	s := newServer(t, Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, nil, []net.Listener{l}) }()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	answers := func(conn net.Conn) bool {
		t.Helper()
		_, err := conn.Write(frame(question(t, "www.test.", dns.TypeA)))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 2))
		}
		return err == nil
	}
	idle := make([]net.Conn, tcpConnsEach)
	for i := range idle {
		if idle[i] = dial("127.0.0.2"); !answers(idle[i]) {
			t.Fatalf("connection %d is closed", i)
		}
	}
	if answers(dial("127.0.0.2")) {
		t.Error("one more of the same client is answered")
	}
	if !answers(dial("127.0.0.3")) {
		t.Error("one of another client is not answered")
	}
	idle[0].Close()
	for !answers(dial("127.0.0.2")) { // when its end is noticed
		if t.Context().Err() != nil {
			t.Fatal("none is admitted in the place of one that has ended")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAdmitTCP(t *testing.T) {
	s := newServer(t, Options{})
	var leave []func()
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range tcpConns {
		l, ok := s.AdmitTCP(client(i / tcpConnsEach))
		if !ok {
			t.Fatalf("connection %d is refused", i)
		}
		leave = append(leave, l)
	}
	if _, ok := s.AdmitTCP(client(tcpConns)); ok {
		t.Error("more than there may be of all")
	}
	leave[0]()
	if _, ok := s.AdmitTCP(client(1)); ok {
		t.Error("more than there may be of one client")
	}
	if l, ok := s.AdmitTCP(netip.AddrFrom16(client(0).As16())); !ok {
		t.Error("none in the place of one that has ended")
	} else {
		leave[0] = l
	}
	for _, l := range leave {
		l()
	}
	if s.conns.all != 0 || len(s.conns.of) != 0 {
		t.Errorf("when all have ended: %d, %v", s.conns.all, s.conns.of)
	}
}

// Whoever announces a long message has no memory for it before it comes.
func TestReadMessageTakesWhatComes(t *testing.T) {
	for _, n := range []int{0, 1, 512, tcpRoom, tcpRoom + 1, 20000, 65535} {
		want := bytes.Repeat([]byte{1, 2, 3}, n)[:n]
		got, err := readMessage(bufio.NewReader(iotest.HalfReader(bytes.NewReader(frame(want)))), make([]byte, 100))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d octets: %d, %v", n, len(got), err)
		}
	}
	short := append([]byte{0xff, 0xff}, make([]byte, 100)...)
	r := bufio.NewReaderSize(nil, 512)
	const runs = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		r.Reset(bytes.NewReader(short))
		if _, err := readMessage(r, nil); err == nil {
			t.Fatal("read more than there is")
		}
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / runs; n > 4*tcpRoom {
		t.Errorf("%d octets are taken for 100", n)
	}
}
