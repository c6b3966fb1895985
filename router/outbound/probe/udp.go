package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunroute/router/socks"
)

// again is after how long a datagram is sent again. One may be lost.
const again = 200 * time.Millisecond

// zeros is the address of an associate request: we do not know what the server will see
// (RFC 1928 §7). danted takes its family for that of the relay.
func (p *prober) zeros() []byte {
	if p.server.Is6() {
		return addrDst(netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
	}
	return addrDst(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
}

func udp(ctx context.Context, p *prober) Row {
	got := p.told(ctx, request(associate, p.zeros()))
	return offered("UDP ASSOCIATE", got)
}

// offered is the row of a command that a server may do without.
func offered(sent string, got answer) Row {
	v := said(got, map[string]Verdict{success: OK, "reply 7": No, silence: Bad, other: Bad})
	note := ""
	if got.token == closed {
		v, note = No, "without a reply"
	}
	return row(sent, got, v, note)
}

// association is an open association of a row.
type association struct {
	p       *prober
	control *link
	relay   netip.AddrPort
	target  netip.AddrPort
	socket  net.PacketConn
	sink    *sink // ours, where target is; nil for that of the user
	stop    func() bool
	seq     uint16
}

// associate opens one, or says why it cannot.
func (p *prober) associate(ctx context.Context) (*association, string) {
	if p.NoUDP != "" {
		return nil, p.NoUDP
	}
	l, got := p.ask(ctx, request(associate, p.zeros()))
	if l == nil {
		return nil, "no connection: " + got.token
	}
	a := &association{p: p, control: l, target: p.UDPTarget}
	why := "no UDP: " + got.token
	if got.token == success {
		why = a.open(ctx, got.bound)
	}
	if why != "" {
		a.close()
		return nil, why
	}
	return a, ""
}

func (a *association) open(ctx context.Context, bound socks.Addr) string {
	ip := bound.IP
	if bound.Name != "" {
		return "the relay has a name"
	}
	if ip.IsUnspecified() {
		ip = a.p.server
	}
	switch {
	case !ip.IsValid() || bound.Port == 0:
		return "the relay has no address"
	case ip != a.p.server: // anybody's, if the server lies
		return "the relay is at another address than the server, to which nothing is sent"
	}
	a.relay = netip.AddrPortFrom(ip, bound.Port)
	var err error
	if a.socket, err = a.p.openUDP(unspecified(ip)); err != nil {
		return "cannot open a socket: " + err.Error()
	}
	for _, self := range []netip.Addr{a.p.reached4, a.p.reached6} {
		if self.IsValid() && a.sink == nil {
			if c, err := a.p.openUDP(self); err == nil {
				a.sink = newSink(c)
				a.target = netip.AddrPortFrom(self, portOf(c.LocalAddr()))
			}
		}
	}
	if !a.target.IsValid() {
		return "the server does not reach us: name a resolver or an echo that it reaches with --udp ADDRESS:PORT"
	}
	a.stop = context.AfterFunc(ctx, func() { a.socket.Close() })
	return ""
}

func (a *association) close() {
	a.control.close()
	if a.stop != nil {
		a.stop()
	}
	if a.socket != nil {
		a.socket.Close()
	}
	if a.sink != nil {
		a.sink.close()
	}
}

// datagram returns a new one, for the relay and as the target gets it: a query for the
// root's name servers, so that a resolver answers as well as an echo. Its ID, which comes
// back with both, is never the same.
func (a *association) datagram(frag byte) (packet, payload []byte) {
	a.seq++
	payload = binary.BigEndian.AppendUint16(nil, a.seq)
	payload = append(payload, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1) // RFC 1035 §4.1: ". NS"
	packet = append([]byte{0, 0, frag}, addrDst(a.target)...)
	return append(packet, payload...), payload
}

// arrived says whether a datagram has come to the target. Of a target of the user that
// is known by its answer.
func (a *association) arrived(payload []byte, answered map[uint16]bool) bool {
	if a.sink != nil {
		return a.sink.has(payload)
	}
	return answered[binary.BigEndian.Uint16(payload)]
}

// listen reads what the relay sends, notes which datagrams are answered, and returns when
// one is whose ID is not below least, with the sender as the relay tells it.
func (a *association) listen(c net.PacketConn, until time.Time, least uint16, answered map[uint16]bool) (from socks.Addr, ok bool, err error) {
	b := make([]byte, 2048)
	c.SetReadDeadline(until)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return socks.Addr{}, false, err
		}
		h, payload, err := socks.ParseUDP(b[:n])
		if err != nil || len(payload) < 2 {
			continue
		}
		id := binary.BigEndian.Uint16(payload)
		answered[id] = true
		if id >= least {
			from := socks.Addr{IP: h.Addr.Addr(), Port: h.Addr.Port()}
			if h.Name != nil {
				from.Name = nameOf(len(h.Name))
			}
			return from, true, nil
		}
	}
}

// exchange sends datagrams until one is answered, or until the limit.
func (a *association) exchange(ctx context.Context, answered map[uint16]bool) (from socks.Addr, ok bool) {
	least := a.seq + 1
	for end := time.Now().Add(a.p.Limit); time.Now().Before(end) && ctx.Err() == nil; {
		packet, _ := a.datagram(0)
		begun := time.Now()
		a.socket.WriteTo(packet, net.UDPAddrFromAddrPort(a.relay))
		from, ok, err := a.listen(a.socket, begun.Add(again), least, answered)
		if ok {
			return from, true
		}
		if !isTimeout(err) { // ICMP, on systems that tell it here
			wait(ctx, time.Until(begun.Add(again)))
		}
	}
	return socks.Addr{}, false
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func udpAddress(ctx context.Context, p *prober) Row {
	const sent = "two associations, for the address of the relay"
	a, got := p.ask(ctx, request(associate, p.zeros()))
	if a != nil {
		defer a.close()
	}
	if got.token != success {
		return row(sent, answer{}, Unknown, "no UDP: "+got.token)
	}
	b, second := p.ask(ctx, request(associate, p.zeros()))
	if b != nil {
		defer b.close()
	}
	r := row(sent, answer{token: "own port", detail: got.bound.String()}, OK, "")
	if second.token == success && second.bound == got.bound {
		r.Answer = "shared port"
	}
	switch ip := got.bound.IP; {
	case got.bound.Port == 0:
		r.Verdict, r.Note = Bad, "there is no port 0"
	case got.bound.Name != "":
		r.Verdict, r.Note = Odd, "a name, which we resolve"
	case ip.IsUnspecified():
		r.Verdict, r.Note = Odd, "taken for the server's own address"
	case p.server.IsValid() && ip != p.server:
		r.Verdict, r.Note = Odd, "another address than the server's: behind a NAT it may lead nowhere"
	}
	return r
}

func udpEcho(ctx context.Context, p *prober) Row {
	const sent = "datagrams that are answered"
	a, why := p.associate(ctx)
	if a == nil {
		return row(sent, answer{}, Unknown, why)
	}
	defer a.close()
	from, ok := a.exchange(ctx, make(map[uint16]bool))
	switch {
	case !ok && a.sink != nil && a.sink.heard():
		return row(sent, answer{token: "lost"}, Bad, "they arrive, and the answers do not come back")
	case !ok && a.sink != nil:
		return row(sent, answer{token: "lost"}, Bad, "they do not arrive")
	case !ok:
		return row(sent, answer{token: "lost"}, Unknown, "if the target answers DNS queries, they or the answers are lost")
	}
	r := row(sent, answer{token: "answered", detail: "from " + from.String()}, OK, "")
	if from.Name != "" || from.IP != a.target.Addr() || from.Port != a.target.Port() {
		r.Verdict, r.Note = Odd, "the relay names another sender than the target"
	}
	return r
}

// beside is the row of a datagram that should not be relayed: which is seen when one that
// is sent behind it is.
func (p *prober) beside(ctx context.Context, sent string, odd func(a *association, packet []byte, answered map[uint16]bool), frag byte, seen, unseen Row) Row {
	a, why := p.associate(ctx)
	if a == nil {
		return row(sent, answer{}, Unknown, why)
	}
	defer a.close()
	answered := make(map[uint16]bool)
	if _, ok := a.exchange(ctx, answered); !ok {
		return row(sent, answer{}, Unknown, "no datagram is answered")
	}
	var sentOdd [][]byte
	for range 3 { // one may be lost
		packet, payload := a.datagram(frag)
		sentOdd = append(sentOdd, payload)
		odd(a, packet, answered)
		if _, ok := a.exchange(ctx, answered); !ok {
			return row(sent, answer{token: "lost"}, Bad, "after it nothing is answered")
		}
	}
	for _, payload := range sentOdd {
		if a.arrived(payload, answered) {
			seen.Sent = sent
			return seen
		}
	}
	unseen.Sent = sent
	return unseen
}

func udpSource(ctx context.Context, p *prober) Row {
	return p.beside(ctx, "a datagram from another port of ours", func(a *association, packet []byte, answered map[uint16]bool) {
		c, err := p.openUDP(unspecified(a.relay.Addr()))
		if err != nil {
			return
		}
		defer c.Close()
		c.WriteTo(packet, net.UDPAddrFromAddrPort(a.relay))
		if a.sink == nil { // an answer may come to that port
			a.listen(c, time.Now().Add(again), 0xFFFF, answered)
		}
	}, 0, Row{Answer: "relayed", Verdict: Odd, Note: "whoever knows the port of the relay can send through it"},
		Row{Answer: "ignored", Verdict: OK})
}

func udpFragment(ctx context.Context, p *prober) Row {
	return p.beside(ctx, "a datagram that is a fragment (FRAG 1)", func(a *association, packet []byte, _ map[uint16]bool) {
		a.socket.WriteTo(packet, net.UDPAddrFromAddrPort(a.relay))
	}, 1, Row{Answer: "relayed", Verdict: Bad, Note: "a part is taken for the whole; tunroute sends none"},
		Row{Answer: "dropped", Verdict: OK})
}

// udpClose sends on when the connection of the association is closed: RFC 1928 §7 has it
// end then.
func udpClose(ctx context.Context, p *prober) Row {
	const sent = "datagrams after the end of the connection"
	a, why := p.associate(ctx)
	if a == nil {
		return row(sent, answer{}, Unknown, why)
	}
	defer a.close()
	answered := make(map[uint16]bool)
	if _, ok := a.exchange(ctx, answered); !ok {
		return row(sent, answer{}, Unknown, "no datagram is answered")
	}
	a.control.close()
	// The server needs a moment to see the end, and datagrams may be lost or late; if as
	// many are in a row, the association has ended.
	const many = 10
	missed := 0
	for end := time.Now().Add(p.Limit); time.Now().Before(end) && missed < many && ctx.Err() == nil; {
		packet, _ := a.datagram(0)
		before, begun := len(answered), time.Now()
		a.socket.WriteTo(packet, net.UDPAddrFromAddrPort(a.relay))
		a.listen(a.socket, begun.Add(again), a.seq, answered)
		wait(ctx, time.Until(begun.Add(again)))
		missed++
		if len(answered) > before {
			missed = 0
		}
	}
	if missed >= many {
		return row(sent, answer{token: "ended"}, OK, "")
	}
	return row(sent, answer{token: "relayed"}, Odd, "the association outlives its connection; tunroute closes its own end")
}

// sink is our end of UDP: it sends back what comes, and remembers it.
type sink struct {
	conn net.PacketConn
	work sync.WaitGroup
	mu   sync.Mutex // guards got
	got  map[string]bool
}

// maxRemembered is more than a row sends.
const maxRemembered = 4096

func newSink(c net.PacketConn) *sink {
	s := &sink{conn: c, got: make(map[string]bool)}
	s.work.Go(func() {
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			s.mu.Lock()
			if len(s.got) < maxRemembered {
				s.got[string(b[:n])] = true
			}
			s.mu.Unlock()
			c.WriteTo(b[:n], from)
		}
	})
	return s
}

func (s *sink) has(payload []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[string(payload)]
}

func (s *sink) heard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.got) > 0
}

func (s *sink) close() {
	s.conn.Close()
	s.work.Wait()
}

// bindRow asks for a port of the server's and connects to it.
func bindRow(ctx context.Context, p *prober) Row {
	ip := p.self4
	if p.reached6.IsValid() && !p.reached4.IsValid() || !ip.IsValid() {
		ip = p.self6
	}
	if !ip.IsValid() {
		ip = nowhere.ip
	}
	l, got := p.ask(ctx, request(bind, addrDst(netip.AddrPortFrom(ip, 0))))
	if l == nil {
		return row("BIND", got, Unknown, "")
	}
	defer l.close()
	r := offered("BIND", got)
	if got.token != success {
		return r
	}
	at := netip.AddrPortFrom(p.server, got.bound.Port)
	if ip := got.bound.IP; !p.server.IsValid() || !ip.IsUnspecified() && ip != p.server {
		r.Note = "the port is at another address than the server, to which nothing is sent"
		return r
	}
	limited, cancel := context.WithTimeout(ctx, p.Limit)
	defer cancel()
	peer, err := new(net.Dialer).DialContext(limited, "tcp", at.String())
	if err != nil {
		r.Verdict, r.Note = Odd, "we do not reach the port that it gave"
		return r
	}
	defer peer.Close()
	second := l.reply()
	if second.token != success {
		r.Verdict, r.Note = Bad, "its second reply, when the peer had come: "+second.token
		return r
	}
	const hello = "a probe of tunroute\n"
	peer.SetDeadline(time.Now().Add(p.Limit))
	peer.Write([]byte(hello))
	b := make([]byte, len(hello))
	if _, err := l.take(b); err != nil || string(b) != hello {
		r.Verdict, r.Note = Bad, "what the peer says does not come through"
		return r
	}
	r.Note = "and the peer comes through"
	return r
}
