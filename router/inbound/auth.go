package inbound

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"tunroute/router/relay"
	"tunroute/router/socks"
)

// Identity is who a client is.
type Identity struct {
	User   string // "" for nobody in particular
	Groups []string
}

// ErrDenied says that a client is not who it says it is, or not let in.
var ErrDenied = errors.New("user or password refused")

// Stream is the connection of a client that negotiates. What it sends is read
// through R, which may hold more than has been asked for.
type Stream struct {
	relay.Conn
	R      *bufio.Reader
	Source netip.AddrPort // not valid on a unix socket
}

// Method is a way in which a client says who it is.
type Method interface {
	// Code is the SOCKS5 method that stands for it.
	Code() socks.Method

	// Negotiate speaks with a SOCKS5 client that has been told of the method,
	// to the last byte of what the method wants to say. Where all that follows
	// is wrapped, it replaces the Conn and the R of s by what unwraps it. After
	// an error the connection is of no use. It ends when the deadline of s has
	// passed, which ctx has too.
	Negotiate(ctx context.Context, s *Stream) (Identity, error)
}

// None lets everybody in.
type None struct{}

// Code returns [socks.MethodNone].
func (None) Code() socks.Method { return socks.MethodNone }

// Negotiate says nothing.
func (None) Negotiate(context.Context, *Stream) (Identity, error) { return Identity{}, nil }

// Checker knows the users and their passwords.
type Checker interface {
	// Check returns who the user is if the password is right; an error that Is
	// [ErrDenied] says that it is not. It may take its time, and more of it for
	// who guesses. Source is not valid on a unix socket. It is safe for
	// concurrent use.
	Check(ctx context.Context, source netip.Addr, user, password string) (Identity, error)
}

// Password lets in who knows a password (RFC 1929). It is what HTTP's Basic
// credentials are checked by as well.
type Password struct{ Checker }

// Code returns [socks.MethodUserPass].
func (Password) Code() socks.Method { return socks.MethodUserPass }

// Negotiate reads user and password, and answers.
func (p Password) Negotiate(ctx context.Context, s *Stream) (Identity, error) {
	user, password, err := socks.ReadUserPass(s.R)
	if err != nil {
		return Identity{}, fmt.Errorf("user and password: %w", err)
	}
	who, err := p.Check(ctx, s.Source.Addr(), user, password)
	if _, werr := s.Write(socks.AppendAuthStatus(nil, err == nil)); err == nil {
		err = werr
	}
	return who, err
}

// Ident lets in whom the client's machine names (RFC 1413, which danted calls rfc931):
// it is for networks whose machines are trusted.
type Ident struct {
	// Ask asks whose the connection between here and there is, as [ident.Ask] does.
	Ask func(ctx context.Context, here, there netip.AddrPort) (user string, err error)
}

// identTime is how long a machine has to answer: SOCKS4 clients wait for it.
const identTime = 10 * time.Second

// Code returns [socks.MethodNone]: the client has no part in it.
func (Ident) Code() socks.Method { return socks.MethodNone }

// Negotiate asks the client's machine.
func (m Ident) Negotiate(ctx context.Context, s *Stream) (Identity, error) {
	here, ok := s.LocalAddr().(*net.TCPAddr)
	if !ok || !s.Source.IsValid() {
		return Identity{}, notLetIn{errors.New("ident: a unix socket is nobody's")}
	}
	inTime, cancel := context.WithTimeout(ctx, identTime)
	defer cancel()
	at := here.AddrPort()
	user, err := m.Ask(inTime, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), s.Source)
	switch {
	case err != nil && ctx.Err() != nil: // the client has gone, or its time is over
		return Identity{}, context.Cause(ctx)
	case err != nil:
		return Identity{}, notLetIn{&userError{socks.Reply4NoIdent, fmt.Errorf("ident: %w", err)}}
	}
	return Identity{User: user}, nil
}
