package gssapi_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"tunroute/router/gssapi"
	"tunroute/router/gssapi/gssapitest"
)

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
	all := gssapi.Set(gssapi.None, gssapi.Integrity, gssapi.Confidentiality)
	for _, c := range []struct {
		name               string
		steps              string
		want               gssapi.Protection
		allow              gssapi.Protections
		clientNEC, nec     bool
		got                gssapi.Protection
		clientErr, servErr error
	}{
		{"none", "ab", gssapi.None, all, false, false, gssapi.None, nil, nil},
		{"integrity", "ab", gssapi.Integrity, all, false, false, gssapi.Integrity, nil, nil},
		{"confidentiality", "ab", gssapi.Confidentiality, all, false, false, gssapi.Confidentiality, nil, nil},
		{"three tokens", "abc", gssapi.Integrity, all, false, false, gssapi.Integrity, nil, nil},
		{"one token", "a", gssapi.Integrity, all, false, false, gssapi.Integrity, nil, nil},
		{"a stronger one", "ab", gssapi.None, gssapi.Set(gssapi.Integrity), false, false, gssapi.Integrity, nil, nil},
		{"a weaker one", "ab", gssapi.Confidentiality, gssapi.Set(gssapi.None, gssapi.Integrity), false, false, 0, gssapi.ErrProtection, nil},
		{"one that nobody has", "ab", 3, all, false, false, 0, gssapi.ErrProtection, nil},
		{"nothing is allowed", "ab", gssapi.Integrity, 0, false, false, 0, gssapi.ErrRefused, gssapi.ErrProtection},
		{"NEC", "ab", gssapi.Confidentiality, all, true, true, gssapi.Confidentiality, nil, nil},
		{"NEC's client, server by the RFC", "ab", gssapi.Integrity, all, true, false, 0, gssapi.ErrRefused, gssapi.ErrProtection},
		{"client by the RFC, server that takes NEC's", "ab", gssapi.Integrity, all, false, true, gssapi.Integrity, nil, nil},
		{"the server does not like the token", "ab", gssapi.None, all, false, false, 0, gssapitest.ErrToy, gssapitest.ErrToy},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := pipe(t)
			steps := strings.Split(c.steps, "")
			theirs := slices.Clone(steps)
			if c.servErr == gssapitest.ErrToy {
				theirs[0] = "x"
			}
			type result struct {
				p   gssapi.Protection
				err error
			}
			served := make(chan result)
			go func() {
				p, err := gssapi.Accept(server, &gssapitest.Toy{Steps: theirs}, c.allow, c.nec)
				server.Close()
				served <- result{p, err}
			}()
			got, err := gssapi.Initiate(client, &gssapitest.Toy{Steps: steps, Initiate: true}, c.want, c.clientNEC)
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
		_, err := gssapi.ReadMessage(strings.NewReader(in), gssapi.TypeToken)
		if !errors.Is(err, gssapi.ErrRefused) {
			t.Errorf("%x: %v, want %v", in, err, gssapi.ErrRefused)
		}
	}
}

// conns returns both ends of a protected connection.
func conns(t testing.TB, p gssapi.Protection) (client, server *gssapi.Conn) {
	c, s := pipe(t)
	return gssapi.NewConn(c, new(gssapitest.Toy), p), gssapi.NewConn(s, new(gssapitest.Toy), p)
}

func TestConn(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	for _, p := range []gssapi.Protection{gssapi.Integrity, gssapi.Confidentiality} {
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
					n := min(len(rest), 1+rnd.IntN(3*gssapi.MaxMessage))
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
			if client.Buffered() {
				t.Error("a connection that waits has a buffer")
			}
		})
	}
}

// TestConnTakesNothingElse: each of these ends the connection with an error, and never
// with an EOF.
func TestConnTakesNothingElse(t *testing.T) {
	wrap := func(c *gssapitest.Toy, text string, seal bool) string {
		b, err := gssapi.AppendWrapped(nil, c, []byte(text), seal)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	whole := wrap(new(gssapitest.Toy), "hello", true)
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"ends in the head":        {whole[:2], io.ErrUnexpectedEOF},
		"ends in the token":       {whole[:10], io.ErrUnexpectedEOF},
		"clear text":              {"HTTP/1.0 200 OK\r\n", gssapi.ErrProtocol},
		"another type":            {"\x01\x02\x00\x01x", gssapi.ErrProtocol},
		"no token":                {"\x01\x03\x00\x00", gssapi.ErrProtocol},
		"a refusal":               {"\x01\xff\x00\x00", gssapi.ErrRefused},
		"not encrypted":           {wrap(new(gssapitest.Toy), "hello", false), gssapi.ErrUnseal},
		"one is missing":          {wrap(&gssapitest.Toy{Sent: 1}, "hello", true), gssapi.ErrOrder},
		"comes twice":             {whole + whole, gssapi.ErrOrder},
		"the mechanism's refusal": {"\x01\x03\x00\x01x", gssapitest.ErrToy},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pipe(t)
			go func() {
				io.WriteString(server, c.in)
				server.Close()
			}()
			conn := gssapi.NewConn(client, new(gssapitest.Toy), gssapi.Confidentiality)
			if _, err := io.ReadAll(conn); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, c.want) {
				t.Errorf("then %v, want %v", err, c.want)
			}
			if conn.Buffered() {
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
	conn := gssapi.NewConn(byteConn{client, iotest.OneByteReader(client)}, new(gssapitest.Toy), gssapi.Integrity)
	message, err := gssapi.AppendWrapped(nil, new(gssapitest.Toy), []byte("hello"), false)
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

func datagrams(c gssapi.Context, p gssapi.Protection) *gssapi.Datagrams {
	return gssapi.NewConn(nil, c, p).Datagrams()
}

func TestDatagrams(t *testing.T) {
	for _, p := range []gssapi.Protection{gssapi.Integrity, gssapi.Confidentiality} {
		from, to := datagrams(new(gssapitest.Toy), p), datagrams(new(gssapitest.Toy), p)
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
	plain, err := datagrams(new(gssapitest.Toy), gssapi.Integrity).Seal(nil, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := datagrams(new(gssapitest.Toy), gssapi.Confidentiality).Open(plain); !errors.Is(err, gssapi.ErrUnseal) {
		t.Errorf("what is not encrypted is opened: %q, %v", got, err)
	}
}
