package gssapi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// toy is a mechanism that protects nothing and notices everything: a token is two bytes
// of text, a wrapped message its number, whether it is encrypted, and the bytes, each
// added to 1 if so.
type toy struct {
	steps    []string // ours and theirs by turns, beginning with who begins
	initiate bool
	at       int

	mu   sync.Mutex
	sent uint64
	next uint64
}

func (c *toy) Peer() string { return "toy" }

func (c *toy) Step(token []byte) ([]byte, bool, error) {
	if c.at > 0 || !c.initiate {
		if c.at >= len(c.steps) || string(token) != c.steps[c.at] {
			return []byte("no"), false, errToy
		}
		c.at++
	}
	if c.at == len(c.steps) {
		return nil, true, nil
	}
	c.at++
	return []byte(c.steps[c.at-1]), c.at == len(c.steps), nil
}

var errToy = errors.New("the toy does not like it")

func (c *toy) Wrap(b, message []byte, seal bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b = binary.BigEndian.AppendUint64(b, c.sent)
	c.sent++
	if !seal {
		return append(append(b, 0), message...), nil
	}
	b = append(b, 1)
	for _, x := range message {
		b = append(b, x+1)
	}
	return b, nil
}

func (c *toy) Unwrap(token []byte) (Message, error) {
	if len(token) < 9 {
		return Message{}, errToy
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := Message{Data: token[9:], Sealed: token[8] == 1}
	if m.Sealed {
		for i := range m.Data {
			m.Data[i]--
		}
	}
	switch seq := binary.BigEndian.Uint64(token); {
	case seq < c.next:
		m.Order = Duplicate
	case seq > c.next:
		m.Order = Gap
		c.next = seq + 1
	default:
		c.next++
	}
	return m, nil
}

// pipe returns both ends of a TCP connection.
func pipe(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	limit := time.Now().Add(time.Minute)
	c.SetDeadline(limit)
	s.SetDeadline(limit)
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestNegotiation(t *testing.T) {
	all := Set(None, Integrity, Confidentiality)
	for _, c := range []struct {
		name               string
		steps              string
		want               Protection
		allow              Protections
		clientNEC, nec     bool
		got                Protection
		clientErr, servErr error
	}{
		{"none", "ab", None, all, false, false, None, nil, nil},
		{"integrity", "ab", Integrity, all, false, false, Integrity, nil, nil},
		{"confidentiality", "ab", Confidentiality, all, false, false, Confidentiality, nil, nil},
		{"three tokens", "abc", Integrity, all, false, false, Integrity, nil, nil},
		{"one token", "a", Integrity, all, false, false, Integrity, nil, nil},
		{"a stronger one", "ab", None, Set(Integrity), false, false, Integrity, nil, nil},
		{"a weaker one", "ab", Confidentiality, Set(None, Integrity), false, false, 0, ErrProtection, nil},
		{"one that nobody has", "ab", 3, all, false, false, 0, ErrProtection, nil},
		{"nothing is allowed", "ab", Integrity, 0, false, false, 0, ErrRefused, ErrProtection},
		{"NEC", "ab", Confidentiality, all, true, true, Confidentiality, nil, nil},
		{"NEC's client, server by the RFC", "ab", Integrity, all, true, false, 0, ErrRefused, ErrProtection},
		{"client by the RFC, server that takes NEC's", "ab", Integrity, all, false, true, Integrity, nil, nil},
		{"the server does not like the token", "ab", None, all, false, false, 0, errToy, errToy},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := pipe(t)
			steps := strings.Split(c.steps, "")
			theirs := slices.Clone(steps)
			if c.servErr == errToy {
				theirs[0] = "x"
			}
			type result struct {
				p   Protection
				err error
			}
			served := make(chan result)
			go func() {
				p, err := Accept(server, &toy{steps: theirs}, c.allow, c.nec)
				server.Close()
				served <- result{p, err}
			}()
			got, err := Initiate(client, &toy{steps: steps, initiate: true}, c.want, c.clientNEC)
			client.Close()
			r := <-served
			if !errors.Is(err, c.clientErr) || !errors.Is(r.err, c.servErr) {
				t.Fatalf("client %v, want %v; server %v, want %v", err, c.clientErr, r.err, c.servErr)
			}
			if err == nil && (got != c.got || r.p != c.got) {
				t.Errorf("client %v, server %v, want %v", got, r.p, c.got)
			}
		})
	}
}

// TestRefusalIsTwoBytes: RFC 1961 §3.6. Not all servers send more.
func TestRefusalIsTwoBytes(t *testing.T) {
	for _, in := range []string{"\x01\xff", "\x01\xff\x00\x00"} {
		_, err := readMessage(strings.NewReader(in), typeToken)
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%x: %v, want %v", in, err, ErrRefused)
		}
	}
}

// conns returns both ends of a protected connection.
func conns(t testing.TB, p Protection) (client, server *Conn) {
	c, s := pipe(t)
	return NewConn(c, new(toy), p), NewConn(s, new(toy), p)
}

func TestConn(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	for _, p := range []Protection{Integrity, Confidentiality} {
		t.Run(p.String(), func(t *testing.T) {
			client, server := conns(t, p)
			echoed := make(chan error)
			go func() { // back, in other pieces, and then its end
				b := make([]byte, 5000)
				for {
					n, err := server.Read(b)
					if _, err := server.Write(b[:n]); err != nil {
						echoed <- err
						return
					}
					if err == io.EOF {
						echoed <- server.CloseWrite()
						return
					}
				}
			}()
			sent := make(chan error)
			go func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rnd.IntN(3*maxMessage))
					if m, err := client.Write(rest[:n]); err != nil || m != n {
						sent <- err
						return
					}
					rest = rest[n:]
				}
				sent <- client.CloseWrite()
			}()
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(data))
			}
			for _, c := range []chan error{sent, echoed} {
				if err := <-c; err != nil {
					t.Error(err)
				}
			}
			if client.buf != nil {
				t.Error("a connection that waits has a buffer")
			}
		})
	}
}

// TestConnTakesNothingElse: each of these ends the connection with an error, and never
// with an EOF.
func TestConnTakesNothingElse(t *testing.T) {
	wrap := func(c *toy, text string, seal bool) string {
		b, err := appendWrapped(nil, c, []byte(text), seal)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	whole := wrap(new(toy), "hello", true)
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"ends in the head":        {whole[:2], io.ErrUnexpectedEOF},
		"ends in the token":       {whole[:10], io.ErrUnexpectedEOF},
		"clear text":              {"HTTP/1.0 200 OK\r\n", ErrProtocol},
		"another type":            {"\x01\x02\x00\x01x", ErrProtocol},
		"no token":                {"\x01\x03\x00\x00", ErrProtocol},
		"a refusal":               {"\x01\xff\x00\x00", ErrRefused},
		"not encrypted":           {wrap(new(toy), "hello", false), errUnseal},
		"one is missing":          {wrap(&toy{sent: 1}, "hello", true), errOrder},
		"comes twice":             {whole + whole, errOrder},
		"the mechanism's refusal": {"\x01\x03\x00\x01x", errToy},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pipe(t)
			go func() {
				io.WriteString(server, c.in)
				server.Close()
			}()
			conn := NewConn(client, new(toy), Confidentiality)
			if _, err := io.ReadAll(conn); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, c.want) {
				t.Errorf("then %v, want %v", err, c.want)
			}
			if conn.buf != nil {
				t.Error("a connection that has failed has a buffer")
			}
		})
	}
}

// byteConn gives one byte at a time.
type byteConn struct {
	*net.TCPConn
	r io.Reader
}

func (c byteConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// TestReadAfterDeadline: what has come of a message stays.
func TestReadAfterDeadline(t *testing.T) {
	client, server := pipe(t)
	conn := NewConn(byteConn{client, iotest.OneByteReader(client)}, new(toy), Integrity)
	message, err := appendWrapped(nil, new(toy), []byte("hello"), false)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	for _, part := range [][]byte{nil, message[:2], message[2:9]} {
		server.Write(part)
		conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v, want a time-out", err)
		}
	}
	server.Write(message[9:])
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestDatagrams(t *testing.T) {
	if NewDatagrams(new(toy), None) != nil {
		t.Error("with no protection there is something that protects")
	}
	for _, p := range []Protection{Integrity, Confidentiality} {
		from, to := NewDatagrams(new(toy), p), NewDatagrams(new(toy), p)
		seal := func(text string) []byte {
			b, err := from.Seal([]byte("before"), []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			b, ok := bytes.CutPrefix(b, []byte("before"))
			if !ok {
				t.Fatalf("%q", b)
			}
			return b
		}
		a, b := seal("first"), seal("")
		seal("lost")
		c := seal("fourth")
		for i, d := range [][]byte{bytes.Clone(a), b, c} {
			got, err := to.Open(d)
			if want := []string{"first", "", "fourth"}[i]; err != nil || string(got) != want {
				t.Errorf("%v: %q, %v, want %q", p, got, err, want)
			}
		}
		if got, err := to.Open(a); err == nil {
			t.Errorf("%v: %q twice", p, got)
		}
		d := seal("long")
		for _, bad := range [][]byte{nil, d[:3], d[:len(d)-1], append(bytes.Clone(d), 0), []byte("\x00\x00\x00\x01 plain")} {
			if got, err := to.Open(bad); err == nil {
				t.Errorf("%v: %q is opened: %q", p, bad, got)
			}
		}
	}
	plain, err := NewDatagrams(new(toy), Integrity).Seal(nil, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := NewDatagrams(new(toy), Confidentiality).Open(plain); !errors.Is(err, errUnseal) {
		t.Errorf("what is not encrypted is opened: %q, %v", got, err)
	}
}
