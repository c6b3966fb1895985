package inbound

import (
	"context"
	"errors"
	"io"

	"tunroute/router/gssapi"
	"tunroute/router/relay"
	"tunroute/router/socks"
)

// GSSAPI lets in who has a ticket for us (RFC 1961). The user is the principal, with its
// realm.
type GSSAPI struct {
	// Accept returns a new context with a client.
	Accept func() gssapi.Context
	// Allow is how what follows may be protected. A client that wants something else
	// is answered the strongest of them, and may not like it.
	Allow gssapi.Protections
	// NEC says that the protection may come, and is answered, unprotected.
	NEC bool
}

// Code returns [socks.MethodGSSAPI].
func (GSSAPI) Code() socks.Method { return socks.MethodGSSAPI }

// Negotiate makes the context and replaces the Conn of s by one that is protected, where
// there is to be protection.
func (g GSSAPI) Negotiate(_ context.Context, s *Stream) (Identity, error) {
	c := g.Accept()
	p, err := gssapi.Accept(struct {
		io.Reader
		io.Writer
	}{s.R, s.Conn}, c, g.Allow, g.NEC)
	if err != nil {
		if errors.Is(err, gssapi.ErrProtocol) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return Identity{}, err
		}
		return Identity{}, notLetIn{err}
	}
	if p != gssapi.None {
		conn := s.Conn
		if n := s.R.Buffered(); n > 0 {
			early, _ := s.R.Peek(n)
			conn = &resumed{conn, append([]byte(nil), early...)}
		}
		s.Conn = gssapi.NewConn(conn, c, p)
		s.R.Reset(s.Conn)
	}
	return Identity{User: c.Peer()}, nil
}

// resumed is a connection of which something has been read already.
type resumed struct {
	relay.Conn
	early []byte // the reader's
}

func (r *resumed) Read(b []byte) (int, error) {
	if len(r.early) > 0 {
		n := copy(b, r.early)
		r.early = r.early[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// Reset ends the connection by a RST.
func (r *resumed) Reset() { relay.Reset(r.Conn) }
