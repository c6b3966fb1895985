package gssapi

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// memory is a connection whose other end has said all and listens to nothing.
type memory struct {
	net.Conn
	io.Reader
}

func (m memory) Read(b []byte) (int, error)  { return m.Reader.Read(b) }
func (m memory) Write(b []byte) (int, error) { return len(b), nil }
func (m memory) CloseWrite() error           { return nil }

// FuzzConn gives any bytes to both ends of the negotiation and to a connection: none
// panics, none reads for ever, and a connection gives what is within whole messages.
func FuzzConn(f *testing.F) {
	hello, err := appendWrapped(nil, new(toy), []byte("hello"), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Add([]byte("\x01\x01\x00\x01a\x01\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("\x01\x01\x00\x01b\x01\x02\x00\x01\x02"))
	f.Add([]byte("\x01\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		mem := func() memory { return memory{Reader: bytes.NewReader(in)} }
		if p, err := Accept(mem(), &toy{steps: []string{"a", "b"}}, Set(None, Integrity), true); err == nil && p > Integrity {
			t.Errorf("a server answers %v, which it does not allow", p)
		}
		if p, err := Initiate(mem(), &toy{steps: []string{"a", "b"}, initiate: true}, Integrity, false); err == nil && p < Integrity {
			t.Errorf("a client takes %v", p)
		}
		got, err := io.ReadAll(NewConn(mem(), new(toy), Integrity))
		if len(got) > len(in) || err == nil && len(in) > 0 && len(in) < headLen {
			t.Errorf("%x: %x, %v", in, got, err)
		}
		// The same in a datagram, if it is one message.
		if d, err := NewDatagrams(new(toy), Integrity).Open(bytes.Clone(in)); err == nil && !bytes.HasPrefix(got, d) {
			if seq := binary.BigEndian.Uint64(in[headLen:]); seq == 0 { // a stream does not take a gap
				t.Errorf("%x: a datagram with %x, a stream with %x", in, d, got)
			}
		}
	})
}
