package stack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// DialTCP connects to a program behind the device, as if from had: any address, be it
// somebody's or a fake one, and any port; port 0 is one that is free. The Conn's
// LocalAddr is from and its RemoteAddr is to, as with a connection that the program has
// opened.
//
// It blocks until Run serves and the program's machine has answered, for 10 s at the
// most, or until ctx ends. An error Is the errno that connect(2) would have: ECONNREFUSED for a RST,
// ETIMEDOUT for silence, EHOSTUNREACH for ICMP, EADDRINUSE and EADDRNOTAVAIL where from
// is already connected to to, EINVAL for addresses that no packet can have;
// net.ErrClosed where the stack has ended.
func (s *Stack) DialTCP(ctx context.Context, from, to netip.AddrPort) (*Conn, error) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	conn, err := s.dial(ctx, from, to)
	if err != nil {
		return nil, fmt.Errorf("stack: connect from %s to %s: %w", from, to, err)
	}
	return conn, nil
}

func (s *Stack) dial(ctx context.Context, from, to netip.AddrPort) (*Conn, error) {
	if !from.Addr().IsValid() || !to.Addr().IsValid() || from.Addr().Is4() != to.Addr().Is4() || to.Port() == 0 || !servable(from.Addr(), to.Addr()) {
		return nil, syscall.EINVAL
	}
	select {
	case <-s.started:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	n := s.net.Load()
	if n == nil || !s.halfOpen.enter() {
		return nil, net.ErrClosed
	}
	defer s.halfOpen.handlers.Done()
	proto := ipv6.ProtocolNumber
	if from.Addr().Is4() {
		proto = ipv4.ProtocolNumber
	}
	wq := new(waiter.Queue)
	ep, terr := n.NewEndpoint(tcp.ProtocolNumber, proto, wq)
	if terr != nil {
		return nil, toError(terr)
	}
	// An FTP server connects to all its clients from port 20.
	ep.SocketOptions().SetReuseAddress(true)
	err := setOptions(ep)
	if err == nil {
		err = toError(ep.Bind(fullAddress(from)))
	}
	var handshake time.Duration
	if err == nil {
		start := time.Now()
		err = s.connect(ctx, ep, wq, to)
		handshake = time.Since(start)
	}
	if err != nil {
		ep.Abort()
		return nil, err
	}
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		ep.Abort()
		return nil, toError(terr)
	}
	return newConn(s, ep, wq, to, netip.AddrPortFrom(from.Addr(), local.Port), handshake), nil
}

// connect makes the handshake.
func (s *Stack) connect(ctx context.Context, ep tcpip.Endpoint, wq *waiter.Queue, to netip.AddrPort) error {
	entry, done := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	timeout := make(chan struct{})
	giveUp := s.net.Load().Clock().AfterFunc(handshakeTimeout, func() { close(timeout) })
	defer giveUp.Stop()

	err := ep.Connect(fullAddress(to))
	if _, started := err.(*tcpip.ErrConnectStarted); !started {
		return toError(err)
	}
	select {
	case <-done:
		if err := toError(ep.LastError()); err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return net.ErrClosed
		}
		return nil
	case <-timeout:
		return syscall.ETIMEDOUT
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: toAddr(a.Addr()), Port: a.Port()}
}
