package inbound

import (
	"bufio"
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"tunroute/router/flow"
	"tunroute/router/relay"
	"tunroute/router/socks"
)

// client is a connection that somebody has made to us.
type client struct {
	server   *Server
	listener *Listener
	raw      relay.Conn
	source   netip.AddrPort // not valid on a unix socket

	place  *list.Element      // among those that have not asked yet; guarded by server.mu
	cancel context.CancelFunc // ends what is done to find out what it asks
}

// The buffers that what clients say is read through. A SOCKS greeting and request
// have 517 bytes at the most, and are seldom longer than 30.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 512) }}

// protocol is how a client is answered.
type protocol interface {
	// connected is the reply that the client is connected.
	connected(bound netip.AddrPort) []byte
	// refused is the reply why it is not; nil for none.
	refused(err error) []byte
}

// request is what a client wants, and by whom.
type request struct {
	protocol
	command flow.Command
	target  flow.Target
	from    netip.AddrPort // of an Associate: where its datagrams will come from, if it says so
	who     Identity
	err     error // why it is refused whatever the rules say
}

// serve serves the client until its flow needs no goroutine any more. It has to ask in
// time.
func (c *client) serve(ctx, inTime context.Context) {
	if deadline, ok := inTime.Deadline(); ok {
		_ = c.raw.SetDeadline(deadline)
	}
	s := &Stream{Source: c.source, R: readers.Get().(*bufio.Reader)}
	q, err := c.negotiate(inTime, s)
	c.cancel()
	c.server.leave(c)
	call := &call{stream: s, protocol: q.protocol}
	if err == nil {
		err = c.raw.SetDeadline(time.Time{})
	}
	switch {
	case err != nil:
		c.server.failed(c, err)
		call.close()
	case q.err != nil:
		c.server.failed(c, q.err)
		call.Refuse(q.err)
	case q.command == flow.Associate:
		c.associate(ctx, c.flow(q), q.from, call)
	default:
		c.server.opts.Serve(ctx, c.flow(q), call)
	}
}

// flow is what the client has asked for.
func (c *client) flow(q request) flow.Flow {
	return flow.Flow{
		Network: flow.TCP,
		Command: q.command,
		Source:  c.source,
		Inbound: c.listener.Name,
		Target:  q.target,
		User:    q.who.User,
		Groups:  q.who.Groups,
	}
}

// negotiate finds out who the client is and what it wants. It sets the Conn of s.
func (c *client) negotiate(ctx context.Context, s *Stream) (request, error) {
	if secure := c.listener.TLS; secure != nil {
		conn := tls.Server(c.raw, secure)
		s.Conn = conn
		if err := conn.HandshakeContext(ctx); err != nil {
			return request{}, fmt.Errorf("TLS: %w", err)
		}
	} else {
		s.Conn = c.raw
	}
	s.R.Reset(s.Conn)
	version, err := socks.ReadVersion(s.R)
	switch {
	case err == io.EOF:
		return request{}, errors.New("came and went without a word")
	case err != nil:
		return request{}, err
	case version == socks.Version5:
		return c.negotiate5(ctx, s)
	case version == socks.Version4:
		return c.negotiate4(ctx, s)
	case 'A' <= version && version <= 'Z':
		_ = s.R.UnreadByte()
		return c.negotiateHTTP(ctx, s)
	case version == 0x16: // RFC 8446 §5.1: a handshake
		return request{}, errors.New("speaks TLS, which this listener is not set up for")
	}
	return request{}, fmt.Errorf("%w: begins with %#x", socks.ErrProtocol, version)
}

// method returns the first of ours that the client offers, nil if there is none.
func (c *client) method(offered func(socks.Method) bool) Method {
	for _, m := range c.listener.Methods {
		if offered(m.Code()) {
			return m
		}
	}
	return nil
}

// call is a client that has asked.
type call struct {
	stream *Stream
	protocol
}

var _ BindCall = (*call)(nil)

// answerTime is how long a client may leave an answer unread: it is shorter than what
// a kernel holds for it, so that it leaves at once unless something is wrong.
const answerTime = 10 * time.Second

// Accept implements Call.
func (c *call) Accept(bound netip.AddrPort) (relay.Conn, []byte, error) {
	if err := c.answer(c.connected(bound)); err != nil {
		c.close()
		return nil, nil, err
	}
	var early []byte
	if n := c.stream.R.Buffered(); n > 0 {
		early, _ = c.stream.R.Peek(n)
		early = append([]byte(nil), early...)
	}
	c.putReader()
	return c.stream.Conn, early, nil
}

func (c *call) answer(reply []byte) error {
	_ = c.stream.SetWriteDeadline(time.Now().Add(answerTime))
	_, err := c.stream.Write(reply)
	if err == nil {
		err = c.stream.SetWriteDeadline(time.Time{})
	}
	return err
}

// Bounds of what is read from a client that has been refused. RFC 1928 §6 wants its
// connection closed within 10 s.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 256 << 10
)

// Refuse implements Call.
func (c *call) Refuse(err error) {
	defer c.close()
	reply := c.refused(err)
	if reply == nil || c.answer(reply) != nil {
		return
	}
	c.linger()
}

// Announce implements BindCall.
func (c *call) Announce(ctx context.Context, at netip.AddrPort) (context.Context, func(), error) {
	if err := c.answer(c.connected(at)); err != nil {
		return nil, nil, err
	}
	waiting, stop := c.watch(ctx, nil)
	return waiting, stop, nil
}

// watch returns a context that ends when the client has, until stop is called. What it
// says meanwhile goes to sink or, where that is nil, stays in the buffer; if more comes
// than that has room for, the client's end is no longer seen.
func (c *call) watch(ctx context.Context, sink io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	read := make(chan struct{})
	go func() {
		defer close(read)
		if sink != nil {
			_, err := io.Copy(sink, c.stream.R)
			cancel(fmt.Errorf("client left: %w", cmp.Or(err, io.EOF)))
		} else if _, err := c.stream.R.Peek(c.stream.R.Size()); err != nil {
			cancel(fmt.Errorf("client left: %w", err))
		}
	}()
	return ctx, sync.OnceFunc(func() {
		_ = c.stream.SetReadDeadline(time.Unix(1, 0))
		<-read
		_ = c.stream.SetReadDeadline(time.Time{})
		cancel(nil)
	})
}

// linger ends our direction and reads until the client has ended its own, for a
// moment: see the package comment.
func (c *call) linger() {
	if c.stream.CloseWrite() != nil {
		return
	}
	_ = c.stream.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.stream.R, lingerBytes)
}

// close closes the connection of a client that is not connected to anything.
func (c *call) close() {
	c.stream.Close()
	c.putReader()
}

func (c *call) putReader() {
	c.stream.R.Reset(nil)
	readers.Put(c.stream.R)
	c.stream.R = nil
}
