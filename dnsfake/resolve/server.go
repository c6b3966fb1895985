package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Transport is how a [Server] is spoken to.
type Transport uint8

// The transports.
const (
	UDP   Transport = iota // and TCP, for what UDP cannot carry
	TCP                    // RFC 7766
	TLS                    // RFC 7858
	HTTPS                  // RFC 8484
)

// String returns the transport as a URL has it.
func (t Transport) String() string {
	switch t {
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	case TLS:
		return "tls"
	case HTTPS:
		return "https"
	}
	return fmt.Sprintf("transport(%d)", uint8(t))
}

// encrypted tells whether others on the way cannot read nor forge.
func (t Transport) encrypted() bool { return t == TLS || t == HTTPS }

// Dial opens the way to a server; network is "udp" or "tcp", addr is one of the
// server's. The connection for "udp" keeps the bounds of datagrams and delivers
// those of the server only. It is safe for concurrent use.
type Dial = func(ctx context.Context, network, addr string) (net.Conn, error)

// Server is a DNS server. Addrs must be set, and URL for HTTPS; or System and nothing
// else but Dial.
type Server struct {
	// System stands for those servers that this machine is set up with, as they
	// change.
	System *System

	Transport Transport

	// Addrs are where it is, as HOST:PORT. They are tried in order. A host
	// that is a name is for Dial to resolve.
	Addrs []string

	// Name is what the certificate has to be good for, a name or an address;
	// empty means the host of the first of Addrs. For TLS and HTTPS.
	Name string

	// URL is what is posted to. For HTTPS; it is never resolved.
	URL string

	// Roots are whom the certificate has to be signed by; nil means whom this
	// machine trusts. For TLS and HTTPS.
	Roots *x509.CertPool

	// Alone says that each question has a connection of its own, which is dialled
	// with the context of who asks. For TCP and TLS.
	Alone bool

	// Dial opens the way there. Nil means a zero [net.Dialer].
	Dial Dial
}

// Plain returns the Server at an address that is asked by UDP, and by TCP for what
// UDP cannot carry. Nil for dial means a zero [net.Dialer].
func Plain(addr netip.AddrPort, dial Dial) Server {
	return Server{Addrs: []string{addr.String()}, Dial: dial}
}

// String returns what messages call the server: its URL, or its first address as
// one.
func (s Server) String() string {
	switch {
	case s.System != nil:
		return "system"
	case s.URL != "":
		return s.URL
	case len(s.Addrs) == 0:
		return s.Transport.String() + "://"
	case s.Transport == UDP:
		return s.Addrs[0]
	case s.Name != "" && s.Name != s.host():
		return s.Transport.String() + "://" + s.Addrs[0] + "#" + s.Name
	}
	return s.Transport.String() + "://" + s.Addrs[0]
}

// host returns that of the first address.
func (s Server) host() string {
	host, _, _ := net.SplitHostPort(s.Addrs[0])
	return host
}

func (s Server) check() error {
	if s.System != nil {
		return nil
	}
	if s.Transport > HTTPS {
		return fmt.Errorf("no such transport: %v", s.Transport)
	}
	if len(s.Addrs) == 0 {
		return errors.New("without an address")
	}
	for _, a := range s.Addrs {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" || strings.Trim(port, "0") == "" {
			return fmt.Errorf("%q is not an address and a port", a)
		}
	}
	if s.Transport == HTTPS {
		if u, err := url.Parse(s.URL); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not the URL of a DNS server", s.URL)
		}
	}
	return nil
}

// dial opens the way to the first address at which there is somebody.
func (s Server) dial(ctx context.Context, network string) (net.Conn, error) {
	var errs error
	for _, a := range s.Addrs {
		conn, err := s.Dial(ctx, network, a)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if len(s.Addrs) > 1 {
			err = fmt.Errorf("%s: %w", a, err)
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}

// tlsConfig is what of TLS there is to say; next are the protocols above it.
func (s Server) tlsConfig(next ...string) *tls.Config {
	name := s.Name
	if name == "" {
		name = s.host()
	}
	return &tls.Config{
		ServerName: name,
		RootCAs:    s.Roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: next,
		// A resumed session costs one round trip less.
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
}

func netDial(ctx context.Context, network, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr)
}
