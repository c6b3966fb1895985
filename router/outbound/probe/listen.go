package probe

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"tunroute/router/flow"
)

// listener is where a row sees what comes out of the server: a port of ours.
type listener struct {
	l    net.Listener
	dst  netip.AddrPort // as the server is told
	work sync.WaitGroup

	mu   sync.Mutex // guards what follows
	conn net.Conn   // that has been accepted
	over bool
}

// mode is what a listener does with a connection.
type mode int

const (
	echo       mode = iota // what comes goes back at once
	answerLast             // what comes goes back when all of it has come
)

// maxEcho is more than any row sends. Who connects to our port and is not the server
// gets no more back than that.
const maxEcho = 4 << 10

// listen opens a port at our own address of a family.
func (p *prober) listen(ip netip.Addr, m mode) (*listener, error) {
	l, err := p.openTCP(ip)
	if err != nil {
		return nil, err
	}
	o := &listener{l: l, dst: netip.AddrPortFrom(ip, portOf(l.Addr()))}
	o.work.Go(func() {
		conn, err := l.Accept() // one is what a row makes
		if err != nil {
			return
		}
		defer conn.Close()
		if !o.keep(conn) {
			return
		}
		conn.SetDeadline(time.Now().Add(2 * p.Limit))
		if m == echo {
			io.CopyN(conn, conn, maxEcho)
			return
		}
		b, err := io.ReadAll(io.LimitReader(conn, maxEcho))
		if err == nil {
			conn.Write(b)
		}
	})
	return o, nil
}

// keep has conn closed when the listener is, and says whether it is not yet.
func (o *listener) keep(conn net.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = conn
	return !o.over
}

// close ends the listener and the connection that it has accepted.
func (o *listener) close() {
	o.l.Close()
	o.mu.Lock()
	o.over = true
	if o.conn != nil {
		o.conn.Close()
	}
	o.mu.Unlock()
	o.work.Wait()
}

// openTCP listens at ip; where ip is what somebody else translates to us, at all
// addresses of its family.
func openTCP(ip netip.Addr) (net.Listener, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(unspecified(ip), 0)))
	}
	return l, err
}

// openUDP is openTCP for datagrams.
func openUDP(ip netip.Addr) (net.PacketConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(unspecified(ip), 0)))
	}
	return c, err
}

// unspecified returns the unspecified address of the family of ip.
func unspecified(ip netip.Addr) netip.Addr {
	if ip.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func portOf(a net.Addr) uint16 {
	switch a := a.(type) {
	case *net.TCPAddr:
		return uint16(a.Port)
	case *net.UDPAddr:
		return uint16(a.Port)
	}
	return 0
}

// selves returns the addresses under which the server may see us: of IPv4, of IPv6; not
// valid where there is none. They are those that the user has said, else that of our
// connection to the server, and for the other family one of the same interface.
func selves(local net.Addr, said []netip.Addr) (v4, v6 netip.Addr) {
	set := func(a netip.Addr) {
		switch a = a.Unmap(); {
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6() && !v6.IsValid() && !a.IsLinkLocalUnicast():
			v6 = a.WithZone("")
		}
	}
	for _, a := range said {
		set(a)
	}
	if len(said) > 0 {
		return v4, v6
	}
	tcp, ok := local.(*net.TCPAddr)
	if !ok { // a unix socket: the server is on this machine
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	}
	first, _ := netip.AddrFromSlice(tcp.IP)
	set(first)
	for _, a := range beside(first.Unmap()) {
		set(a)
	}
	return v4, v6
}

// beside returns the addresses of the interface that has a.
func beside(a netip.Addr) []netip.Addr {
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		list, _ := i.Addrs()
		var all []netip.Addr
		found := false
		for _, n := range list {
			if n, ok := n.(*net.IPNet); ok {
				b, _ := netip.AddrFromSlice(n.IP)
				all = append(all, b.Unmap())
				found = found || b.Unmap() == a
			}
		}
		if found {
			if a.IsLoopback() { // lo may have other addresses, as that of a service
				return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
			}
			return all
		}
	}
	return nil
}

// aim is where a CONNECT of a row is to lead: to a listener of ours, to the target that
// the user has named, or to nobody who could be seen.
type aim struct {
	own    *listener   // nil: none of ours
	target flow.Target // where own is nil; zero: nobody who could be seen
	ip     netip.Addr  // its address; not valid for a target with a name only
	port   uint16
}

// aim returns the best aim there is.
func (p *prober) aim(m mode) aim {
	for _, ip := range []netip.Addr{p.reached4, p.reached6} {
		if !ip.IsValid() {
			continue
		}
		if o, err := p.listen(ip, m); err == nil {
			return aim{own: o, ip: ip, port: o.dst.Port()}
		}
	}
	if p.Target != (flow.Target{}) {
		return aim{target: p.Target, ip: p.Target.Addr, port: p.Target.Port}
	}
	return nowhere
}

// nowhere is where hardly anybody listens: what is asked for it is refused.
var nowhere = aim{ip: netip.AddrFrom4([4]byte{127, 0, 0, 1}), port: 1}

// seen says whether somebody is there who answers.
func (a *aim) seen() bool { return a.own != nil || a.target != flow.Target{} }

func (a *aim) close() {
	if a.own != nil {
		a.own.close()
	}
}

// dst is the address of a request for the aim.
func (a *aim) dst() []byte {
	if a.ip.IsValid() {
		return addrDst(netip.AddrPortFrom(a.ip, a.port))
	}
	return nameDst(a.target.Name, a.port)
}

// text is the host of the aim as a name, even if it is an address.
func (a *aim) text() string {
	if a.ip.IsValid() {
		return a.ip.String()
	}
	return a.target.Name
}

// String is the aim in the words of a row.
func (a *aim) String() string {
	switch {
	case a.own != nil:
		return "us, at " + netip.AddrPortFrom(a.ip, a.port).String()
	case a.target != flow.Target{}:
		return a.target.String()
	}
	return netip.AddrPortFrom(a.ip, a.port).String()
}

// greet is what is sent over a connection to the aim. We send back what we get; others
// may be echoes, or web servers.
func (a *aim) greet() []byte {
	if a.own != nil {
		return []byte("a probe of tunroute\n")
	}
	return []byte("GET / HTTP/1.0\r\nHost: " + a.target.Host() + "\r\n\r\n")
}

// heard waits for the answer to greet, and says what came instead, or "".
func (a *aim) heard(l *link) string {
	want := a.greet()
	if a.own == nil {
		want = want[:1] // anything is an answer
	}
	b := make([]byte, len(want))
	n, err := l.take(b)
	switch {
	case n == len(b) && (a.own == nil || bytes.Equal(b, want)):
		return ""
	case n > 0:
		return "what came back is not what was sent: " + l.show(b[:n])
	case ended(err).token == silence:
		return "nothing comes through"
	}
	return "the connection ended with nothing"
}

// talk says what is wrong with a connection to the aim, or "".
func (a *aim) talk(l *link) string {
	l.write(a.greet())
	return a.heard(l)
}
