package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

const (
	// DefaultNegotiate is how long a server may take from our greeting to
	// the end of authentication: one or two round trips, for which it has to
	// ask nobody but perhaps PAM. danted itself gives a client 30 s.
	DefaultNegotiate = 10 * time.Second

	// DefaultRequest is how long a server may take from our request to its
	// reply. In it the server resolves the name and connects, for which
	// danted takes up to 30 s, and then says why it could not: a little more
	// hears it. It takes 3 s to find a host that is down.
	DefaultRequest = 35 * time.Second
)

// maxTries is how many addresses of one name a server is asked for. Each costs a
// connection to the server and a negotiation.
const maxTries = 6

// SocksOptions describe a SOCKS server. In the words of curl's URLs:
//
//	socks4://   Version 4                 socks4a://  Version 4, RemoteNames
//	socks5://   Version 5                 socks5h://  Version 5, RemoteNames
type SocksOptions struct {
	// Name is what errors and flow records call the server.
	Name string
	// Version is 4 or 5: socks.Version4 or socks.Version5.
	Version byte
	// RemoteNames says that the server resolves names: they are sent to it
	// and nobody else. Otherwise they are resolved by Resolver.
	RemoteNames bool

	// Server is where the server listens. If it is a name, Via resolves it.
	// It is the zero Target if Via is a [Unix].
	Server flow.Target
	// Via is how the server is reached: a [Direct], a [Unix], or the way
	// through another server, which makes a chain. It carries our UDP as well
	// if it is a [PacketDialer].
	Via Dialer
	// TLS, if not nil, has the server spoken to over TLS. A ServerName that is
	// empty is that of Server. The Config is copied.
	TLS *tls.Config

	// User and Password are sent as RFC 1929 has it, if either is not empty.
	// The server is offered nothing else then: danted picks by its own order,
	// would take "none" and refuse the request for want of a user. To a
	// SOCKS4 server User goes as the user ID, and there is no password.
	User, Password string
	// Users, if not nil, makes the User of each flow, from what [FlowOf] says of
	// it. It is for servers that tell flows apart by it, as tor keeps those of
	// different users on circuits of their own.
	Users *flow.Template

	// GSSAPI, if not nil, has us and a SOCKS5 server authenticate each other by
	// RFC 1961. There is no User and no Password then.
	GSSAPI *GSSAPI

	// Pipeline says that a SOCKS5 server takes greeting, user and password, and
	// request in one segment, as danted, ssh -D, ss-local and tor do: a flow
	// then waits for one round trip instead of two or three. With microsocks it
	// would wait for ever.
	Pipeline bool
	// EarlyReply says that the server tells success before it knows, as ss-local
	// does. A connection on which nothing comes but its end, before we have ended
	// our direction, is then a syscall.ECONNRESET and no EOF. Such a connection
	// is no plain socket.
	EarlyReply bool

	// Resolver and Deny are as in [DirectOptions]: for the names of targets
	// that are resolved here, and for the addresses that are sent.
	Resolver Resolver
	Deny     func(netip.Addr) bool

	// Connect limits a look-up of the Resolver, and the connect to the
	// server; where Via is a chain, its own limits hold for that. Negotiate
	// and Request limit the steps after it, Negotiate the TLS handshake too.
	// 0 is DefaultConnect, DefaultNegotiate and DefaultRequest.
	Connect, Negotiate, Request time.Duration
}

// Socks is the outbound through one SOCKS server, and through those that its Via
// goes through.
//
// It sends each message in one write and waits for the answer before the next:
// microsocks hangs for ever otherwise. Its connections are those of the first hop,
// with nothing in between, unless a hop has TLS or replies early.
type Socks struct {
	hop
	opts SocksOptions

	buffers    sync.Pool   // of *[]byte, maxDatagram long
	associated atomic.Bool // it has given an association

	stats struct{ fragments, strangers, malformed atomic.Uint64 }
}

var (
	_ Dialer       = (*Socks)(nil)
	_ PacketDialer = (*Socks)(nil)
	_ Chain        = (*Socks)(nil)
)

// NewSocks returns a Socks. It opens nothing.
func NewSocks(o SocksOptions) (*Socks, error) {
	switch {
	case o.Version != socks.Version4 && o.Version != socks.Version5:
		return nil, fmt.Errorf("%s: SOCKS version %d, want 4 or 5", o.Name, o.Version)
	case o.Version == socks.Version4 && o.Password != "":
		return nil, fmt.Errorf("%s: SOCKS4 has a user but no password", o.Name)
	case o.Version == socks.Version4 && o.Pipeline:
		return nil, fmt.Errorf("%s: SOCKS4 has one message, and nothing to pipeline", o.Name)
	case o.GSSAPI != nil && (o.Version == socks.Version4 || o.Pipeline || o.User != "" || o.Users != nil || o.Password != ""):
		return nil, fmt.Errorf("%s: GSSAPI is for SOCKS5, with no user and password, and nothing is pipelined", o.Name)
	}
	if o.Users != nil {
		o.User = userOf(context.Background(), o.Users, "") // one for the checks
	}
	// What cannot be written is refused here and not at the first flow.
	_, err := socks.AppendUserPass(nil, o.User, o.Password)
	if o.Version == socks.Version4 {
		_, err = socks.AppendRequest4(nil, socks.Connect, socks.Addr{IP: netip.IPv4Unspecified()}, o.User)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	s := &Socks{opts: o, hop: hop{
		name: o.Name, server: o.Server, via: o.Via, tls: o.TLS,
		connect: o.Connect, negotiate: o.Negotiate, request: o.Request,
	}}
	if err := s.init(); err != nil {
		return nil, err
	}
	s.buffers.New = func() any { b := make([]byte, maxDatagram); return &b }
	return s, nil
}

// SocksStats count the datagrams from a server that were dropped.
type SocksStats struct {
	Fragments uint64 // FRAG was not 0
	Strangers uint64 // not from the address that the server gave for its relay
	Malformed uint64 // without a SOCKS header, or not protected as they should be
}

// Stats returns the counters since NewSocks.
func (s *Socks) Stats() SocksStats {
	return SocksStats{
		Fragments: s.stats.fragments.Load(),
		Strangers: s.stats.strangers.Load(),
		Malformed: s.stats.malformed.Load(),
	}
}

// DialTCP asks the server for t. If t is a name that is resolved here, the
// server is asked for one address after the other as long as it says that the
// one before was refused or could not be reached.
//
// The connection holds all that came after the server's reply, also if it came
// in the same segment.
func (s *Socks) DialTCP(ctx context.Context, t flow.Target) (Conn, error) {
	addrs, err := s.addresses(ctx, t)
	if err != nil {
		return nil, err
	}
	var told error
	for _, a := range addrs[:min(len(addrs), maxTries)] {
		conn, err := s.ask(ctx, a)
		if err == nil {
			FlowOf(ctx).Reached(t, a.IP)
			return conn, nil
		}
		told = moreTelling(told, err)
		if !anotherMayDo(err) || ctx.Err() != nil {
			break
		}
	}
	return nil, told
}

// anotherMayDo says whether an error is about the address that a server was
// asked for, so that another address may do better. SOCKS4 and ssh -D have one
// answer for everything, 91 and EOF.
func anotherMayDo(err error) bool {
	var hop *HopError
	if !errors.As(err, &hop) || hop.Op != opRequest || hop.Hop != hop.Hops {
		return false
	}
	var reply socks.ReplyError
	if errors.As(hop.Err, &reply) {
		switch reply {
		case socks.ReplyGeneral, socks.ReplyNetUnreachable, socks.ReplyHostUnreachable,
			socks.ReplyRefused, socks.ReplyTTL, socks.ReplyAddressType:
			return true
		}
		return false
	}
	return errors.Is(hop.Err, socks.Reply4Rejected) || HungUp(hop.Err)
}

// addresses returns what the server can be asked for to reach t: the name, or
// one or more addresses.
func (s *Socks) addresses(ctx context.Context, t flow.Target) ([]socks.Addr, error) {
	t = unname(t)
	if s.opts.RemoteNames && t.Name != "" {
		return []socks.Addr{{Name: t.Name, Port: t.Port}}, nil
	}
	network := "ip"
	if s.opts.Version == socks.Version4 && !t.Addr.IsValid() {
		network = "ip4"
	}
	ctx, cancel := context.WithTimeout(ctx, s.connect)
	defer cancel()
	ips, err := resolve(ctx, s.opts.Resolver, network, t, s.opts.Deny)
	if err != nil {
		return nil, err
	}
	addrs := make([]socks.Addr, len(ips))
	for i, ip := range ips {
		addrs[i] = socks.Addr{IP: ip, Port: t.Port}
	}
	return addrs, nil
}

// ask connects to the server and requests a connection to a.
func (s *Socks) ask(ctx context.Context, a socks.Addr) (Conn, error) {
	// First the request: what a server cannot be asked for costs no
	// connection.
	request, err := s.encode(ctx, socks.Connect, a)
	if err != nil {
		return nil, s.hopError(opRequest, err)
	}
	conn, err := s.reach(ctx)
	if err != nil {
		return nil, err
	}
	conn, _, err = s.exchange(ctx, conn, request)
	if err != nil {
		return nil, err
	}
	if s.opts.EarlyReply {
		return &early{Conn: conn}, nil
	}
	return conn, nil
}

// encode writes the request for a connection to a, or from it.
func (s *Socks) encode(ctx context.Context, cmd socks.Command, a socks.Addr) ([]byte, error) {
	if s.opts.Version == socks.Version5 {
		if s.opts.Users != nil {
			// A name may make a user longer than it can be. That is the
			// flow's fault, and not the server's, who is not to be blamed.
			if _, err := socks.AppendUserPass(nil, userOf(ctx, s.opts.Users, ""), s.opts.Password); err != nil {
				return nil, err
			}
		}
		return socks.AppendRequest(nil, cmd, a)
	}
	b, err := socks.AppendRequest4(nil, cmd, a, userOf(ctx, s.opts.Users, s.opts.User))
	if err == socks.ErrNoIPv6 {
		err = fmt.Errorf("%w: %w", err, syscall.ENETUNREACH)
	}
	return b, err
}

// exchange negotiates with the server over a new connection, sends it a request
// and returns the address in its reply, and the connection as it is to be used from then
// on. It closes the connection if ctx ends before, or if anything else goes wrong;
// otherwise the connection is just behind the reply.
func (s *Socks) exchange(ctx context.Context, conn Conn, request []byte) (secured Conn, bound socks.Addr, err error) {
	err = s.speak(ctx, conn, func() (op string, err error) {
		secured, bound, op, err = s.handshake(ctx, conn, request)
		return op, err
	})
	return secured, bound, err
}

// handshake speaks SOCKS with the server, up to the last byte of its reply. The
// op is the step that an error belongs to.
func (s *Socks) handshake(ctx context.Context, conn Conn, request []byte) (_ Conn, bound socks.Addr, op string, err error) {
	limit := s.negotiate
	conn.SetDeadline(time.Now().Add(limit)) // if it fails, so does the write after it
	if s.opts.Version == socks.Version5 {
		var sent bool
		if conn, sent, op, err = s.authenticate(ctx, conn, request); sent {
			request = nil
		}
	}
	if err == nil {
		op, limit = opRequest, s.request
		conn.SetDeadline(time.Now().Add(limit))
		bound, err = s.requestOver(conn, request)
	}
	switch {
	case errors.Is(err, socks.ErrNoMethod):
		op = opAuthenticate
	case errors.Is(err, socks.ErrProtocol):
		op = opNegotiate // it says nothing about what was asked for
	}
	return conn, bound, op, noAnswer(err, limit)
}

// authenticate is RFC 1928 §3 with RFC 1929 or RFC 1961. It returns the connection as it
// is protected from then on; sent says that the request has been sent as well. One method
// is offered, so that what comes behind the greeting is known before the server has
// chosen.
func (s *Socks) authenticate(ctx context.Context, conn Conn, request []byte) (_ Conn, sent bool, op string, err error) {
	if s.opts.GSSAPI != nil {
		secured, op, err := s.opts.GSSAPI.authenticate(ctx, conn, s.negotiate)
		return secured, false, op, err
	}
	offer := socks.MethodNone
	var login []byte
	if s.opts.User != "" || s.opts.Password != "" {
		offer = socks.MethodUserPass
		if login, err = socks.AppendUserPass(nil, userOf(ctx, s.opts.Users, s.opts.User), s.opts.Password); err != nil {
			return conn, false, opAuthenticate, err
		}
	}
	first := socks.AppendMethods(nil, offer)
	if s.opts.Pipeline {
		first = append(append(first, login...), request...)
	}
	if _, err := conn.Write(first); err != nil {
		return conn, s.opts.Pipeline, opNegotiate, err
	}
	method, err := socks.ReadMethod(conn, offer)
	if err != nil || method == socks.MethodNone {
		return conn, s.opts.Pipeline, opNegotiate, err
	}
	if !s.opts.Pipeline {
		_, err = conn.Write(login)
	}
	if err == nil {
		err = socks.ReadAuthStatus(conn)
	}
	return conn, s.opts.Pipeline, opAuthenticate, err
}

// requestOver sends a request, unless it is nil and on its way already, and reads the
// reply.
func (s *Socks) requestOver(conn Conn, request []byte) (socks.Addr, error) {
	if request != nil {
		if _, err := conn.Write(request); err != nil {
			return socks.Addr{}, err
		}
	}
	return s.readReply(conn)
}

// readReply reads a reply of the server's version.
func (s *Socks) readReply(conn Conn) (socks.Addr, error) {
	if s.opts.Version == socks.Version5 {
		return socks.ReadReply(conn)
	}
	bound, err := socks.ReadReply4(conn)
	return socks.Addr{IP: bound.Addr(), Port: bound.Port()}, err
}
