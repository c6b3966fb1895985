package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/relay"
)

// HTTPOptions describe an HTTP proxy that has CONNECT.
type HTTPOptions struct {
	// Name is what errors and flow records call the server.
	Name string
	// Server, Via and TLS are as in [SocksOptions].
	Server flow.Target
	Via    Dialer
	TLS    *tls.Config

	// User and Password are sent as Basic credentials (RFC 7617) with the
	// first request, if either is not empty: to be asked for them would cost a
	// round trip, and there is no other scheme here.
	User, Password string
	// Users is as in [SocksOptions].
	Users *flow.Template

	// Deny is true for addresses that must never be sent.
	Deny func(netip.Addr) bool

	// Connect limits the connect to the server, where Via is not a chain,
	// Negotiate the TLS handshake, and Request what comes behind them. 0 is
	// DefaultConnect, DefaultNegotiate and DefaultRequest.
	Connect, Negotiate, Request time.Duration
}

// HTTP is the outbound through one HTTP proxy, and through those that its Via goes
// through. Names are resolved by the proxy, and there is no UDP.
//
// Its connections are those of the first hop, as those of [Socks] are.
type HTTP struct {
	hop
	authorization string         // of all flows
	users         *flow.Template // or nil
	password      string
	deny          func(netip.Addr) bool
}

var (
	_ Dialer       = (*HTTP)(nil)
	_ PacketDialer = (*HTTP)(nil)
	_ Chain        = (*HTTP)(nil)
)

// NewHTTP returns an HTTP. It opens nothing.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	h := &HTTP{users: o.Users, password: o.Password, deny: o.Deny, hop: hop{
		name: o.Name, server: o.Server, via: o.Via, tls: o.TLS,
		connect: o.Connect, negotiate: o.Negotiate, request: o.Request,
	}}
	if o.Users != nil {
		o.User = userOf(context.Background(), o.Users, "") // one for the check
	}
	if o.User != "" || o.Password != "" {
		var err error
		if h.authorization, err = httpconnect.Basic(o.User, o.Password); err != nil {
			return nil, fmt.Errorf("%s: %w", o.Name, err)
		}
	}
	if err := h.init(); err != nil {
		return nil, err
	}
	return h, nil
}

// DialTCP asks the proxy for t, by name where there is one.
//
// The connection holds all that came after the proxy's reply, also if it came in
// the same segment.
func (h *HTTP) DialTCP(ctx context.Context, t flow.Target) (Conn, error) {
	t = unname(t)
	if t.Name == "" && t.Addr.IsValid() {
		if err := refusal(t.Addr, h.deny); err != nil {
			return nil, err
		}
	}
	// First the request: what a server cannot be asked for costs no
	// connection.
	host := t.Name
	if host == "" && t.Addr.IsValid() {
		host = t.Addr.String()
	}
	authorization := h.authorization
	if h.users != nil {
		var err error
		if authorization, err = httpconnect.Basic(userOf(ctx, h.users, ""), h.password); err != nil {
			return nil, h.hopError(opRequest, err)
		}
	}
	request, err := httpconnect.AppendRequest(nil, host, t.Port, authorization)
	if err != nil {
		return nil, h.hopError(opRequest, err)
	}
	conn, err := h.reach(ctx)
	if err != nil {
		return nil, err
	}
	var rest []byte
	err = h.speak(ctx, conn, func() (op string, err error) {
		rest, op, err = h.ask(conn, request)
		return op, err
	})
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return &ahead{conn, rest}, nil
	}
	return conn, nil
}

// ask sends the request and reads the head of the reply. rest is what came behind
// it.
func (h *HTTP) ask(conn Conn, request []byte) (rest []byte, op string, err error) {
	conn.SetDeadline(time.Now().Add(h.request)) // if it fails, so does the write after it
	if _, err = conn.Write(request); err == nil {
		rest, err = httpconnect.ReadReply(conn)
	}
	var status *httpconnect.StatusError
	switch {
	case errors.As(err, &status) && (status.Code == 407 || status.Code == 401):
		// 401 is what tinyproxy 1.11 says to the wrong password, and 407 to none.
		if h.authorization == "" && h.users == nil {
			err = fmt.Errorf("the server wants a user and password: %w", err)
		}
		return nil, opAuthenticate, err
	case errors.Is(err, httpconnect.ErrProtocol):
		return nil, opNegotiate, err // it says nothing about what was asked for
	}
	return rest, opRequest, noAnswer(err, h.request)
}

// OpenUDP returns [ErrNoUDP].
func (h *HTTP) OpenUDP(context.Context) (PacketConn, error) {
	return nil, h.hopError(opRequest, fmt.Errorf("HTTP CONNECT: %w", ErrNoUDP))
}

// ahead is a connection of which some has been read already.
type ahead struct {
	Conn
	rest []byte // the reader's
}

func (a *ahead) Read(b []byte) (int, error) {
	if len(a.rest) == 0 {
		return a.Conn.Read(b)
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Reset ends the connection by a RST.
func (a *ahead) Reset() { relay.Reset(a.Conn) }

// httpErrno returns what a refusal of a proxy says of the target.
//
// There is no status for it. squid 5 has 503 for a connect that failed and 500 for a
// name that does not exist, both with the reason in X-Squid-Error (errors.h there:
// the type, and the errno of its system); tinyproxy 1.11 has 500 for everything
// ("Unable to connect", reqs.c); RFC 9209 §2.3 names the reasons that a Proxy-Status
// can have. 403 is a rule of the proxy with all of them: squid's http_access,
// tinyproxy's ConnectPort and Filter.
func httpErrno(e *httpconnect.StatusError) syscall.Errno {
	squid, number, _ := strings.Cut(e.Cause, " ")
	switch {
	case e.Code == 403, e.Cause == "destination_ip_prohibited", e.Cause == "http_request_denied":
		return syscall.EACCES
	case e.Cause == "connection_refused":
		return syscall.ECONNREFUSED
	case e.Cause == "destination_ip_unroutable":
		return syscall.ENETUNREACH
	case squid == "ERR_CONNECT_FAIL":
		// Linux, FreeBSD; no connect has the number of the one on the other.
		switch number {
		case "111", "61":
			return syscall.ECONNREFUSED
		case "101", "51":
			return syscall.ENETUNREACH
		}
	}
	return syscall.EHOSTUNREACH
}
