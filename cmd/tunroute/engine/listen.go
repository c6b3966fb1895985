package engine

import (
	"context"
	"fmt"
	"net"

	"tunroute/cmd/tunroute/config"
	"tunroute/router/flow"
	"tunroute/router/inbound"
)

// newServer makes the server of listen.
func (e *Engine) newServer() (*inbound.Server, error) {
	return inbound.New(inbound.Options{
		Serve:  func(ctx context.Context, f flow.Flow, c inbound.Call) { e.router.ServeCall(ctx, f, c) },
		Logger: e.log,
	})
}

// listenSocks opens the listeners of listen.
func (e *Engine) listenSocks(ctx context.Context, opened *closers) (all []inbound.Listener, err error) {
	for _, l := range e.current.Load().Listen.Socks {
		in := inbound.Listener{Name: l.Name, Methods: methods(l)}
		if in.Listener, err = listenAt(ctx, l.At); err != nil {
			return nil, fmt.Errorf("listen %v: %w", l.At, err)
		}
		opened.add(in.Listener)
		all = append(all, in)
	}
	return all, nil
}

func listenAt(ctx context.Context, at config.ListenAt) (net.Listener, error) {
	var lc net.ListenConfig
	if at.Path != "" {
		return lc.Listen(ctx, "unix", at.Path)
	}
	return lc.Listen(ctx, "tcp", at.Addr.String())
}

// methods returns how clients may say who they are.
func methods(l config.Listener) (list []inbound.Method) {
	for _, a := range l.Auth {
		switch a {
		case config.AuthNone:
			list = append(list, inbound.None{})
		}
	}
	return list
}
