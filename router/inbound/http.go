package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/socks"
)

// proxyName is what we are called in what HTTP clients are told.
const proxyName = "tunroute"

// statusError is what an HTTP client is told of its own request.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// http answers an HTTP client.
type http struct{}

func (http) connected(netip.AddrPort) []byte { return httpconnect.AppendConnected(nil) }

func (http) refused(err error) []byte {
	var own *statusError
	if errors.As(err, &own) {
		return httpconnect.AppendRefusal(nil, proxyName, own.code, "", own.text)
	}
	code, ok := reply(err)
	if !ok {
		return nil
	}
	s := statuses[code]
	if s.code == 0 {
		s = statuses[socks.ReplyGeneral]
	}
	return httpconnect.AppendRefusal(nil, proxyName, s.code, s.cause, s.text)
}

// statuses are the replies of SOCKS in HTTP's words: the status, the error type of
// RFC 9209 §2.3, and a text for people that tells nothing of our own network.
var statuses = map[socks.ReplyError]struct {
	code  int
	cause string
	text  string
}{
	socks.ReplyGeneral:         {502, "proxy_internal_error", "the connection could not be made"},
	socks.ReplyRuleset:         {403, "http_request_denied", "not allowed by the rules of the proxy"},
	socks.ReplyNetUnreachable:  {502, "destination_ip_unroutable", "network unreachable"},
	socks.ReplyHostUnreachable: {502, "destination_unavailable", "host unreachable"},
	socks.ReplyRefused:         {502, "connection_refused", "connection refused"},
	socks.ReplyTTL:             {504, "connection_timeout", "no answer in time"},
	socks.ReplyAddressType:     {502, "destination_ip_unroutable", "address family not supported"},
}

// negotiateHTTP reads a request whole.
func (c *client) negotiateHTTP(ctx context.Context, s *Stream) (request, error) {
	asked, err := httpconnect.ReadRequest(s.R)
	q := request{protocol: http{}, command: flow.Connect}
	if errors.Is(err, httpconnect.ErrProtocol) {
		q.err = &statusError{400, err.Error()}
		return q, nil
	}
	if err != nil {
		return q, fmt.Errorf("request: %w", err)
	}
	// To have a password is to offer it, as the methods of SOCKS are.
	m := c.method(func(m socks.Method) bool {
		return m == socks.MethodNone || m == socks.MethodUserPass && asked.HasUser
	})
	switch m := m.(type) {
	case nil:
		q.err = &statusError{407, "the proxy wants a user and a password"}
		if c.method(func(m socks.Method) bool { return m == socks.MethodUserPass }) == nil {
			q.err = &statusError{403, "the proxy takes no HTTP clients here"}
		}
		return q, nil
	case Password:
		q.who, err = m.Check(ctx, c.source.Addr(), asked.User, asked.Password)
		if err != nil {
			q.err = &statusError{407, ErrDenied.Error()}
			return q, nil
		}
	default:
		if q.who, err = m.Negotiate(ctx, s); err != nil {
			q.err = fmt.Errorf("%w: %w", &statusError{403, "the proxy does not know who this is"}, err)
			return q, nil
		}
	}
	if asked.Method != httpconnect.MethodConnect {
		q.err = &statusError{405, "this proxy has CONNECT only"}
		return q, nil
	}
	if q.target, err = flow.ParseTarget(asked.Target); err != nil {
		q.err = &statusError{400, "a CONNECT wants HOST:PORT"}
	}
	return q, nil
}
