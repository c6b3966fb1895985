package outbound

import (
	"context"
	"net"
	"net/netip"

	"tunroute/router/flow"
)

// Conn is a connection whose two directions end apart.
//
// All Conns are safe for one reader and one writer at a time, and for Close
// from anywhere.
type Conn interface {
	net.Conn

	// CloseWrite ends our direction: the far end reads EOF, and we can
	// still read. For TCP it is a FIN.
	CloseWrite() error
}

// Dialer opens TCP connections.
type Dialer interface {
	// DialTCP connects to t. It returns only after the last hop has said
	// that the target is connected, so that a success here can be told to
	// the client as one.
	//
	// It blocks until then, until ctx ends or until one of the outbound's
	// own time-outs does. [Errno] says what the client should be told of
	// an error, and [*HopError] where in a chain it happened. It is safe for
	// concurrent use.
	DialTCP(ctx context.Context, t flow.Target) (Conn, error)
}

// Chain is what a [Dialer] also implements if it goes through upstreams.
type Chain interface {
	// Hops returns the names that the config gives the upstreams, the
	// nearest to us first. The caller owns the slice.
	Hops() []string
}

// PacketDialer is what a [Dialer] also implements if it may carry UDP.
type PacketDialer interface {
	// OpenUDP opens one UDP conversation with any number of targets: a
	// socket, or a SOCKS5 association. It blocks like DialTCP. An error
	// that Is [ErrNoUDP] says that the outbound does not carry UDP, now and
	// the next time; where [HungUp], perhaps.
	OpenUDP(ctx context.Context) (PacketConn, error)
}

// PacketConn is an open UDP conversation. All methods are safe for concurrent
// use, but only one ReadFrom may run at a time.
type PacketConn interface {
	// Prepare returns t in the form that WriteTo takes. It may block for a
	// name look-up, until ctx ends. Where the name is resolved here, what
	// comes back has an address as well; where the far end resolves it, t
	// comes back as it is.
	Prepare(ctx context.Context, t flow.Target) (flow.Target, error)

	// WriteTo sends one datagram to a target that Prepare returned. It
	// does not block: what there is no room for is lost, with EAGAIN. It
	// does not keep payload, and does not allocate once warm.
	WriteTo(payload []byte, t flow.Target) error

	// ReadFrom reads one datagram into b and returns its length and its
	// sender. It blocks until there is one or until Close, after which it
	// returns net.ErrClosed; any other error ends the conversation too. A
	// datagram longer than b is cut.
	//
	// The sender's address is unspecified (0.0.0.0) where the far end gave
	// a name instead: only the port is known then.
	ReadFrom(b []byte) (int, netip.AddrPort, error)

	Close() error
}

// Queuer is what a [PacketConn] also is where datagrams that are sent in a row
// cost less than one by one.
type Queuer interface {
	// Queue is WriteTo, but that the datagram may wait for Flush. What goes
	// wrong only when it is sent, is not told: it is lost.
	Queue(payload []byte, t flow.Target) error

	// Flush sends what waits. It does not block: what there is no room for
	// is lost.
	Flush()
}

// BatchReader is what a [PacketConn] also is that reads many datagrams at once and
// has no buffer while it waits for them. ReadFrom may not be used beside it.
type BatchReader interface {
	// ReadBatch blocks until there are datagrams or until Close, calls take
	// once, or not at all if none of them counts, and returns. Element i of
	// from sent payloads[i]; both are valid until take returns. Errors and
	// senders are as ReadFrom's.
	ReadBatch(take func(payloads [][]byte, from []netip.AddrPort)) error
}

// Queue returns c if it is a [Queuer], else one whose Queue is c's WriteTo.
func Queue(c PacketConn) Queuer {
	if q, ok := c.(Queuer); ok {
		return q
	}
	return unqueued{c}
}

type unqueued struct{ conn PacketConn }

func (u unqueued) Queue(payload []byte, t flow.Target) error { return u.conn.WriteTo(payload, t) }
func (u unqueued) Flush()                                    {}

// Batches returns c if it is a [BatchReader], else one that reads datagrams one by
// one, with a buffer that it has as long as it lives.
func Batches(c PacketConn) BatchReader {
	if b, ok := c.(BatchReader); ok {
		return b
	}
	return &oneByOne{read: c.ReadFrom}
}

type oneByOne struct {
	read    func([]byte) (int, netip.AddrPort, error)
	buf     []byte
	payload [1][]byte
	from    [1]netip.AddrPort
}

func (o *oneByOne) ReadBatch(take func(payloads [][]byte, from []netip.AddrPort)) error {
	if o.buf == nil {
		o.buf = make([]byte, maxDatagram)
	}
	n, from, err := o.read(o.buf)
	if err != nil {
		return err
	}
	o.payload[0], o.from[0] = o.buf[:n], from
	take(o.payload[:], o.from[:])
	return nil
}

// Echoer is what a [Dialer] also implements if it can ask hosts for an ICMP echo.
type Echoer interface {
	// Echo sends data to dst in an ICMP echo request and blocks until the
	// reply, which repeats it, has come, or until ctx ends. [Errno] says
	// what the client should be told of an error. It is safe for
	// concurrent use.
	Echo(ctx context.Context, dst netip.Addr, data []byte) error
}

// Resolver turns a name into addresses, for outbounds that cannot take names.
// [*net.Resolver] is one.
type Resolver interface {
	// LookupNetIP resolves host; network is "ip", "ip4" or "ip6". It blocks
	// until ctx ends.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}
