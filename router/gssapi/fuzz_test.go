package gssapi_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"tunroute/router/gssapi"
	"tunroute/router/gssapi/gssapitest"
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
	hello, err := gssapi.AppendWrapped(nil, new(gssapitest.Toy), []byte("hello"), false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Add([]byte("\x01\x01\x00\x01a\x01\x02\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("\x01\x01\x00\x01b\x01\x02\x00\x01\x02"))
	f.Add([]byte("\x01\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		mem := func() memory { return memory{Reader: bytes.NewReader(in)} }
		if p, err := gssapi.Accept(mem(), &gssapitest.Toy{Steps: []string{"a", "b"}}, gssapi.Set(gssapi.None, gssapi.Integrity), true); err == nil && p > gssapi.Integrity {
			t.Errorf("a server answers %v, which it does not allow", p)
		}
		if p, err := gssapi.Initiate(mem(), &gssapitest.Toy{Steps: []string{"a", "b"}, Initiate: true}, gssapi.Integrity, false); err == nil && p < gssapi.Integrity {
			t.Errorf("a client takes %v", p)
		}
		got, err := io.ReadAll(gssapi.NewConn(mem(), new(gssapitest.Toy), gssapi.Integrity))
		if len(got) > len(in) || err == nil && len(in) > 0 && len(in) < gssapi.HeadLen {
			t.Errorf("%x: %x, %v", in, got, err)
		}
		// The same in a datagram, if it is one message.
		if d, err := datagrams(new(gssapitest.Toy), gssapi.Integrity).Open(bytes.Clone(in)); err == nil && !bytes.HasPrefix(got, d) {
			if seq := binary.BigEndian.Uint64(in[gssapi.HeadLen:]); seq == 0 { // a stream does not take a gap
				t.Errorf("%x: a datagram with %x, a stream with %x", in, d, got)
			}
		}
	})
}
