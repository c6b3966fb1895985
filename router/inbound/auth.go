package inbound

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"

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
