package inbound

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/relay"
)

// Call is a client that has asked for a connection and has had no answer yet.
type Call interface {
	// Accept tells the client that it is connected, and returns its connection
	// and what it has sent behind its request. Bound is what it is told of our
	// own address at the far end; it may be not valid.
	Accept(bound netip.AddrPort) (client relay.Conn, early []byte, err error)

	// Refuse tells the client why it is not, and closes its connection. It may
	// take a moment.
	Refuse(err error)
}

// BindCall is what the Call of a [flow.Bind] also is.
type BindCall interface {
	Call
	// Announce tells the client where it can be connected to; Accept then tells
	// it who has, by bound. The context ends when the client has gone, or with
	// ctx; stop has to be called before Accept or Refuse.
	Announce(ctx context.Context, at netip.AddrPort) (waiting context.Context, stop func(), err error)
}

// PacketClient is a client that exchanges datagrams.
type PacketClient interface {
	// WriteUDP sends payload to the client. It is from that address or, where
	// there is a name, from that and the port of the address.
	WriteUDP(payload []byte, from netip.AddrPort, name string) error
}

// Association takes the datagrams of a client.
type Association interface {
	// Run serves until ctx ends, and returns when all of it has ended.
	Run(ctx context.Context)
	// Send takes a datagram, which waits for Flush, to a name and the port of
	// to or, where name is nil, to an address. It does not block and does not
	// keep what it is given.
	Send(name []byte, to netip.AddrPort, payload []byte)
	Flush()
}

// Listener is where clients come in.
type Listener struct {
	net.Listener
	Name    string      // the Inbound of its flows
	TLS     *tls.Config // nil: none
	Methods []Method    // how a client may say who it is, the best first
	Relays  Relays
}

// Relays say where the sockets of UDP ASSOCIATE are. Of the zero Relays they are at the
// address of the client's connection and any port.
type Relays struct {
	First, Last uint16     // the ports; 0: any
	Announce    netip.Addr // what clients are told; not valid: what it is
}

// Defaults of [Options].
const (
	// DefaultNegotiate is danted's.
	DefaultNegotiate = 30 * time.Second
	// DefaultMaxClients: each costs a socket and 5 KB.
	DefaultMaxClients = 16384
	// DefaultMaxAssociations: each costs two sockets and 16 KB.
	DefaultMaxAssociations = 4096
)

// Options configure a [Server]. Serve is required.
type Options struct {
	// Serve decides f and serves it by c. It returns when the flow has ended or
	// needs no goroutine any more.
	Serve func(ctx context.Context, f flow.Flow, c Call)

	// Associate makes the association of a client, whose flow f lacks a target;
	// the error is what the client is refused with. nil: there is no UDP.
	Associate func(f flow.Flow, c PacketClient) (Association, error)

	// Admits says whether anything could ever be served that comes from source,
	// which is not valid on a unix socket, by way of a listener. Other clients
	// are hung up on before they have said a word. nil: always.
	Admits func(source netip.AddrPort, inbound string) bool

	Negotiate  time.Duration // 0: DefaultNegotiate
	MaxClients int           // that have not asked yet; 0: DefaultMaxClients

	// Control is a [net.ListenConfig]'s, for the sockets of associations. nil: none.
	Control func(network, address string, c syscall.RawConn) error

	MaxAssociations int          // one more, and who was silent for long makes room; 0: DefaultMaxAssociations
	Logger          *slog.Logger // nil discards
}

// Server serves clients. Its methods are safe for concurrent use.
type Server struct {
	opts Options
	log  *slog.Logger

	told told // of who is not let in, or gets no relay

	mu           sync.Mutex // guards what follows
	waiting      list.List  // of *client, who have not asked yet, as they have come
	associations map[*association]struct{}
	stats        Stats
}

// Stats are totals since the start; Waiting is now.
type Stats struct {
	Waiting  int    // clients that have not asked yet
	Clients  uint64 // that have come
	Unwanted uint64 // of those, from where nobody is served
	Evicted  uint64 // that made room for others
	Failed   uint64 // that did not get as far as a request
}

// New returns a Server. It starts nothing; [Server.Run] does.
func New(o Options) (*Server, error) {
	if o.Serve == nil {
		return nil, errors.New("inbound: Serve is required")
	}
	if o.Negotiate <= 0 {
		o.Negotiate = DefaultNegotiate
	}
	if o.MaxClients <= 0 {
		o.MaxClients = DefaultMaxClients
	}
	if o.MaxAssociations <= 0 {
		o.MaxAssociations = DefaultMaxAssociations
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{opts: o, log: o.Logger, associations: make(map[*association]struct{})}, nil
}

// Stats returns the totals.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Waiting = s.waiting.Len()
	return st
}

// Run serves the clients of listeners until ctx ends or a listener fails, then closes
// the listeners, and returns when nobody is being served any more: what Options.Serve
// was given ends with ctx.
func (s *Server) Run(ctx context.Context, listeners []Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() {
		for _, l := range listeners {
			l.Close()
		}
	})()
	var work sync.WaitGroup
	errs := make([]error, len(listeners))
	for i, l := range listeners {
		work.Go(func() {
			if errs[i] = s.accept(ctx, &l, &work); errs[i] != nil {
				stop()
			}
		})
	}
	<-ctx.Done()
	s.hangUp()
	work.Wait()
	for _, l := range listeners {
		l.Close()
	}
	return errors.Join(errs...)
}

// accept takes clients in until ctx ends.
func (s *Server) accept(ctx context.Context, l *Listener, work *sync.WaitGroup) error {
	// As net/http does: what is short now, files above all, may not be soon.
	const shortest, longest = 5 * time.Millisecond, time.Second
	delay := shortest
	for {
		conn, err := l.Accept()
		if err == nil {
			delay = shortest
			s.takeIn(ctx, l, conn, work)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("listener %s: %w", l.Name, err)
		}
		s.log.Warn("no client can be taken in", "inbound", l.Name, "err", err, "again", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
		delay = min(2*delay, longest)
	}
}

// takeIn has a client served by a goroutine of its own.
func (s *Server) takeIn(ctx context.Context, l *Listener, conn net.Conn, work *sync.WaitGroup) {
	raw, ok := conn.(relay.Conn)
	if !ok {
		conn.Close()
		s.log.Error("listener of connections without a half-close", "inbound", l.Name)
		return
	}
	c := &client{server: s, listener: l, raw: raw}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		c.source = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	wanted := s.opts.Admits == nil || s.opts.Admits(c.source, l.Name)
	s.mu.Lock()
	if ctx.Err() != nil { // and hangUp may be over
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.stats.Clients++
	if !wanted {
		s.stats.Unwanted++
		s.mu.Unlock()
		relay.Reset(conn)
		s.log.Debug("client that no rule would let in", "inbound", l.Name, "src", c.source)
		return
	}
	if s.waiting.Len() >= s.opts.MaxClients {
		oldest := s.waiting.Front().Value.(*client)
		s.leaveLocked(oldest)
		oldest.raw.Close()
		oldest.cancel()
		s.stats.Evicted++
	}
	var inTime context.Context
	inTime, c.cancel = context.WithTimeout(ctx, s.opts.Negotiate)
	c.place = s.waiting.PushBack(c)
	s.mu.Unlock()
	work.Go(func() { c.serve(ctx, inTime) })
}

// leave takes a client out of those that have not asked yet.
func (s *Server) leave(c *client) {
	s.mu.Lock()
	s.leaveLocked(c)
	s.mu.Unlock()
}

func (s *Server) leaveLocked(c *client) {
	if c.place != nil {
		s.waiting.Remove(c.place)
		c.place = nil
	}
}

// hangUp closes the connections of all that have not asked yet.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.waiting.Front(); e != nil; e = e.Next() {
		e.Value.(*client).raw.Close()
	}
}

// failed notes that a client did not get as far as a request.
func (s *Server) failed(c *client, err error) {
	var why notLetIn
	if errors.As(err, &why) && s.told.due(c.source.Addr(), time.Now()) {
		s.log.Warn("a client is not let in", "inbound", c.listener.Name, "src", c.source, "err", why.error)
	} else {
		s.log.Debug("client without a request", "inbound", c.listener.Name, "src", c.source, "err", err)
	}
	s.mu.Lock()
	s.stats.Failed++
	s.mu.Unlock()
}
