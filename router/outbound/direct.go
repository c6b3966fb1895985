package outbound

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/relay"
)

// DefaultConnect is how long a TCP connect may take. Linux sends its SYN at 0,
// 1, 3 and 7 seconds: 10 s lets three be lost and the fourth be answered.
const DefaultConnect = 10 * time.Second

// attemptDelay is how long one address of a name has for itself before the next
// one is tried beside it (RFC 8305 §5: "Connection Attempt Delay", 250 ms).
const attemptDelay = 250 * time.Millisecond

// keepAlive finds a far end that is gone without a word after three minutes: a
// flow without traffic costs a packet a minute, which also keeps it in the
// tables of most NATs.
var keepAlive = net.KeepAliveConfig{
	Enable:   true,
	Idle:     60 * time.Second,
	Interval: 15 * time.Second,
	Count:    8,
}

// DirectOptions say how [Direct] opens its sockets. The zero value is in order,
// but for names a Resolver is needed.
type DirectOptions struct {
	// Bind is the source address of all sockets; only targets of its
	// family can be reached then. The zero Addr leaves it to the kernel.
	Bind netip.Addr
	// Interface binds all sockets to an interface, by name; "" to none.
	// Linux only.
	Interface string
	// Mark is the firewall mark of all sockets, SO_MARK; 0 sets none. It
	// needs CAP_NET_ADMIN. Linux only.
	Mark uint32

	// Resolver resolves the names of targets. If it is nil, a target that
	// has no address is refused: nothing asks the system's resolver behind
	// the back of whoever chose the names to stay private.
	Resolver Resolver
	// Deny is true for addresses that must never leave this process: those
	// that stand for names. It is asked about every address, also about one
	// that the Resolver found, at packet tempo. Nil denies nothing.
	Deny func(netip.Addr) bool

	// Track, if not nil, is told of every TCP connection before it is opened, with
	// the context of its dial, and what it returns hears of what becomes of it. It
	// may not block.
	Track func(ctx context.Context, to netip.AddrPort) Tracked

	// Connect limits a whole DialTCP, look-up and all addresses, and the
	// look-up of a Prepare; 0 is DefaultConnect.
	Connect time.Duration
}

// Tracked is a connection that somebody wants to know of: see [DirectOptions].
type Tracked interface {
	// Opened says that it is open, and what its own end is.
	Opened(local netip.AddrPort)
	// Close says that it is no more, or could not be opened. It may be called
	// more than once.
	Close()
}

// Direct is the outbound that connects to the target itself.
type Direct struct {
	opts    DirectOptions
	network string // "ip", or the family of Bind
	dialer  net.Dialer
}

var (
	_ Dialer       = (*Direct)(nil)
	_ PacketDialer = (*Direct)(nil)
)

// NewDirect returns a Direct. It opens nothing. An option that this system does
// not have is an errors.ErrUnsupported.
func NewDirect(o DirectOptions) (*Direct, error) {
	if err := checkSocketOptions(o); err != nil {
		return nil, err
	}
	if o.Connect == 0 {
		o.Connect = DefaultConnect
	}
	o.Bind = o.Bind.Unmap()
	d := &Direct{opts: o, network: "ip"}
	d.dialer.KeepAliveConfig = keepAlive
	d.dialer.Control = d.Control
	if o.Bind.IsValid() {
		d.dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.Bind, 0))
		d.network = "ip6"
		if o.Bind.Is4() {
			d.network = "ip4"
		}
	}
	return d, nil
}

// DialTCP connects to t. If a name has several addresses it tries all of them,
// each when the one before it has failed or has had a quarter of a second, and
// returns the first connection. It is a *net.TCPConn, without Nagle's delay and
// with keep-alive; or a [Relayed] one above it, where connections are tracked.
func (d *Direct) DialTCP(ctx context.Context, t flow.Target) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.opts.Connect)
	defer cancel()
	addrs, err := d.resolve(ctx, t)
	if err != nil {
		return nil, err
	}
	conn, err := d.race(ctx, addrs, t.Port)
	if err != nil {
		if t.Name != "" {
			err = fmt.Errorf("%s: %w", t.Name, err)
		}
		return nil, err
	}
	if to, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		FlowOf(ctx).Reached(t, to.AddrPort().Addr())
	}
	return conn, nil
}

// resolve is the package's resolve for what our sockets can reach.
func (d *Direct) resolve(ctx context.Context, t flow.Target) ([]netip.Addr, error) {
	t = unname(t)
	if t.Addr.IsValid() && d.opts.Bind.IsValid() && t.Addr.Is4() != d.opts.Bind.Is4() {
		return nil, fmt.Errorf("%s cannot be reached from %s: %w", t.Addr, d.opts.Bind, syscall.ENETUNREACH)
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Connect)
	defer cancel()
	return resolve(ctx, d.opts.Resolver, d.network, t, d.opts.Deny)
}

// race connects to the first address that answers (RFC 8305 §5). When it
// returns, the other attempts have ended too.
func (d *Direct) race(ctx context.Context, addrs []netip.Addr, port uint16) (Conn, error) {
	if len(addrs) == 1 {
		return d.dial(ctx, addrs[0], port)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type result struct {
		conn Conn
		err  error
	}
	results := make(chan result)
	running := 0
	next := func() {
		a := addrs[0]
		addrs = addrs[1:]
		running++
		go func() {
			conn, err := d.dial(ctx, a, port)
			results <- result{conn, err}
		}()
	}
	next()
	delay := time.NewTimer(attemptDelay)
	defer delay.Stop()

	var won Conn
	var told error
	for running > 0 {
		select {
		case <-delay.C:
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				told = moreTelling(told, r.err)
			case won == nil:
				won = r.conn
				cancel()
			default: // two answered at once
				r.conn.Close()
			}
		}
		if won == nil && len(addrs) > 0 && ctx.Err() == nil {
			next()
			delay.Reset(attemptDelay)
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, told
}

// dial connects to one address.
func (d *Direct) dial(ctx context.Context, a netip.Addr, port uint16) (Conn, error) {
	to := netip.AddrPortFrom(a, port)
	var tracked Tracked
	if d.opts.Track != nil {
		tracked = d.opts.Track(ctx, to)
	}
	conn, err := d.dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		if tracked != nil {
			tracked.Close()
		}
		return nil, err
	}
	socket := conn.(*net.TCPConn)
	if tracked == nil {
		return socket, nil
	}
	tracked.Opened(socket.LocalAddr().(*net.TCPAddr).AddrPort())
	return &trackedConn{socket, tracked}, nil
}

// trackedConn is a connection whose end somebody wants to know of.
type trackedConn struct {
	Conn
	tracked Tracked
}

var _ Relayed = (*trackedConn)(nil)

// Socket implements [Relayed].
func (c *trackedConn) Socket() Conn { return c.Conn }

func (c *trackedConn) Close() error {
	c.tracked.Close()
	return c.Conn.Close()
}

// Reset ends the connection by a RST.
func (c *trackedConn) Reset() {
	c.tracked.Close()
	relay.Reset(c.Conn)
}

// moreTelling returns the error that says more about a target of which several
// addresses were tried: that one refused shows that the host is there, and that
// the network cannot be reached often only that this machine lacks a family.
// The first may be nil.
func moreTelling(a, b error) error {
	rank := func(err error) int {
		if err == nil {
			return -1
		}
		switch Errno(err) {
		case syscall.ENETUNREACH:
			return 0
		case syscall.ECONNREFUSED:
			return 2
		}
		return 1
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// OpenUDP opens one socket for both families, or for that of Bind. It does not
// block.
func (d *Direct) OpenUDP(ctx context.Context) (PacketConn, error) {
	lc := net.ListenConfig{Control: d.Control}
	local := ":0"
	if d.opts.Bind.IsValid() {
		local = netip.AddrPortFrom(d.opts.Bind, 0).String()
	}
	conn, err := lc.ListenPacket(ctx, "udp", local)
	if err != nil {
		return nil, err
	}
	c := &directUDP{d: d, conn: conn.(*net.UDPConn)}
	growUDPBuffers(c.conn)
	if c.sender, err = newUDPSender(c.conn); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// udpBuffer is what a UDP socket may hold of datagrams that nobody has read yet,
// or that the interface has not sent, in bytes as the kernel counts: 768 for the
// smallest. What comes in 20 ms at 70,000 a second has room, which is how long a
// busy machine may keep us waiting; Linux's 208 KiB are 4 ms. It is a limit, no
// memory; all sockets of the machine together are limited by net.ipv4.udp_mem.
const udpBuffer = 1 << 20

// directUDP is a UDP socket that is not connected, so that anybody may answer.
type directUDP struct {
	d      *Direct
	conn   *net.UDPConn
	sender *udpSender
	reader *udpReader // made by the first ReadBatch
}

var (
	_ Queuer      = (*directUDP)(nil)
	_ BatchReader = (*directUDP)(nil)
)

func (c *directUDP) Prepare(ctx context.Context, t flow.Target) (flow.Target, error) {
	t = unname(t)
	addrs, err := c.d.resolve(ctx, t)
	if err != nil {
		return flow.Target{}, err
	}
	t.Addr = addrs[0]
	if len(addrs) > 1 {
		// A datagram that has no way out is lost, so find one that has.
		if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { _, err := c.d.routed(ctx, a); return err == nil }); i >= 0 {
			t.Addr = addrs[i]
		}
	}
	return t, nil
}

// routed returns the address from which our sockets go to a, or why they have no way
// there. Connecting a UDP socket asks the kernel that and sends nothing.
func (d *Direct) routed(ctx context.Context, a netip.Addr) (netip.Addr, error) {
	probe := net.Dialer{Control: d.Control}
	if d.opts.Bind.IsValid() {
		probe.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.opts.Bind, 0))
	}
	const discard = 9 // the port does not matter to the route, but 0 is refused by some systems
	conn, err := probe.DialContext(ctx, "udp", netip.AddrPortFrom(a, discard).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// WriteTo runs at packet tempo.
func (c *directUDP) WriteTo(payload []byte, t flow.Target) error {
	if err := c.check(t); err != nil {
		return err
	}
	return c.sender.send(payload, t.AddrPort())
}

// check says why nothing can be sent to t.
func (c *directUDP) check(t flow.Target) error {
	if !t.Addr.IsValid() {
		return fmt.Errorf("%s: %w", t.Name, errUnprepared)
	}
	return refusal(t.Addr.Unmap(), c.d.opts.Deny)
}

// Queue implements [Queuer].
func (c *directUDP) Queue(payload []byte, t flow.Target) error { return c.queue(nil, payload, t) }

func (c *directUDP) queue(head, payload []byte, t flow.Target) error {
	if err := c.check(t); err != nil {
		return err
	}
	return c.sender.queue(head, payload, t.AddrPort())
}

// Flush implements [Queuer].
func (c *directUDP) Flush() { _ = c.sender.flush() }

// ReadFrom runs at packet tempo.
func (c *directUDP) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.conn.ReadFromUDPAddrPort(b)
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// ReadBatch implements [BatchReader]. Packet tempo.
func (c *directUDP) ReadBatch(take func(payloads [][]byte, from []netip.AddrPort)) error {
	if c.reader == nil {
		r, err := newUDPReader(c.conn)
		if err != nil {
			return err
		}
		c.reader = r
	}
	return c.reader.ReadBatch(take)
}

func (c *directUDP) Close() error { return c.conn.Close() }
