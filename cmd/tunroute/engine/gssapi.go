package engine

import (
	"context"
	"net"

	"tunroute/cmd/tunroute/config"
	"tunroute/router/flow"
	"tunroute/router/gssapi"
	"tunroute/router/gssapi/krb5"
	"tunroute/router/inbound"
	"tunroute/router/outbound"
)

// gssapi returns how to authenticate with an upstream by GSSAPI, or nil. Upstreams that
// have the same tickets share them.
func (b *builder) gssapi(u *config.Upstream) (*outbound.GSSAPI, error) {
	if u.Auth != config.AuthGSSAPI {
		return nil, nil
	}
	o := krb5.ClientOptions{CCache: u.CCache, Keytab: u.Keytab, Principal: u.Principal}
	key := [3]string{o.CCache, o.Keytab, o.Principal}
	client := b.kerberos[key]
	if client == nil {
		// KDCs are asked from this machine, past our own rules.
		direct, err := b.direct(&config.Upstream{}, nil)
		if err != nil {
			return nil, err
		}
		o.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			t, err := flow.ParseTarget(address)
			if err != nil {
				return nil, err
			}
			return direct.DialTCP(ctx, t)
		}
		o.LookupSRV = (&net.Resolver{PreferGo: true, Dial: direct.DialContext}).LookupSRV
		client = krb5.NewClient(o)
		if b.kerberos == nil {
			b.kerberos = make(map[[3]string]*krb5.Client)
		}
		b.kerberos[key] = client
	}
	host, service := u.Server.Name, u.Service
	return &outbound.GSSAPI{
		Initiate: func(ctx context.Context) (gssapi.Context, error) {
			return client.Initiate(ctx, service, host)
		},
		Protection: protection(u.Protection),
		NEC:        u.Compatibility == config.NECGSSAPI,
	}, nil
}

// gssapiMethod returns how clients authenticate at a listener by GSSAPI.
func gssapiMethod(l config.Listener) (inbound.Method, error) {
	server, err := krb5.NewServer(krb5.ServerOptions{Keytab: l.Keytab, Service: l.Service})
	if err != nil {
		return nil, err
	}
	m := inbound.GSSAPI{Accept: server.Accept, NEC: l.Compatibility == config.NECGSSAPI}
	for _, p := range l.Protection {
		m.Allow |= gssapi.Set(protection(p))
	}
	return m, nil
}

// protection returns a protection of the config as package gssapi has it.
func protection(p config.Protection) gssapi.Protection {
	switch p {
	case config.Bare:
		return gssapi.None
	case config.Integrity:
		return gssapi.Integrity
	}
	return gssapi.Confidentiality
}
