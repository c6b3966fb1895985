package gssapi

import (
	"errors"
	"fmt"
	"io"
)

// Context is one security context of a mechanism, at one end.
type Context interface {
	// Step takes the other end's token, nil for the first step of who begins, and
	// returns the one to send, nil for none. Done says that the context is
	// complete: nothing is expected from the other end. What comes along with
	// an error tells the other end why.
	Step(token []byte) (reply []byte, done bool, err error)

	// Wrap appends to dst what message is wrapped, encrypted if seal is true. It
	// adds at most [MaxOverhead] bytes. It does not keep message. Wrap and Unwrap
	// are safe for concurrent use.
	Wrap(dst, message []byte, seal bool) ([]byte, error)

	// Unwrap returns what is within token. It may use token as its working space,
	// and what it returns may lie there.
	Unwrap(token []byte) (Message, error)

	// Peer returns who the other end is, once the context is complete.
	Peer() string
}

// MaxOverhead is how much longer a wrapped message is at most: twice a Kerberos header
// of 16 bytes, a confounder of 16 and a checksum of 24 (RFC 4121 §4.2.4, RFC 8009).
const MaxOverhead = 72

// Message is what has been unwrapped.
type Message struct {
	Data   []byte
	Sealed bool // it was encrypted
	Order  Order
}

// Order is where a message stands among those of the other end.
type Order byte

// The orders.
const (
	InOrder   Order = iota
	Gap             // others before it have not come
	Late            // it comes behind one that was sent after it
	Duplicate       // it has come before, or is too old to tell
)

// Initiate makes a context with a server over rw, a client's connection just behind the
// choice of the method, and agrees with it about the protection: the one wanted or a
// stronger one. With nec the latter is not wrapped.
func Initiate(rw io.ReadWriter, c Context, want Protection, nec bool) (Protection, error) {
	token, done, err := c.Step(nil)
	for {
		if err != nil {
			return 0, err
		}
		if len(token) > 0 {
			if err := writeMessage(rw, typeToken, token); err != nil {
				return 0, err
			}
		}
		if done {
			break
		}
		if token, err = readMessage(rw, typeToken); err != nil {
			return 0, err
		}
		token, done, err = c.Step(token)
	}

	if err := writeLevel(rw, c, want, nec); err != nil {
		return 0, err
	}
	token, err = readMessage(rw, typeLevel)
	if err != nil {
		return 0, err
	}
	got, err := level(c, token, nec)
	switch {
	case err != nil:
		return 0, fmt.Errorf("the server's protection level: %w", err)
	case got > Confidentiality:
		return 0, fmt.Errorf("%w: the server answers %v", ErrProtection, got)
	case got < want:
		return 0, fmt.Errorf("%w: asked for %v, the server answers %v", ErrProtection, want, got)
	}
	return got, nil
}

// Accept makes a context with a client over rw, a server's connection just behind the
// choice of the method, and agrees with it about the protection, one of those allowed.
// It takes the level unwrapped, and answers so, if nec allows it. A client that is
// refused is told so.
func Accept(rw io.ReadWriter, c Context, allow Protections, nec bool) (Protection, error) {
	p, err := accept(rw, c, allow, nec)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, ErrRefused) {
		rw.Write([]byte{version, typeRefused}) // what else could be said is said
	}
	return p, err
}

func accept(rw io.ReadWriter, c Context, allow Protections, nec bool) (Protection, error) {
	for done := false; !done; {
		token, err := readMessage(rw, typeToken)
		if err != nil {
			return 0, err
		}
		token, done, err = c.Step(token)
		if len(token) > 0 {
			if err := writeMessage(rw, typeToken, token); err != nil {
				return 0, err
			}
		}
		if err != nil {
			return 0, err
		}
	}

	token, err := readMessage(rw, typeLevel)
	if err != nil {
		return 0, err
	}
	bare := len(token) == 1
	if bare && !nec {
		return 0, fmt.Errorf("%w: the client sends its level unprotected, as NEC's do", ErrProtection)
	}
	want, err := level(c, token, bare)
	if err != nil {
		return 0, fmt.Errorf("the client's protection level: %w", err)
	}
	got := allow.choose(want)
	if !allow.Has(got) {
		return 0, fmt.Errorf("%w: the client wants %v, and %s is allowed", ErrProtection, want, allow)
	}
	return got, writeLevel(rw, c, got, bare)
}

// writeLevel sends a protection level, wrapped but where it is bare.
func writeLevel(w io.Writer, c Context, p Protection, bare bool) error {
	token := []byte{byte(p)}
	if !bare {
		var err error
		if token, err = c.Wrap(nil, token, false); err != nil {
			return err
		}
	}
	return writeMessage(w, typeLevel, token)
}

// level returns the level that a token has.
func level(c Context, token []byte, bare bool) (Protection, error) {
	if !bare {
		m, err := c.Unwrap(token)
		switch {
		case err != nil:
			return 0, err
		case m.Order != InOrder:
			return 0, errOrder
		}
		token = m.Data
	}
	if len(token) != 1 {
		return 0, fmt.Errorf("%w: a level of %d bytes", ErrProtocol, len(token))
	}
	return Protection(token[0]), nil
}
