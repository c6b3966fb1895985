package stacktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Host is a client machine whose only network is a [Wire]. Its methods are safe
// for concurrent use. Its errors are errnos, as those of the kernel's sockets,
// within a [net.OpError].
type Host struct {
	wire   *Wire
	net    *gstack.Stack
	pumped chan struct{} // closed when nothing is delivered any more
}

const nicID tcpip.NICID = 1

// NewHost returns a Host whose device has the given MTU; 0 is 1500.
func NewHost(mtu int) *Host {
	h := &Host{wire: NewWire(mtu), pumped: make(chan struct{})}
	h.net = gstack.New(gstack.Options{
		NetworkProtocols:   []gstack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []gstack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	link := &hostLink{wire: h.wire}
	must(h.net.CreateNIC(nicID, link))
	for _, a := range []netip.Addr{h.Addr4(), h.Addr6()} {
		must(h.net.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
			Protocol:          protocol(a),
			AddressWithPrefix: toAddr(a).WithPrefix(),
		}, gstack.AddressProperties{}))
	}
	// Any other address can be used as well.
	must(h.net.SetPromiscuousMode(nicID, true))
	must(h.net.SetSpoofing(nicID, true))
	h.net.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	sack, wait := tcpip.TCPSACKEnabled(true), tcpip.TCPTimeWaitTimeoutOption(timeWait)
	must(h.net.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	must(h.net.SetTransportProtocolOption(tcp.ProtocolNumber, &wait))
	must(h.net.SetTransportProtocolOption(tcp.ProtocolNumber, &tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: tcpBuffer}))
	must(h.net.SetTransportProtocolOption(tcp.ProtocolNumber, &tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: tcpBuffer, Max: tcpBuffer}))
	must(h.net.SetOption(tcpip.ReceiveBufferSizeOption{Min: 4 << 10, Default: udpBuffer, Max: udpBuffer}))

	go h.pump(link)
	return h
}

// timeWait keeps ports and memory from being the limit of a test that opens and
// closes many connections.
const timeWait = 10 * time.Millisecond

// udpBuffer holds the bursts of a benchmark: sockets lose what they do not hold.
const udpBuffer = 4 << 20

// tcpBuffer is more than a path needs that a test makes: the client is not what
// limits it.
const tcpBuffer = 32 << 20

func must(err tcpip.Error) {
	if err != nil {
		panic("stacktest: " + err.String())
	}
}

// pump delivers what the device side writes.
func (h *Host) pump(link *hostLink) {
	defer close(h.pumped)
	for {
		p, err := h.wire.Recv(context.Background())
		if err != nil {
			return
		}
		pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
		proto := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
		if header.IPVersion(p) == header.IPv6Version {
			proto = header.IPv6ProtocolNumber
		}
		link.dispatcher.DeliverNetworkPacket(proto, pkt)
		pkt.DecRef()
		h.wire.put(p)
	}
}

// Device returns the other side of the Host's network, for stack.New.
func (h *Host) Device() *Wire { return h.wire }

// Addr4 returns the Host's IPv4 address.
func (h *Host) Addr4() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 2}) }

// Addr6 returns the Host's IPv6 address.
func (h *Host) Addr6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: 2}) }

// Close resets the Host's connections and closes the device. It waits for the
// end of all that the Host has started; it is called once.
func (h *Host) Close() {
	h.wire.Close()
	<-h.pumped
	h.net.Destroy()
}

// Conn is a TCP connection of a [Host].
type Conn struct {
	net.Conn
	ep tcpip.Endpoint
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, errno(err)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, errno(err)
}

// CloseWrite sends a FIN behind what was written.
func (c *Conn) CloseWrite() error {
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return opError("close", "tcp", c.RemoteAddr(), err)
	}
	return nil
}

// Reset ends the connection by a RST.
func (c *Conn) Reset() { c.ep.Abort() }

// DialTCP connects to an address, and blocks until that has succeeded or failed,
// or ctx ends. The zero from is the Host's own address and a port of its choice,
// a zero port a port of its choice; any address can be used.
func (h *Host) DialTCP(ctx context.Context, from, to netip.AddrPort) (*Conn, error) {
	wq := new(waiter.Queue)
	ep, err := h.net.NewEndpoint(tcp.ProtocolNumber, protocol(to.Addr()), wq)
	if err != nil {
		return nil, opError("dial", "tcp", net.TCPAddrFromAddrPort(to), err)
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if from.IsValid() {
		err = ep.Bind(fullAddress(from))
	}
	if err == nil {
		err = ep.Connect(fullAddress(to))
	}
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		select {
		case <-connected:
			err = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: ctx.Err()}
		}
	}
	if err != nil {
		ep.Close()
		return nil, opError("dial", "tcp", net.TCPAddrFromAddrPort(to), err)
	}
	return &Conn{Conn: gonet.NewTCPConn(wq, ep), ep: ep}, nil
}

// ListenTCP returns a listener at an address of the Host, or at any other.
func (h *Host) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	l, err := gonet.ListenTCP(h.net, fullAddress(at), protocol(at.Addr()))
	if err != nil {
		return nil, errno(err)
	}
	return l, nil
}

// UDPConn is a UDP socket of a [Host]. Write is for one that was dialled.
type UDPConn struct{ *udpConn }

type udpConn = gonet.UDPConn

// ListenUDP returns a UDP socket; from is as for DialTCP, but its address must be
// given: it chooses the family.
func (h *Host) ListenUDP(from netip.AddrPort) (*UDPConn, error) {
	local := fullAddress(from)
	c, err := gonet.DialUDP(h.net, &local, nil, protocol(from.Addr()))
	if err != nil {
		return nil, errno(err)
	}
	return &UDPConn{c}, nil
}

// DialUDP returns a connected UDP socket: it receives from to only, and learns of
// ICMP errors. from is as for DialTCP.
func (h *Host) DialUDP(from, to netip.AddrPort) (*UDPConn, error) {
	var local *tcpip.FullAddress
	if from.IsValid() {
		a := fullAddress(from)
		local = &a
	}
	remote := fullAddress(to)
	c, err := gonet.DialUDP(h.net, local, &remote, protocol(to.Addr()))
	if err != nil {
		return nil, errno(err)
	}
	return &UDPConn{c}, nil
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	n, err := c.udpConn.Read(b)
	return n, errno(err)
}

// ReadFrom implements net.PacketConn.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.udpConn.ReadFrom(b)
	return n, from, errno(err)
}

// Write implements net.Conn.
func (c *UDPConn) Write(b []byte) (int, error) {
	n, err := c.udpConn.Write(b)
	return n, errno(err)
}

// WriteTo implements net.PacketConn.
func (c *UDPConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.udpConn.WriteTo(b, to)
	return n, errno(err)
}

// Ping sends an echo request with size bytes of data, and blocks until the reply
// is there or ctx ends. A reply with other data is an error.
func (h *Host) Ping(ctx context.Context, to netip.Addr, size int) error {
	wq := new(waiter.Queue)
	proto, transport, request := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber), icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if to.Is6() {
		proto, transport, request = ipv6.ProtocolNumber, icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	fail := func(err error) error { return fmt.Errorf("ping %s: %w", to, err) }
	ep, err := h.net.NewEndpoint(transport, proto, wq)
	if err != nil {
		return fail(toErrno(err))
	}
	defer ep.Close()
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: toAddr(to)}); err != nil {
		return fail(toErrno(err))
	}
	message := make([]byte, 8+size) // the socket fills in identifier and checksum
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1)
	for i := range message[8:] {
		message[8+i] = byte(i)
	}
	if _, err := ep.Write(bytes.NewReader(message), tcpip.WriteOptions{}); err != nil {
		return fail(toErrno(err))
	}
	for {
		var reply bytes.Buffer
		_, err := ep.Read(&reply, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if got := reply.Bytes(); len(got) != len(message) || !bytes.Equal(got[6:], message[6:]) {
				return fail(errors.New("reply is not an echo of the request"))
			}
			return nil
		case *tcpip.ErrWouldBlock:
			select {
			case <-readable:
			case <-ctx.Done():
				return fail(ctx.Err())
			}
		default:
			return fail(toErrno(err))
		}
	}
}

func opError(op, network string, addr net.Addr, err tcpip.Error) error {
	return &net.OpError{Op: op, Net: network, Addr: addr, Err: toErrno(err)}
}

// errnos are the errors that tests tell apart.
func errnos() map[tcpip.Error]error {
	return map[tcpip.Error]error{
		&tcpip.ErrAborted{}:            syscall.ECONNABORTED,
		&tcpip.ErrConnectionAborted{}:  syscall.ECONNABORTED,
		&tcpip.ErrConnectionRefused{}:  syscall.ECONNREFUSED,
		&tcpip.ErrConnectionReset{}:    syscall.ECONNRESET,
		&tcpip.ErrClosedForSend{}:      syscall.EPIPE,
		&tcpip.ErrHostUnreachable{}:    syscall.EHOSTUNREACH,
		&tcpip.ErrNetworkUnreachable{}: syscall.ENETUNREACH,
		&tcpip.ErrMessageTooLong{}:     syscall.EMSGSIZE,
		&tcpip.ErrTimeout{}:            syscall.ETIMEDOUT,
	}
}

func toErrno(err tcpip.Error) error { return errno(errors.New(err.String())) }

// errno puts an errno, or os.ErrDeadlineExceeded, where gonet or toErrno has left
// only the text of netstack's error.
func errno(err error) error {
	if err == nil {
		return nil
	}
	if op, ok := err.(*net.OpError); ok {
		op.Err = errno(op.Err)
		return op
	}
	if t, ok := err.(net.Error); ok && t.Timeout() {
		return os.ErrDeadlineExceeded
	}
	for e, no := range errnos() {
		if e.String() == err.Error() {
			return no
		}
	}
	return err
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func toAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: toAddr(a.Addr()), Port: a.Port()}
}

// hostLink is the Host's end of the Wire. Where the Wire is closed it behaves as
// a network whose cable was pulled: packets are gone, sockets live on.
type hostLink struct {
	wire       *Wire
	dispatcher gstack.NetworkDispatcher
}

var _ gstack.LinkEndpoint = (*hostLink)(nil)

func (l *hostLink) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range pkts.AsSlice() {
		v := pkt.ToView()
		_ = l.wire.Send(v.AsSlice())
		v.Release()
	}
	return pkts.Len(), nil
}

func (l *hostLink) Attach(d gstack.NetworkDispatcher) {
	if d != nil {
		l.dispatcher = d
	}
}

func (l *hostLink) MTU() uint32                                   { return uint32(l.wire.mtu) }
func (l *hostLink) SetMTU(uint32)                                 {}
func (l *hostLink) MaxHeaderLength() uint16                       { return 0 }
func (l *hostLink) LinkAddress() tcpip.LinkAddress                { return "" }
func (l *hostLink) SetLinkAddress(tcpip.LinkAddress)              {}
func (l *hostLink) Capabilities() gstack.LinkEndpointCapabilities { return 0 }
func (l *hostLink) IsAttached() bool                              { return l.dispatcher != nil }
func (l *hostLink) Wait()                                         {}
func (l *hostLink) ARPHardwareType() header.ARPHardwareType       { return header.ARPHardwareNone }
func (l *hostLink) AddHeader(*gstack.PacketBuffer)                {}
func (l *hostLink) ParseHeader(*gstack.PacketBuffer) bool         { return true }
func (l *hostLink) Close()                                        {}
func (l *hostLink) SetOnCloseAction(func())                       {}
