package outbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"tunroute/router/flow"
	"tunroute/router/gssapi"
	"tunroute/router/socks"
)

// maxDatagram is the longest UDP payload that IPv6 has without jumbograms,
// 65535 less a UDP header; IPv4 has 20 less.
const maxDatagram = 65535 - 8

// OpenUDP opens a SOCKS5 association (RFC 1928 §7): a connection to the server,
// which lives as long as the association, and a UDP conversation through Via
// with the relay that the server names. Through a chain the datagrams carry one
// header for each hop.
//
// It is an [ErrNoUDP] if the server is a SOCKS4 one, if it answers "command not
// supported", or hangs up and has never given an association, and if a hop before it
// does. So it is if the server is spoken to over a unix socket: its relay takes
// datagrams from the address that the request came from (RFC 1928 §7), and there is
// none. And over TLS, because the datagrams would go beside it, for everybody to read.
// What GSSAPI protects are the datagrams as well.
func (s *Socks) OpenUDP(ctx context.Context) (PacketConn, error) {
	if s.opts.Version != socks.Version5 {
		return nil, s.hopError(opRequest, fmt.Errorf("SOCKS4: %w", ErrNoUDP))
	}
	via, ok := s.via.(PacketDialer)
	switch {
	case s.overUnix():
		return nil, s.hopError(opRequest, fmt.Errorf("over a unix socket: %w", ErrNoUDP))
	case s.tls != nil:
		return nil, s.hopError(opRequest, fmt.Errorf("over TLS: %w", ErrNoUDP))
	case !ok:
		return nil, s.hopError(opConnect, ErrNoUDP)
	}
	// The nearest hop is asked first: if it carries no UDP, the others are
	// spared the connection.
	relay, err := via.OpenUDP(ctx)
	if err != nil {
		return nil, s.viaError(err)
	}
	a, err := s.associate(ctx, relay)
	if err != nil {
		relay.Close()
		return nil, err
	}
	return a, nil
}

// associate asks the server for a relay, which we reach through relay.
func (s *Socks) associate(ctx context.Context, relay PacketConn) (*association, error) {
	control, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	server := s.serverSeen(control)
	// We do not know the address that the server will see our datagrams come
	// from: RFC 1928 §7 wants zeros then, and the target has no business
	// here. danted takes their family for that of the relay, and refuses
	// (reply 8) one that it does not listen at.
	zeros := netip.IPv4Unspecified()
	if server.Addr.Is6() {
		zeros = netip.IPv6Unspecified()
	}
	request, err := socks.AppendRequest(nil, socks.UDPAssociate, socks.Addr{IP: zeros})
	if err != nil {
		control.Close()
		return nil, s.hopError(opRequest, err)
	}
	control, bound, err := s.exchange(ctx, control, request)
	if err != nil {
		var hop *HopError
		if errors.As(err, &hop) && hop.Op == opRequest && (errors.Is(err, socks.ReplyCommand) || HungUp(err) && !s.associated.Load()) {
			hop.Err = fmt.Errorf("%w: %w", ErrNoUDP, hop.Err)
		}
		return nil, err
	}
	s.associated.Store(true)
	to, err := relayTarget(bound, server)
	if err == nil {
		to, err = relay.Prepare(ctx, to)
	}
	if err != nil {
		control.Close()
		return nil, s.hopError(opRequest, fmt.Errorf("relay %s: %w", bound, err))
	}
	a := &association{s: s, control: control, relay: relay, batches: Batches(relay), to: to, done: make(chan struct{})}
	if c, ok := control.(*gssapi.Conn); ok {
		a.protect = c.Datagrams()
	}
	a.queuer, _ = relay.(headQueuer)
	a.unpack = a.unpackBatch
	if to.Addr.IsValid() {
		a.from = to.AddrPort()
	}
	go a.watch()
	return a, nil
}

// serverSeen returns the server as a connection to it found it. In a chain the
// connection's own address is that of the first hop.
func (s *Socks) serverSeen(conn Conn) flow.Target {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && len(s.hops) == 1 {
		return flow.AddrTarget(tcp.AddrPort())
	}
	return s.server
}

// relayTarget returns where a server takes our datagrams that says bound. An
// unspecified address means "here, where you talk to me": it is what most servers
// send that did not bind their relay to an address.
func relayTarget(bound socks.Addr, server flow.Target) (flow.Target, error) {
	switch {
	case bound.Port == 0:
		return flow.Target{}, fmt.Errorf("%w: port 0", socks.ErrProtocol)
	case bound.Name != "":
		return flow.NewTarget(bound.Name, bound.Port)
	case bound.IP.IsValid() && !bound.IP.IsUnspecified():
		return flow.Target{Addr: bound.IP, Port: bound.Port}, nil
	}
	server.Port = bound.Port
	return server, nil
}

// association is an open SOCKS5 UDP association.
type association struct {
	s       *Socks
	control Conn
	relay   PacketConn
	queuer  headQueuer // relay, if it is one
	batches BatchReader
	protect *gssapi.Datagrams // nil where datagrams are sent as they are
	to      flow.Target       // where the server takes datagrams
	from    netip.AddrPort    // where they come from; the reader's, which learns it if to is a name

	closed, lost atomic.Bool   // by us, by the server
	done         chan struct{} // closed when watch has returned

	unpack, take func(payloads [][]byte, from []netip.AddrPort) // the reader's: unpackBatch, and who gets what it unpacks
}

// headQueuer is a [Queuer] that puts a datagram together from two parts.
type headQueuer interface {
	Queuer
	queue(head, payload []byte, t flow.Target) error
}

var (
	_ headQueuer  = (*directUDP)(nil)
	_ headQueuer  = (*association)(nil)
	_ BatchReader = (*association)(nil)
)

// watch ends the association when its control connection ends (RFC 1928 §7).
func (a *association) watch() {
	defer close(a.done)
	b := make([]byte, 64) // nothing is due here; what comes is ignored
	for {
		if _, err := a.control.Read(b); err != nil {
			break
		}
	}
	a.lost.Store(true)
	a.control.Close()
	a.relay.Close()
}

// Close ends both the control connection and the datagrams. It waits until
// nothing is left of the association.
func (a *association) Close() error {
	a.closed.Store(true)
	a.control.Close()
	a.relay.Close()
	<-a.done
	return nil
}

// ended says why reading or writing failed.
func (a *association) ended(err error) error {
	switch {
	case a.closed.Load():
		return net.ErrClosed
	case a.lost.Load():
		return fmt.Errorf("%s: the server ended the UDP association", a.s.opts.Name)
	}
	return err
}

// Prepare leaves a name to the server if it takes names. Of several addresses
// that are found here it takes an IPv4 one if there is one: more servers have
// IPv4 than IPv6, and a datagram that a server cannot send is lost in silence.
func (a *association) Prepare(ctx context.Context, t flow.Target) (flow.Target, error) {
	addrs, err := a.s.addresses(ctx, t)
	if err != nil {
		return flow.Target{}, err
	}
	t = unname(t)
	if addrs[0].Name != "" {
		return t, nil
	}
	t.Addr = addrs[0].IP
	for _, addr := range addrs {
		if addr.IP.Is4() {
			t.Addr = addr.IP
			break
		}
	}
	return t, nil
}

// WriteTo runs at packet tempo. A payload that does not fit into a datagram with
// the header before it is an EMSGSIZE.
func (a *association) WriteTo(payload []byte, t flow.Target) error {
	buf := a.s.buffers.Get().(*[]byte)
	defer a.s.buffers.Put(buf)
	b, err := a.appendHeader((*buf)[:0], t)
	if err != nil {
		return err
	}
	if len(b)+len(payload) > maxDatagram {
		return syscall.EMSGSIZE
	}
	if a.protect != nil {
		return a.sendProtected(append(b, payload...), false)
	}
	if err := a.relay.WriteTo(append(b, payload...), a.to); err != nil {
		return a.ended(err)
	}
	return nil
}

// sendProtected sends or queues a datagram with its header, wrapped.
func (a *association) sendProtected(datagram []byte, queue bool) error {
	buf := a.s.buffers.Get().(*[]byte)
	defer a.s.buffers.Put(buf)
	b, err := a.protect.Seal((*buf)[:0], datagram)
	switch {
	case err != nil:
		return err
	case len(b) > maxDatagram:
		return syscall.EMSGSIZE
	case queue && a.queuer != nil:
		err = a.queuer.queue(nil, b, a.to)
	default:
		err = a.relay.WriteTo(b, a.to)
	}
	if err != nil {
		return a.ended(err)
	}
	return nil
}

// appendHeader appends what the server wants before a datagram to t.
func (a *association) appendHeader(b []byte, t flow.Target) ([]byte, error) {
	addr := socks.Addr{IP: t.Addr, Port: t.Port}
	switch {
	case a.s.opts.RemoteNames && t.Name != "":
		addr.Name = t.Name
	case !t.Addr.IsValid():
		return nil, fmt.Errorf("%s: %w", t.Name, errUnprepared)
	default:
		if err := refusal(t.Addr.Unmap(), a.s.opts.Deny); err != nil {
			return nil, err
		}
	}
	return socks.AppendUDPHeader(b, addr)
}

// Queue implements [Queuer]. Packet tempo.
func (a *association) Queue(payload []byte, t flow.Target) error { return a.queue(nil, payload, t) }

func (a *association) queue(head, payload []byte, t flow.Target) error {
	buf := a.s.buffers.Get().(*[]byte)
	defer a.s.buffers.Put(buf)
	b, err := a.appendHeader((*buf)[:0], t)
	if err != nil {
		return err
	}
	if len(b)+len(head)+len(payload) > maxDatagram {
		return syscall.EMSGSIZE
	}
	b = append(b, head...)
	if a.protect != nil {
		return a.sendProtected(append(b, payload...), true)
	}
	if a.queuer != nil {
		err = a.queuer.queue(b, payload, a.to)
	} else {
		err = a.relay.WriteTo(append(b, payload...), a.to)
	}
	if err != nil {
		return a.ended(err)
	}
	return nil
}

// Flush implements [Queuer].
func (a *association) Flush() {
	if a.queuer != nil {
		a.queuer.Flush()
	}
}

// ReadFrom runs at packet tempo. It reads straight into b if that holds any
// datagram with its header, so that a conversation which waits owns no buffer.
func (a *association) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	buf := b
	if len(b) < maxDatagram {
		p := a.s.buffers.Get().(*[]byte)
		defer a.s.buffers.Put(p)
		buf = *p
	}
	for {
		n, from, err := a.relay.ReadFrom(buf)
		if err != nil {
			return 0, netip.AddrPort{}, a.ended(err)
		}
		if payload, from, ok := a.parse(buf[:n], from); ok {
			return copy(b, payload), from, nil
		}
	}
}

// ReadBatch implements [BatchReader]. Packet tempo.
func (a *association) ReadBatch(take func(payloads [][]byte, from []netip.AddrPort)) error {
	a.take = take
	if err := a.batches.ReadBatch(a.unpack); err != nil {
		return a.ended(err)
	}
	return nil
}

// unpackBatch passes on what is within datagrams of the relay. It uses the slices
// of the batch, which are as long.
func (a *association) unpackBatch(datagrams [][]byte, from []netip.AddrPort) {
	n := 0
	for i, d := range datagrams {
		if payload, sender, ok := a.parse(d, from[i]); ok {
			datagrams[n], from[n] = payload, sender
			n++
		}
	}
	if n > 0 {
		a.take(datagrams[:n], from[:n])
	}
}

// parse returns what is within a datagram, unless it is to be dropped.
func (a *association) parse(datagram []byte, from netip.AddrPort) (payload []byte, _ netip.AddrPort, ok bool) {
	if !a.isRelay(from) {
		a.s.stats.strangers.Add(1)
		return nil, netip.AddrPort{}, false
	}
	if a.protect != nil {
		var err error
		if datagram, err = a.protect.Open(datagram); err != nil {
			a.s.stats.malformed.Add(1)
			return nil, netip.AddrPort{}, false
		}
	}
	h, payload, err := socks.ParseUDP(datagram)
	switch {
	case err != nil:
		a.s.stats.malformed.Add(1)
		return nil, netip.AddrPort{}, false
	case h.Frag != 0: // RFC 1928 §7: without reassembly it must be dropped
		a.s.stats.fragments.Add(1)
		return nil, netip.AddrPort{}, false
	}
	return payload, sender(h), true
}

// isRelay says whether a datagram comes from the server's relay. If we know the
// relay by name only, because a hop resolves it, it is who speaks first from
// its port.
func (a *association) isRelay(from netip.AddrPort) bool {
	if !a.from.IsValid() && from.Port() == a.to.Port {
		a.from = from
	}
	return from == a.from
}

// sender is who a datagram comes from as the server says it. A server that gives
// the name back that it was asked for says the port and no address.
func sender(h socks.UDPHeader) netip.AddrPort {
	if h.Name == nil {
		return h.Addr
	}
	ip := netip.IPv4Unspecified()
	if looksLikeAddress(h.Name) {
		if a, err := netip.ParseAddr(string(h.Name)); err == nil {
			ip = a.Unmap()
		}
	}
	return netip.AddrPortFrom(ip, h.Addr.Port())
}

// looksLikeAddress spares names the error that parsing them would allocate: an
// IPv4 address ends in a digit and an IPv6 address has a colon.
func looksLikeAddress(name []byte) bool {
	return len(name) > 0 && '0' <= name[len(name)-1] && name[len(name)-1] <= '9' || bytes.IndexByte(name, ':') >= 0
}
