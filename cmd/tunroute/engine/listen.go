package engine

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"tunroute/cmd/tunroute/config"
	"tunroute/router/flow"
	"tunroute/router/ident"
	"tunroute/router/inbound"
	"tunroute/router/inbound/users"
	"tunroute/router/outbound"
)

// newServer makes the server of listen.
func (e *Engine) newServer() (_ *inbound.Server, err error) {
	if e.own, err = outbound.NewDirect(outbound.DirectOptions{Mark: e.opts.Mark}); err != nil {
		return nil, err
	}
	return inbound.New(inbound.Options{
		Serve: func(ctx context.Context, f flow.Flow, c inbound.Call) { e.router.ServeCall(ctx, f, c) },
		Associate: func(f flow.Flow, c inbound.PacketClient) (inbound.Association, error) {
			return e.router.Associate(f, c)
		},
		MaxAssociations: e.current.Load().Limits.UDPSessions,
		Admits:          e.router.Admits,
		Control:         e.own.Control,
		Logger:          e.log,
	})
}

// listenSocks opens the listeners of listen.
func (e *Engine) listenSocks(ctx context.Context, opened *closers) (all []inbound.Listener, err error) {
	for _, l := range e.current.Load().Listen.Socks {
		in := inbound.Listener{Name: l.Name, Relays: inbound.Relays{Announce: l.UDP.Announce}}
		for _, p := range l.UDP.Ports {
			in.Relays.First, in.Relays.Last = p.First, p.Last
		}
		if in.Methods, err = e.methods(l); err != nil {
			return nil, fmt.Errorf("listen %v: %w", l.At, err)
		}
		if in.Listener, err = listenAt(ctx, l); err != nil {
			return nil, fmt.Errorf("listen %v: %w", l.At, err)
		}
		opened.add(in.Listener)
		if l.TLS.Cert != "" {
			if in.TLS, err = serverTLS(l.TLS, e.log); err != nil {
				return nil, fmt.Errorf("listen %v: tls: %w", l.At, err)
			}
		}
		all = append(all, in)
	}
	return all, nil
}

func listenAt(ctx context.Context, l config.Listener) (net.Listener, error) {
	var lc net.ListenConfig
	if l.At.Path == "" {
		return lc.Listen(ctx, "tcp", l.At.Addr.String())
	}
	return ListenUnix(l.At.Path, fs.FileMode(cmp.Or(l.Mode, defaultMode)))
}

// defaultMode of a unix socket: for its owner.
const defaultMode = config.FileMode(0o600)

// methods returns how clients may say who they are.
func (e *Engine) methods(l config.Listener) (list []inbound.Method, err error) {
	for _, a := range l.Auth {
		switch a {
		case config.AuthNone:
			list = append(list, inbound.None{})
		case config.AuthPassword:
			known, err := e.users(l)
			if err != nil {
				return nil, err
			}
			list = append(list, inbound.Password{Checker: known})
		case config.AuthIdent:
			d := net.Dialer{Control: e.own.Control}
			list = append(list, inbound.Ident{Ask: func(ctx context.Context, here, there netip.AddrPort) (string, error) {
				return ident.Ask(ctx, d, here, there)
			}})
		case config.AuthGSSAPI:
			m, err := gssapiMethod(l)
			if err != nil {
				return nil, err
			}
			list = append(list, m)
		}
	}
	return list, nil
}

// users returns who knows the users of a listener.
func (e *Engine) users(l config.Listener) (*users.Guard, error) {
	if l.Users == "" {
		return users.NewGuard(users.Command{Args: l.Authenticate.Command}, e.log), nil
	}
	f, err := users.Open(l.Users, e.log)
	if err != nil {
		return nil, fmt.Errorf("users: %w", err)
	}
	return users.NewGuard(f, e.log), nil
}
