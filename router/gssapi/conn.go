package gssapi

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"tunroute/router/relay"
)

// maxMessage is how much of a stream is wrapped at once. It is what the relay reads at
// once, so that what it writes is one message and one Write.
const maxMessage = 32 << 10

var (
	errOrder  = errors.New("a message is missing, comes twice or in another order")
	errUnseal = errors.New("a message is not encrypted")

	// A connection that waits has none of them.
	readBuffers  = sync.Pool{New: func() any { return new([maxToken]byte) }}
	writeBuffers = sync.Pool{New: func() any { return new([headLen + maxMessage + MaxOverhead]byte) }}
)

// Conn is a connection all of whose bytes are protected. CloseWrite ends our direction by
// a FIN. It is safe for one reader and one writer at a time, and for Close from anywhere.
//
// A Read that has run into a deadline can be tried again; a Write cannot.
type Conn struct {
	relay.Conn
	context Context
	seal    bool

	// The reader's.
	head    [headLen]byte
	got     int // of head
	buf     *[maxToken]byte
	token   []byte // of buf, what has come of it
	rest    []byte // of buf, what was unwrapped and not read
	readErr error

	// The writer's.
	writeErr error
}

// NewConn returns conn as one that is protected as the two ends have agreed. With [None]
// there is nothing to protect, and conn itself is to be used.
func NewConn(conn relay.Conn, c Context, p Protection) *Conn {
	return &Conn{Conn: conn, context: c, seal: p == Confidentiality}
}

// Read implements [net.Conn].
func (c *Conn) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.readErr != nil {
			return 0, c.readErr
		}
		if len(b) == 0 {
			return 0, nil
		}
		if err := c.fill(); err != nil {
			var n net.Error
			if !errors.As(err, &n) || !n.Timeout() {
				c.readErr = err
				c.release()
			}
			return 0, err
		}
	}
	n := copy(b, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		c.release()
	}
	return n, nil
}

// release gives the buffer back.
func (c *Conn) release() {
	if c.buf != nil {
		readBuffers.Put(c.buf)
		c.buf, c.token, c.rest = nil, nil, nil
	}
}

// fill reads the rest of a message.
func (c *Conn) fill() error {
	for c.got < headLen {
		n, err := c.Conn.Read(c.head[c.got:])
		c.got += n
		if c.got == headLen {
			break
		}
		if err != nil && c.got > 0 {
			err = unexpected(err)
		}
		if err != nil {
			return err
		}
	}
	size, err := parseHead(c.head, typeWrapped)
	if err != nil {
		return err
	}
	if c.buf == nil {
		c.buf = readBuffers.Get().(*[maxToken]byte)
		c.token = c.buf[:0]
	}
	for len(c.token) < size {
		n, err := c.Conn.Read(c.buf[len(c.token):size])
		c.token = c.buf[:len(c.token)+n]
		if err != nil && len(c.token) < size {
			return unexpected(err)
		}
	}
	m, err := c.context.Unwrap(c.token)
	switch {
	case err != nil:
		return err
	case m.Order != InOrder:
		return errOrder
	case c.seal && !m.Sealed:
		return errUnseal
	}
	c.got, c.rest = 0, m.Data
	if len(c.rest) == 0 {
		c.release()
	}
	return nil
}

// Write implements [net.Conn]: each message is one Write of the connection below.
func (c *Conn) Write(b []byte) (int, error) {
	if c.writeErr != nil {
		return 0, c.writeErr
	}
	buf := writeBuffers.Get().(*[headLen + maxMessage + MaxOverhead]byte)
	defer writeBuffers.Put(buf)
	written := 0
	for len(b) > 0 {
		n := min(len(b), maxMessage)
		message, err := appendWrapped(buf[:0], c.context, b[:n], c.seal)
		if err == nil {
			_, err = c.Conn.Write(message)
		}
		if err != nil {
			// The other end waits for the rest of this message.
			c.writeErr = err
			return written, err
		}
		written += n
		b = b[n:]
	}
	return written, nil
}

// Reset ends the connection by a RST.
func (c *Conn) Reset() { relay.Reset(c.Conn) }

// appendWrapped appends a wrapped message with its head.
func appendWrapped(b []byte, c Context, message []byte, seal bool) ([]byte, error) {
	at := len(b)
	b, err := c.Wrap(appendHead(b, typeWrapped, 0), message, seal)
	if err != nil {
		return nil, err
	}
	n := len(b) - at - headLen
	if n > maxToken {
		return nil, fmt.Errorf("a message of %d bytes is too long to be wrapped", len(message))
	}
	appendHead(b[:at], typeWrapped, n)
	return b, nil
}

// Datagrams protects the datagrams of an association. It is safe for concurrent use.
type Datagrams struct {
	context Context
	seal    bool
}

// Datagrams returns what protects the datagrams of an association, c being its control
// connection, as c is protected.
func (c *Conn) Datagrams() *Datagrams { return &Datagrams{c.context, c.seal} }

// Seal appends to b what a datagram, the header of SOCKS within, is sent as.
func (d *Datagrams) Seal(b, datagram []byte) ([]byte, error) {
	return appendWrapped(b, d.context, datagram, d.seal)
}

// Open returns what is within a datagram that has come, in whose place it may lie.
func (d *Datagrams) Open(datagram []byte) ([]byte, error) {
	if len(datagram) < headLen {
		return nil, io.ErrUnexpectedEOF
	}
	n, err := parseHead([headLen]byte(datagram), typeWrapped)
	if err != nil {
		return nil, err
	}
	if n != len(datagram)-headLen {
		return nil, fmt.Errorf("%w: a datagram of %d bytes says %d", ErrProtocol, len(datagram), n+headLen)
	}
	m, err := d.context.Unwrap(datagram[headLen:])
	switch {
	case err != nil:
		return nil, err
	case m.Order == Duplicate:
		return nil, errOrder
	case d.seal && !m.Sealed:
		return nil, errUnseal
	}
	return m.Data, nil
}
