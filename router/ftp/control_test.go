package ftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// script is a client's connection: what it sends, a piece for each Read.
type script struct {
	net.Conn
	pieces  [][]byte
	told    bytes.Buffer
	closed  int
	reset   bool
	onRead  func(i int)
	reading int
}

func (s *script) Read(b []byte) (int, error) {
	if s.onRead != nil {
		s.onRead(s.reading)
	}
	s.reading++
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}

func (s *script) Write(b []byte) (int, error) { return s.told.Write(b) }
func (s *script) Close() error                { s.closed++; return nil }
func (s *script) CloseWrite() error           { return nil }
func (s *script) Reset()                      { s.reset = true }

// opened is an address that a test has opened.
type opened struct {
	at     netip.AddrPort
	closed bool
}

func (o *opened) Addr() netip.AddrPort { return o.at }
func (o *opened) Close() error         { o.closed = true; return nil }

var (
	client4 = netip.MustParseAddrPort("10.0.0.2:40000")
	client6 = netip.MustParseAddrPort("[fd00::2]:40000")
	ours4   = netip.MustParseAddrPort("203.0.113.9:50000") // 195*256+80
	ours6   = netip.MustParseAddrPort("[2001:db8::9]:50000")
)

// run has a Control read all that a client sends, in pieces, and returns what the server
// gets and what was opened.
func run(t testing.TB, client, ours netip.AddrPort, pieces ...string) (got string, asked []string, refused []error) {
	t.Helper()
	s := &script{}
	for _, p := range pieces {
		s.pieces = append(s.pieces, []byte(p))
	}
	c := New(s, Options{
		Client: client,
		Open: func(_ context.Context, at netip.AddrPort) (Opened, error) {
			asked = append(asked, at.String())
			if !ours.IsValid() {
				return nil, errors.New("no BIND")
			}
			return &opened{at: ours}, nil
		},
		Refused: func(err error) { refused = append(refused, err) },
	})
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), asked, refused
}

// What the server gets of what the client sends; in one piece, byte by byte, and in
// pieces of all other sizes.
func TestCommands(t *testing.T) {
	const open4, open6 = "PORT 203,0,113,9,195,80\r\n", "EPRT |2|2001:db8::9|50000|\r\n"
	six := "fd00::2"
	tests := []struct {
		name         string
		client, ours netip.AddrPort
		sent, want   string
		asked        string
		refused      error
	}{
		{"PORT", client4, ours4, "PORT 10,0,0,2,4,1\r\n", open4, "10.0.0.2:1025", nil},
		{"lower case, LF only", client4, ours4, "port 10,0,0,2,255,255\n", open4, "10.0.0.2:65535", nil},
		{"CR only", client4, ours4, "PORT 10,0,0,2,4,1\rNOOP\r", open4 + "NOOP\r", "10.0.0.2:1025", nil},
		{"blanks", client4, ours4, " PORT   10,0,0,2,4,1  \r\n", " " + open4, "10.0.0.2:1025", nil},
		{"EPRT of IPv4", client4, ours4, "EPRT |1|10.0.0.2|1025|\r\n", "EPRT |1|203.0.113.9|50000|\r\n", "10.0.0.2:1025", nil},
		{"EPRT of IPv6", client6, ours6, "EPRT |2|" + six + "|1025|\r\n", open6, "[fd00::2]:1025", nil},
		{"EPRT with other bars", client6, ours6, "EPRT !2!" + six + "!1025!\r\n", open6, "[fd00::2]:1025", nil},
		{"IPv4 client, IPv6 server", client4, ours6, "PORT 10,0,0,2,4,1\r\n", open6, "10.0.0.2:1025", nil},
		{"IPv6 client, IPv4 server", client6, ours4, "EPRT |2|" + six + "|1025|\r\n", open4, "[fd00::2]:1025", nil},
		{"sent ahead", client4, ours4, "TYPE I\r\nPORT 10,0,0,2,4,1\r\nRETR a\r\nPORT 10,0,0,2,4,2\r\nRETR b\r\n",
			"TYPE I\r\n" + open4 + "RETR a\r\n" + open4 + "RETR b\r\n", "10.0.0.2:1025 10.0.0.2:1026", nil},
		{"ABOR with telnet in front", client4, ours4, "\xff\xf4\xff\xf2ABOR\r\n", "\xff\xf4\xff\xf2ABOR\r\n", "", nil},
		{"PORT behind telnet", client4, ours4, "\xff\xfbP\xff\xf1PORT 10,0,0,2,4,1\r\n", "\xff\xfbP\xff\xf1" + open4, "10.0.0.2:1025", nil},

		{"somebody else", client4, ours4, "PORT 192,0,2,1,4,1\r\n", "PORT\r\n", "", ErrStranger},
		{"somebody else, EPRT", client6, ours6, "EPRT |2|2001:db8::1|1025|\r\n", "EPRT\r\n", "", ErrStranger},
		{"somebody else behind a CR", client4, ours4, "NOOP\rPORT 192,0,2,1,4,1\r\n", "NOOP\rPORT\r\n", "", ErrStranger},
		{"of the other family", client6, ours6, "PORT 10,0,0,2,4,1\r\n", "PORT\r\n", "", ErrStranger},
		{"a privileged port", client4, ours4, "PORT 10,0,0,2,0,139\r\n", "PORT\r\n", "", ErrPrivileged},
		{"nothing to open", client4, netip.AddrPort{}, "PORT 10,0,0,2,4,1\r\n", "PORT\r\n", "10.0.0.2:1025", nil},
		{"five numbers", client4, ours4, "PORT 10,0,0,2,4\r\n", "PORT\r\n", "", ErrSyntax},
		{"a number of 256", client4, ours4, "PORT 10,0,0,256,4,1\r\n", "PORT\r\n", "", ErrSyntax},
		{"a sign", client4, ours4, "PORT 10,0,0,+2,4,1\r\n", "PORT\r\n", "", ErrSyntax},
		{"nothing", client4, ours4, "PORT\r\n", "PORT\r\n", "", ErrSyntax},
		{"too long", client4, ours4, "PORT 10,0,0,2,4,1" + strings.Repeat(" ", 1000) + "\r\n", "PORT\r\n", "", ErrSyntax},
		{"the wrong family", client4, ours4, "EPRT |2|10.0.0.2|1025|\r\n", "EPRT\r\n", "", ErrSyntax},
		{"a zone", client6, ours6, "EPRT |2|fd00::2%eth0|1025|\r\n", "EPRT\r\n", "", ErrSyntax},
		{"a family of nobody", client4, ours4, "EPRT |3|10.0.0.2|1025|\r\n", "EPRT\r\n", "", ErrSyntax},
		{"no bar at the end", client4, ours4, "EPRT |1|10.0.0.2|1025\r\n", "EPRT\r\n", "", ErrSyntax},

		{"others", client4, ours4, "PASV\r\nEPSV ALL\r\nPWD\r\nPORTA 1\r\nE\r\nLPRT 4,4\r\nSTOR PORT 1\r\n", "PASV\r\nEPSV ALL\r\nPWD\r\nPORTA 1\r\nE\r\nLPRT 4,4\r\nSTOR PORT 1\r\n", "", nil},
		{"half a command", client4, ours4, "NOOP\r\nPOR", "NOOP\r\nPOR", "", nil},
		{"half an address", client4, ours4, "NOOP\r\nPORT 10,0,0,2,4,1", "NOOP\r\n", "", nil},
		{"TLS that nobody agreed to", client4, ours4, "\x16\x03\x01\r\nPORT 192,0,2,1,4,1\r\n", "\x16\x03\x01\r\nPORT\r\n", "", ErrStranger},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for size := len(tt.sent); size > 0; size-- {
				var pieces []string
				for p := range slices.Chunk([]byte(tt.sent), size) {
					pieces = append(pieces, string(p))
				}
				got, asked, refused := run(t, tt.client, tt.ours, pieces...)
				if got != tt.want || strings.Join(asked, " ") != tt.asked {
					t.Fatalf("in pieces of %d: got %q, opened for %v, want %q, %s", size, got, asked, tt.want, tt.asked)
				}
				switch {
				case tt.refused != nil && (len(refused) != 1 || !errors.Is(refused[0], tt.refused)):
					t.Fatalf("in pieces of %d: refused by %v, want %v", size, refused, tt.refused)
				case tt.refused == nil && tt.ours.IsValid() && len(refused) > 0:
					t.Fatalf("in pieces of %d: refused by %v", size, refused)
				}
			}
		})
	}
}

// From the first TLS record behind a 234 on, nothing is read any more.
func TestTLS(t *testing.T) {
	record := "\x16\x03\x01\x00\x05\r\nPORT 192,0,2,1,4,1\r\n"
	for _, tt := range []struct{ reply, want string }{
		{"234 Proceed with negotiation.\r\n", "AUTH TLS\r\n" + record},
		{"220-234 is no\r\n220 reply\r\n530 Please login.\r\n", "AUTH TLS\r\n\x16\x03\x01\x00\x05\r\nPORT\r\n"},
	} {
		s := &script{pieces: [][]byte{[]byte("AUTH TLS\r\n"), []byte(record)}}
		c := New(s, Options{Client: client4, Open: func(context.Context, netip.AddrPort) (Opened, error) { return nil, errors.New("not asked for") }})
		s.onRead = func(i int) {
			if i == 1 {
				for _, b := range []byte(tt.reply) {
					c.Write([]byte{b})
				}
			}
		}
		got, err := io.ReadAll(c)
		if string(got) != tt.want || err != nil {
			t.Errorf("after %q: %q, %v, want %q", tt.reply, got, err, tt.want)
		}
		if s.told.String() != tt.reply {
			t.Errorf("the client was told %q, want %q", s.told.String(), tt.reply)
		}
		c.Close()
	}
}

// Few addresses wait for the server at once, and none once the connection has ended.
func TestWhatIsOpenIsClosed(t *testing.T) {
	for _, end := range []func(*Control){func(c *Control) { c.Close() }, func(c *Control) { c.Reset() }} {
		var all []*opened
		s := &script{}
		for i := range 10 {
			s.pieces = append(s.pieces, fmt.Appendf(nil, "PORT 10,0,0,2,10,%d\r\n", i))
		}
		c := New(s, Options{Client: client4, Open: func(context.Context, netip.AddrPort) (Opened, error) {
			o := &opened{at: ours4}
			all = append(all, o)
			return o, nil
		}})
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		for i, o := range all {
			if want := i < 10-maxOpen; o.closed != want {
				t.Errorf("address %d of 10 closed: %v, want %v", i, o.closed, want)
			}
		}
		end(c)
		for i, o := range all {
			if !o.closed {
				t.Errorf("address %d is open after the end", i)
			}
		}
		if s.closed == 0 && !s.reset {
			t.Error("the client's connection is open")
		}
	}
}

// An Open that waits ends with the connection.
func TestEndWhileOpening(t *testing.T) {
	waiting := make(chan struct{})
	s := &script{pieces: [][]byte{[]byte("PORT 10,0,0,2,4,1\r\n")}}
	c := New(s, Options{Client: client4, Open: func(ctx context.Context, _ netip.AddrPort) (Opened, error) {
		close(waiting)
		<-ctx.Done()
		return nil, ctx.Err()
	}, Refused: func(err error) { t.Errorf("told of %v", err) }})
	done := make(chan string)
	go func() {
		b, _ := io.ReadAll(c)
		done <- string(b)
	}()
	<-waiting
	c.Close()
	if got := <-done; got != "PORT\r\n" {
		t.Errorf("the server gets %q", got)
	}
}

// FuzzControl: however a client's bytes are cut, the server gets the same; no PORT or
// EPRT with any address but ours; and all else as it was.
func FuzzControl(f *testing.F) {
	f.Add([]byte("USER ann\r\nPORT 10,0,0,2,4,1\r\nRETR a\r\n"), uint16(3))
	f.Add([]byte("EPRT |1|10.0.0.2|1025|\r\n\xff\xf4PORT 1,2,3,4,5,6\rport\n"), uint16(1))
	f.Fuzz(func(t *testing.T, sent []byte, size uint16) {
		whole, _, _ := run(t, client4, ours4, string(sent))
		var pieces []string
		for p := range slices.Chunk(sent, int(size)+1) {
			pieces = append(pieces, string(p))
		}
		if cut, _, _ := run(t, client4, ours4, pieces...); cut != whole {
			t.Fatalf("%q becomes %q, in pieces of %d %q", sent, whole, size+1, cut)
		}
		for _, line := range strings.FieldsFunc(whole, func(r rune) bool { return r == '\r' || r == '\n' }) {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "PORT" && words[0] != "EPRT" {
				continue
			}
			if args := strings.Join(words[1:], " "); args != "203,0,113,9,195,80" && args != "|1|203.0.113.9|50000|" {
				t.Fatalf("%q becomes %q", sent, whole)
			}
		}
		if u := strings.ToUpper(string(sent)); !strings.Contains(u, "PORT") && !strings.Contains(u, "EPRT") && whole != string(sent) {
			t.Fatalf("%q becomes %q", sent, whole)
		}
	})
}
