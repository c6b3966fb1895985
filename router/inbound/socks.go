package inbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

// commands are those of SOCKS.
var commands = map[socks.Command]flow.Command{
	socks.Connect: flow.Connect, socks.Bind: flow.Bind, socks.UDPAssociate: flow.Associate,
}

// errMethod is told of a client that offers no method that we take.
var errMethod = errors.New("offers none of the methods of this listener")

// socks5 answers a SOCKS5 client.
type socks5 struct{}

func (socks5) connected(bound netip.AddrPort) []byte {
	return socks.AppendReply(nil, socks.ReplySucceeded, bound)
}

func (socks5) refused(err error) []byte {
	code, ok := reply(err)
	if !ok {
		return nil
	}
	return socks.AppendReply(nil, code, netip.AddrPort{})
}

// negotiate5 goes on behind the version.
func (c *client) negotiate5(ctx context.Context, s *Stream) (request, error) {
	offered, err := socks.ReadMethods(s.R)
	if err != nil {
		return request{}, fmt.Errorf("greeting: %w", err)
	}
	m := c.method(func(m socks.Method) bool { return slices.Contains(offered, m) })
	if m == nil {
		return request{protocol: lastWord(socks.AppendNoMethod(nil)), err: errMethod}, nil
	}
	if _, err := s.Write(socks.AppendMethod(nil, m.Code())); err != nil {
		return request{}, err
	}
	who, err := m.Negotiate(ctx, s)
	if errors.Is(err, ErrDenied) {
		if _, silent := m.(Ident); silent {
			// It has been told that nothing is asked of it, and has asked.
			if _, err := socks.ReadRequest(s.R); err != nil {
				return request{}, fmt.Errorf("request: %w", err)
			}
			return request{protocol: socks5{}, err: fmt.Errorf("%w: %w", socks.ReplyRuleset, err)}, nil
		}
		return request{protocol: lastWord{}, err: err}, nil
	}
	if err != nil {
		return request{}, err
	}
	asked, err := socks.ReadRequest(s.R)
	var code socks.ReplyError
	if errors.As(err, &code) {
		return request{protocol: socks5{}, err: err}, nil
	}
	if err != nil {
		return request{}, fmt.Errorf("request: %w", err)
	}
	return wanted(socks5{}, asked, who), nil
}

// lastWord is the protocol of a client that is told this, and no more.
type lastWord []byte

func (w lastWord) connected(netip.AddrPort) []byte { return w }
func (w lastWord) refused(error) []byte            { return append([]byte{}, w...) }

// socks4 answers a SOCKS4 client.
type socks4 struct{}

func (socks4) connected(bound netip.AddrPort) []byte {
	return socks.AppendReply4(nil, socks.Reply4Granted, bound)
}

func (socks4) refused(err error) []byte {
	if _, ok := reply(err); !ok {
		return nil
	}
	code := socks.Reply4Rejected
	// Only of what we have found out ourselves: what is beyond us says nothing of
	// our client's user.
	var own *userError
	if errors.As(err, &own) {
		code = own.code
	}
	return socks.AppendReply4(nil, code, netip.AddrPort{})
}

// userError is why a SOCKS4 client is not who it says it is.
type userError struct {
	code socks.ReplyError4
	err  error
}

func (e *userError) Error() string { return e.err.Error() }
func (e *userError) Unwrap() error { return e.err }

// negotiate4 goes on behind the version. The user that a client gives is not
// confirmed by anything, and so of no use.
func (c *client) negotiate4(ctx context.Context, s *Stream) (request, error) {
	asked, err := socks.ReadRequest4(s.R)
	if err != nil {
		return request{}, fmt.Errorf("request: %w", err)
	}
	m := c.method(func(m socks.Method) bool { return m == socks.MethodNone })
	if m == nil {
		return request{protocol: socks4{}, err: errMethod}, nil
	}
	who, err := m.Negotiate(ctx, s)
	if err != nil {
		return request{protocol: socks4{}, err: err}, nil
	}
	if who.User != "" && who.User != asked.User {
		err := &userError{socks.Reply4UserMismatch, errors.New("ident names another user than the request")}
		return request{protocol: socks4{}, err: notLetIn{err}}, nil
	}
	return wanted(socks4{}, asked, who), nil
}

// wanted is what a SOCKS client wants.
func wanted(p protocol, asked socks.Request, who Identity) request {
	q := request{protocol: p, who: who, command: commands[asked.Command]}
	_, is5 := p.(socks5)
	switch {
	case q.command == flow.Associate && is5:
		q.from = netip.AddrPortFrom(asked.Addr.IP, asked.Addr.Port)
	case q.command == flow.Connect, q.command == flow.Bind:
		q.target, q.err = target(asked.Addr)
	default:
		q.err = fmt.Errorf("%w: %d", socks.ReplyCommand, asked.Command)
	}
	return q
}

// target returns a target that is fit to be looked at. What is no name that anybody
// could have is a host that cannot be reached.
func target(a socks.Addr) (flow.Target, error) {
	if a.Name == "" && a.IP.IsValid() {
		return flow.AddrTarget(netip.AddrPortFrom(a.IP, a.Port)), nil
	}
	t, err := flow.NewTarget(strings.Trim(a.Name, "[]"), a.Port)
	if err != nil {
		return t, fmt.Errorf("%w: %w", socks.ReplyHostUnreachable, err)
	}
	return t, nil
}
