package engine

import (
	"context"
	"net/netip"
	"sync"
	"syscall"

	"tunroute/dnsfake"
	"tunroute/router"
	"tunroute/router/relay"
	"tunroute/router/udpnat"
	"tunroute/stack"
)

// bridge joins the stack, the DNS server and the router: it is the stack's
// Handler and the router's way back to UDP clients.
type bridge struct {
	engine    *Engine
	ctx       context.Context // of Run, for queries that wait
	capture   bool
	dnsTokens chan struct{} // one for each query that waits for a resolver
	queries   sync.WaitGroup
}

var (
	_ stack.Handler    = (*bridge)(nil)
	_ stack.UDPFlusher = (*bridge)(nil)
	_ udpnat.RowWriter = (*bridge)(nil)
	_ router.Clients   = (*bridge)(nil)
)

// maxQueries that are not answered at once: each costs a goroutine. One more is lost,
// and asked again by the client. It is twice of those that dnsfake has wait for
// resolvers, so that these leave room for the others.
const maxQueries = 2048

// DNSPort is where the DNS server is asked that clients of the device have.
const DNSPort = 53

// isDNS says that dst is for the DNS server: port 53 of the resolver's address,
// or of any where queries are captured.
func (b *bridge) isDNS(dst netip.AddrPort) bool {
	return dst.Port() == DNSPort && (b.capture || b.isResolver(dst.Addr()))
}

func (b *bridge) isResolver(a netip.Addr) bool {
	p := b.engine.pool
	return a == p.Resolver4() || a == p.Resolver6()
}

// isReserved says that a stands for no name but for ourselves.
func (b *bridge) isReserved(a netip.Addr) bool {
	p := b.engine.pool
	return b.isResolver(a) || a == p.Device4() || a == p.Device6()
}

// ServeTCP implements stack.Handler.
func (b *bridge) ServeTCP(ctx context.Context, r *stack.TCPRequest) {
	switch dst := r.Destination(); {
	case b.isDNS(dst):
		leave, ok := b.engine.dns.AdmitTCP(r.Source().Addr())
		if !ok {
			r.Refuse(syscall.ECONNREFUSED)
			return
		}
		defer leave()
		if conn, err := r.Accept(); err == nil {
			b.engine.dns.ServeTCP(ctx, conn)
		}
	case b.isReserved(dst.Addr()):
		r.Refuse(syscall.ECONNREFUSED)
	default:
		b.engine.router.ServeTCP(ctx, request{r})
	}
}

// request is a stack's TCPRequest as the router wants it.
type request struct{ *stack.TCPRequest }

func (r request) Accept() (relay.Conn, error) {
	c, err := r.TCPRequest.Accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

var (
	_ router.Request = request{}
	_ relay.Stream   = (*stack.Conn)(nil)
)

// DialTCP implements router.Clients.
func (b *bridge) DialTCP(ctx context.Context, from, to netip.AddrPort) (relay.Conn, error) {
	c, err := b.engine.stack.DialTCP(ctx, from, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// ServeUDP implements stack.Handler.
func (b *bridge) ServeUDP(src, dst netip.AddrPort, payload []byte) bool {
	switch {
	case b.isDNS(dst):
		b.serveDNS(src, dst, payload)
		return true
	case b.isReserved(dst.Addr()):
		return false
	}
	return b.engine.router.ServeUDP(src, dst, payload)
}

// FlushUDP implements stack.UDPFlusher.
func (b *bridge) FlushUDP() { b.engine.router.FlushUDP() }

// answerBuffers hold the answers that the DNS server gives at once.
var answerBuffers = sync.Pool{New: func() any { b := make([]byte, 512); return &b }}

// serveDNS answers a query as if dst had. What needs no resolver is answered at
// once.
func (b *bridge) serveDNS(src, dst netip.AddrPort, query []byte) {
	buf := answerBuffers.Get().(*[]byte)
	answer, done := b.engine.dns.AnswerInto(*buf, query)
	if answer != nil {
		_ = b.WriteUDP(answer, dst, src)
	}
	answerBuffers.Put(buf)
	if done {
		return
	}
	select {
	case b.dnsTokens <- struct{}{}:
	default:
		return
	}
	query = append([]byte(nil), query...)
	b.queries.Go(func() {
		defer func() { <-b.dnsTokens }()
		if answer := b.engine.dns.Answer(dnsfake.WithClient(b.ctx, src.Addr()), query, "udp"); answer != nil {
			_ = b.WriteUDP(answer, dst, src)
		}
	})
}

// ServeEcho implements stack.Handler.
func (b *bridge) ServeEcho(ctx context.Context, r *stack.EchoRequest) {
	if b.isReserved(r.Destination()) {
		r.Reply()
		return
	}
	b.engine.router.ServeEcho(ctx, r)
}

// WriteUDP implements udpnat.Writer.
func (b *bridge) WriteUDP(payload []byte, from, to netip.AddrPort) error {
	return b.engine.stack.WriteUDP(payload, from, to)
}

// WriteUDPs implements udpnat.RowWriter.
func (b *bridge) WriteUDPs(payloads [][]byte, from, to netip.AddrPort) error {
	return b.engine.stack.WriteUDPs(payloads, from, to)
}

// RefuseUDP implements udpnat.Writer.
func (b *bridge) RefuseUDP(src, dst netip.AddrPort, length int, e syscall.Errno) {
	b.engine.stack.RefuseUDP(src, dst, length, e)
}
