package outbound_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// Limits of the dials that are fuzzed. Servers do what they do at whole seconds of a
// clock that runs only while all wait, so that nothing happens by chance.
const (
	fuzzNegotiate = 10*time.Second + time.Millisecond
	fuzzRequest   = 30*time.Second + 2*time.Millisecond
)

// liar is what the servers behind a connection say, whatever they are asked: each
// byte with the time at which it comes, and how it ends.
type liar struct {
	said []byte
	at   []time.Duration
	end  error // io.EOF, ECONNRESET, or nil for silence
	ends time.Duration
}

// The instructions of a script for a liar.
const (
	doHonest   = iota // the next message of an honest server, in one piece
	doBytewise        // the same, a second for each byte
	doRaw             // the next byte is a length, and so many bytes follow
	doPause           // the next byte is a time in seconds
	doLong            // a success with a name of 255 bytes for its address
	doFIN
	doRST
	doSilence
	instructions // others mean the remainder
)

// newLiar makes a liar of a script. honest are the messages of an honest server.
func newLiar(script []byte, honest []string) *liar {
	l := &liar{end: io.EOF}
	say := func(text string, pause time.Duration) {
		for i := range len(text) {
			l.said, l.at = append(l.said, text[i]), append(l.at, l.ends)
			l.ends += pause
		}
	}
	for len(script) > 0 {
		do := script[0] % instructions
		argument := 0
		if script = script[1:]; (do == doRaw || do == doPause) && len(script) > 0 {
			argument, script = int(script[0]), script[1:]
		}
		switch do {
		case doHonest, doBytewise:
			if len(honest) > 0 {
				say(honest[0], time.Duration(do)*time.Second) // doHonest is 0
				honest = honest[1:]
			}
		case doRaw:
			n := min(argument, len(script))
			say(string(script[:n]), 0)
			script = script[n:]
		case doPause:
			l.ends += time.Duration(argument) * time.Second
		case doLong:
			say("\x05\x00\x00\x03\xff"+strings.Repeat("a", 255)+"\x00\x50", 0)
		case doFIN:
			return l
		case doRST:
			l.end = syscall.ECONNRESET
			return l
		case doSilence:
			l.end = nil
			return l
		}
	}
	return l
}

// liarConn is a connection to a liar.
type liarConn struct {
	*liar
	start    time.Time
	deadline time.Time
	read     int
	closes   atomic.Int32
	closed   chan struct{}
	once     sync.Once
}

func newLiarConn(l *liar) *liarConn {
	return &liarConn{liar: l, start: time.Now(), closed: make(chan struct{})}
}

func (c *liarConn) Read(b []byte) (int, error) {
	for {
		var next time.Time // zero for never
		if c.read < len(c.said) {
			next = c.start.Add(c.at[c.read])
		} else if c.end != nil {
			next = c.start.Add(c.ends)
		}
		now := time.Now()
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		default:
		}
		if !c.deadline.IsZero() && !now.Before(c.deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if !next.IsZero() && !now.Before(next) {
			n := 0
			for n < len(b) && c.read < len(c.said) && !now.Before(c.start.Add(c.at[c.read])) {
				b[n] = c.said[c.read]
				n, c.read = n+1, c.read+1
			}
			if n > 0 || len(b) == 0 {
				return n, nil
			}
			return 0, c.end
		}
		var timer <-chan time.Time
		if next.IsZero() || !c.deadline.IsZero() && c.deadline.Before(next) {
			next = c.deadline
		}
		if !next.IsZero() {
			timer = time.After(next.Sub(now))
		}
		select {
		case <-timer:
		case <-c.closed:
		}
	}
}

func (c *liarConn) Write(b []byte) (int, error) { return len(b), nil }
func (c *liarConn) CloseWrite() error           { return nil }
func (c *liarConn) Close() error {
	c.closes.Add(1)
	c.once.Do(func() { close(c.closed) })
	return nil
}
func (c *liarConn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *liarConn) RemoteAddr() net.Addr               { return net.TCPAddrFromAddrPort(liarAddr) }
func (c *liarConn) SetDeadline(t time.Time) error      { c.deadline = t; return nil }
func (c *liarConn) SetReadDeadline(t time.Time) error  { c.deadline = t; return nil }
func (c *liarConn) SetWriteDeadline(t time.Time) error { return nil }

var liarAddr = netip.MustParseAddrPort("192.0.2.1:1080")

// liarWay is the way to a liar, and to its relay.
type liarWay struct {
	conn  *liarConn
	relay *liarRelay // nil for none
}

func (w liarWay) DialTCP(context.Context, flow.Target) (outbound.Conn, error) { return w.conn, nil }
func (w liarWay) OpenUDP(context.Context) (outbound.PacketConn, error)        { return w.relay, nil }

// The hops of a chain.
const (
	hop5 = iota
	hop5Login
	hop5Piped
	hop4
	hop4a
	hopHTTP
	hopKinds
)

// honest is what an honest server of each kind says.
var honest = [hopKinds][]string{
	hop5:      {takesNone, granted},
	hop5Login: {takesUser, userOK, granted},
	hop5Piped: {takesNone, granted},
	hop4:      {granted4},
	hop4a:     {granted4},
	hopHTTP:   {"HTTP/1.1 200 OK\r\n\r\n"},
}

// oracle reads what a liar says as the RFCs have it, at leisure. It knows when a dial
// through the hops succeeds and where the payload begins then, or that it does not.
type oracle struct {
	*liar
	pos int
	now time.Duration
}

// take returns the next n bytes, unless they come after a deadline or not at all.
func (o *oracle) take(n int, deadline time.Duration) []byte {
	end := o.pos + n
	if end > len(o.said) || o.at[end-1] > deadline {
		return nil
	}
	b := o.said[o.pos:end]
	o.pos, o.now = end, max(o.now, o.at[end-1])
	return b
}

// hop reads what one server says. refused tells that it gives the refusal of a target.
func (o *oracle) hop(kind int) (bound socks.Addr, ok, refused bool) {
	if kind < hop4 {
		method, limit := byte(0), o.now+fuzzNegotiate
		if kind == hop5Login {
			method = 2
		}
		if b := o.take(2, limit); b == nil || b[0] != 5 || b[1] != method {
			return bound, false, false
		}
		if kind == hop5Login {
			if b := o.take(2, limit); b == nil || b[0] != 1 && b[0] != 5 || b[1] != 0 {
				return bound, false, false
			}
		}
	}
	limit := o.now + fuzzRequest
	switch {
	case kind == hopHTTP:
		// The codec is tested for itself; here it says where the head ends.
		r := bytes.NewReader(o.said[o.pos:])
		rest, err := httpconnect.ReadReply(r)
		if err != nil {
			return bound, false, outbound.Errno(err) == syscall.ECONNREFUSED
		}
		return bound, o.take(len(o.said)-o.pos-r.Len()-len(rest), limit) != nil, false
	case kind >= hop4:
		b := o.take(8, limit)
		return bound, b != nil && b[0] == 0 && b[1] == 90, false
	}
	b := o.take(2, limit)
	if b == nil || b[0] != 5 || b[1] != 0 {
		return bound, false, b != nil && b[0] == 5 && b[1] == 5
	}
	n := 0
	switch b = o.take(2, limit); {
	case b == nil:
		return bound, false, false
	case b[1] == 1:
		n = 4
	case b[1] == 4:
		n = 16
	case b[1] == 3:
		length := o.take(1, limit)
		if length == nil {
			return bound, false, false
		}
		n = int(length[0])
	default:
		return bound, false, false
	}
	isName := b[1] == 3
	if b = o.take(n+2, limit); b == nil {
		return bound, false, false
	}
	bound.Port = binary.BigEndian.Uint16(b[n:])
	if isName {
		bound.Name = string(b[:n])
	} else {
		bound.IP, _ = netip.AddrFromSlice(b[:n])
		bound.IP = bound.IP.Unmap()
	}
	return bound, true, false
}

// fuzzHop returns the outbound of a kind through via.
func fuzzHop(t *testing.T, kind int, via outbound.Dialer) outbound.Dialer {
	server := flow.AddrTarget(liarAddr)
	if kind == hopHTTP {
		return must(outbound.NewHTTP(outbound.HTTPOptions{
			Name: "liar", Server: server, Via: via, Negotiate: fuzzNegotiate, Request: fuzzRequest,
		}))(t)
	}
	o := outbound.SocksOptions{
		Name: "liar", Server: server, Via: via, Negotiate: fuzzNegotiate, Request: fuzzRequest,
		Version: socks.Version5, RemoteNames: kind != hop4, Pipeline: kind == hop5Piped,
	}
	switch kind {
	case hop5Login:
		o.User, o.Password = "ann", "secret"
	case hop4, hop4a:
		o.Version = socks.Version4
	}
	return newSocks(t, o)
}

// FuzzDial dials through chains of servers that say what the input wants them to, when
// it wants them to. A dial ends at the very second at which it can be known to have
// succeeded, or else in the time that the limits allow; the client gets what came
// behind the replies, all of it and nothing else; it is told "refused" only if the
// last server has said so; and connections are closed, once.
//
// chain has a byte for each hop; giveUp, if not 0, is the half second at which the
// client goes away.
func FuzzDial(f *testing.F) {
	for kind := range byte(hopKinds) {
		whole := slices.Repeat([]byte{doHonest}, 3)
		for _, script := range [][]byte{
			append(whole, doRaw, 5, 'h', 'e', 'l', 'l', 'o'),
			{doBytewise, doBytewise, doBytewise, doRST},
			{doPause, 9, doHonest, doPause, 29, doHonest, doPause, 40, doRaw, 1, 'x'},
			{doPause, 11, doHonest, doHonest, doHonest},
			{doHonest, doPause, 31, doHonest, doHonest},
			{doSilence}, {doFIN}, {doRST}, {doHonest, doSilence}, {doHonest, doRST},
			{doHonest, doLong, doRaw, 2, 'o', 'k'},
			{doHonest, doRaw, 10, 5, 5, 0, 1, 0, 0, 0, 0, 0, 0},
			{doRaw, 3, 'H', 'T', 'T', doSilence},
			{doRaw, 2, 5, 255},
			{doRaw, 8, 0, 91, 0, 0, 0, 0, 0, 0},
		} {
			f.Add([]byte{kind}, byte(0), script)
			f.Add([]byte{hop5, kind}, byte(0), append([]byte{doHonest, doHonest}, script...))
			f.Add([]byte{kind, hop5}, byte(0), append(script, doHonest, doHonest))
			f.Add([]byte{kind}, byte(12), script)
		}
	}
	f.Fuzz(func(t *testing.T, chain []byte, giveUp byte, script []byte) {
		if len(chain) == 0 || len(chain) > 4 || len(script) > 4096 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzDial(t, chain, giveUp, script) })
	})
}

func fuzzDial(t *testing.T, chain []byte, giveUp byte, script []byte) {
	var says []string
	for _, b := range chain {
		says = append(says, honest[b%hopKinds]...)
	}
	l := newLiar(script, says)
	conn := newLiarConn(l)
	o := oracle{liar: l}
	var d outbound.Dialer = liarWay{conn: conn}
	ok, refused := true, false
	for i, b := range chain {
		kind := int(b % hopKinds)
		d = fuzzHop(t, kind, d)
		if ok {
			_, ok, refused = o.hop(kind)
			refused = refused && i == len(chain)-1
		}
	}
	limit := time.Duration(len(chain)) * (fuzzNegotiate + fuzzRequest)
	ctx := t.Context()
	if giveUp > 0 {
		left := time.Duration(giveUp)*time.Second + time.Second/2
		limit = min(limit, left)
		ok, refused = ok && o.now < left, refused && o.now < left
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}

	start := time.Now()
	c, err := d.DialTCP(ctx, flow.Target{Addr: netip.MustParseAddr("192.0.2.80"), Port: 80})
	took := time.Since(start)
	synctest.Wait()
	if (err == nil) != ok {
		t.Fatalf("error %v, want success: %v", err, ok)
	}
	closes := conn.closes.Load()
	if err != nil {
		if took > limit {
			t.Errorf("it took %v, with limits of %v", took, limit)
		}
		if got := outbound.Errno(err) == syscall.ECONNREFUSED; got != refused {
			t.Errorf("the client is told that it was refused: %v, want %v (%v)", got, refused, err)
		}
		if outbound.Errno(err) == 0 {
			t.Errorf("the client is told nothing of %v", err)
		}
		if closes == 0 || closes > 1 && ctx.Err() == nil {
			t.Errorf("closed %d times, want once", closes)
		}
		return
	}
	if took != o.now {
		t.Errorf("it took %v, and could be known after %v", took, o.now)
	}
	if closes != 0 {
		t.Error("a connection in use was closed")
	}
	want := l.said[o.pos:]
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %q, %v, want %q", got[:n], err, want)
	}
	if l.end != nil {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != l.end {
			t.Errorf("read %d, %v behind the end, want %v", n, err, l.end)
		}
	}
	c.Close()
	if closes := conn.closes.Load(); closes != 1 {
		t.Errorf("closed %d times, want once", closes)
	}
}

// liarRelay is a UDP socket at which datagrams have come in.
type liarRelay struct {
	datagrams []liarDatagram
	closed    chan struct{}
	once      sync.Once
}

type liarDatagram struct {
	payload []byte
	from    netip.AddrPort
}

func (r *liarRelay) Prepare(_ context.Context, t flow.Target) (flow.Target, error) { return t, nil }
func (r *liarRelay) WriteTo([]byte, flow.Target) error                             { return nil }
func (r *liarRelay) Close() error                                                  { r.once.Do(func() { close(r.closed) }); return nil }
func (r *liarRelay) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	if len(r.datagrams) == 0 {
		<-r.closed
		return 0, netip.AddrPort{}, net.ErrClosed
	}
	d := r.datagrams[0]
	r.datagrams = r.datagrams[1:]
	return copy(b, d.payload), d.from, nil
}

// FuzzAssociation opens UDP associations with a server that says what the input wants
// it to, and whose relay sends what the input wants. What is handed on is what came
// from the relay with a whole header, and nothing else; and the association ends with
// its connection, or is closed.
//
// Each datagram is a byte for its sender, one for its length, and its bytes.
func FuzzAssociation(f *testing.F) {
	at := func(end byte, bound string) []byte {
		reply := "\x05\x00\x00" + bound
		return append(append([]byte{doHonest, doRaw, byte(len(reply))}, reply...), end)
	}
	datagrams := []byte("\x00\x0d\x00\x00\x00\x01\xc0\x00\x02\x50\x00\x35yes" +
		"\x01\x0d\x00\x00\x00\x01\xc0\x00\x02\x50\x00\x35no1" +
		"\x00\x0d\x00\x00\x01\x01\xc0\x00\x02\x50\x00\x35no2" + // a fragment
		"\x00\x09\x00\x00\x00\x03\xffname" + // a name longer than the datagram
		"\x00\x02\x00\x00" +
		"\x00\x0e\x00\x00\x00\x03\x041.2.\x00\x35yes" +
		"\x02\x0a\x00\x00\x00\x01\xc0\x00\x02\x50\x00\x35")
	for _, bound := range []string{
		"\x01\xc0\x00\x02\x01\x04\x38", "\x01\x00\x00\x00\x00\x04\x38", "\x01\x00\x00\x00\x00\x00\x00",
		"\x03\x0arelay.test\x04\x38", "\x03\x00\x04\x38", "\x03\x09192.0.2.1\x04\x38", "\x09",
	} {
		for _, end := range []byte{doFIN, doRST, doSilence} {
			f.Add(byte(hop5), at(end, bound), datagrams)
		}
	}
	f.Add(byte(hop5), []byte{doHonest, doRaw, 4, 5, 7, 0, 1}, datagrams)
	f.Add(byte(hop5Login), []byte{doHonest, doSilence}, datagrams)
	f.Add(byte(hop4), []byte{doHonest}, datagrams)
	f.Add(byte(hopHTTP), []byte{doHonest}, datagrams)
	f.Fuzz(func(t *testing.T, kind byte, script, datagrams []byte) {
		if len(script) > 4096 || len(datagrams) > 4096 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzAssociation(t, int(kind%hopKinds), script, datagrams) })
	})
}

func fuzzAssociation(t *testing.T, kind int, script, datagrams []byte) {
	l := newLiar(script, honest[kind])
	o := oracle{liar: l}
	bound, ok, _ := o.hop(kind)
	ok = ok && kind < hop4 && bound.Port != 0
	relay := netip.AddrPortFrom(bound.IP, bound.Port)
	if bound.Name != "" {
		target, err := flow.NewTarget(bound.Name, bound.Port)
		ok, relay = ok && err == nil, netip.AddrPortFrom(target.Addr, bound.Port)
	} else if !bound.IP.IsValid() || bound.IP.IsUnspecified() {
		relay = netip.AddrPortFrom(liarAddr.Addr(), bound.Port)
	}
	conn := newLiarConn(l)
	way := liarWay{conn: conn, relay: &liarRelay{closed: make(chan struct{})}}
	var want []liarDatagram
	for len(datagrams) >= 2 {
		from := relay
		if !from.Addr().IsValid() { // a name: who speaks first from the port
			from = netip.AddrPortFrom(liarAddr.Addr(), relay.Port())
		}
		stranger := true
		switch datagrams[0] % 3 {
		case 0:
			stranger = false
		case 1:
			from = netip.AddrPortFrom(from.Addr(), from.Port()+1)
		case 2:
			if relay.Addr().IsValid() {
				from = netip.AddrPortFrom(from.Addr().Next(), from.Port())
			} else {
				from = netip.AddrPortFrom(from.Addr(), from.Port()-1)
			}
		}
		n := min(int(datagrams[1]), len(datagrams)-2)
		d := datagrams[2 : 2+n]
		datagrams = datagrams[2+n:]
		way.relay.datagrams = append(way.relay.datagrams, liarDatagram{d, from})
		if payload, sender, ok := unwrap(d); ok && !stranger {
			want = append(want, liarDatagram{payload, sender})
		}
	}

	d := fuzzHop(t, kind, way)
	c, err := d.(outbound.PacketDialer).OpenUDP(t.Context())
	if (err == nil) != ok {
		t.Fatalf("error %v, want success: %v", err, ok)
	}
	if err != nil {
		if kind < hop4 { // others are not asked
			<-way.relay.closed
			<-conn.closed
		}
		return
	}
	b := make([]byte, 1000)
	for i, w := range want {
		n, from, err := c.ReadFrom(b)
		if err != nil || !bytes.Equal(b[:n], w.payload) || from != w.from {
			t.Fatalf("datagram %d: %q from %v, %v, want %q from %v", i, b[:n], from, err, w.payload, w.from)
		}
	}
	if l.end == nil {
		c.Close() // else it stays
	}
	n, from, err := c.ReadFrom(b)
	if err == nil || errors.Is(err, net.ErrClosed) != (l.end == nil) {
		t.Errorf("behind the end: %q from %v, %v", b[:n], from, err)
	}
	c.Close()
	<-way.relay.closed
	<-conn.closed
}

// unwrap is what a datagram of a relay has within, as RFC 1928 §7 draws it, and whom
// it is from; without an address for a name that is none.
func unwrap(d []byte) (payload []byte, from netip.AddrPort, ok bool) {
	if len(d) < 5 || d[2] != 0 {
		return nil, from, false
	}
	start, n := 4, 0
	switch d[3] {
	case 1:
		n = 4
	case 4:
		n = 16
	case 3:
		start, n = 5, int(d[4])
	default:
		return nil, from, false
	}
	end := start + n + 2
	if len(d) < end {
		return nil, from, false
	}
	ip, _ := netip.AddrFromSlice(d[start : start+n])
	if d[3] == 3 {
		var err error
		if ip, err = netip.ParseAddr(string(d[start : start+n])); err != nil {
			ip = netip.IPv4Unspecified()
		}
	}
	return d[end:], netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(d[end-2:])), true
}
