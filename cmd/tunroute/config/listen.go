package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// defaultListener is the name of a listener that is given none.
const defaultListener = "socks"

// decodeNode decodes a listener: an address, or a mapping.
func (l *Listener) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	l.at = at(n)
	if n.Kind == yaml.MappingNode {
		d.fields(n, reflect.ValueOf(l).Elem(), "a listener")
		if len(d.errs) == before && l.At == (ListenAt{}) {
			d.errorf(n, "write at: 127.0.0.1:1080", "a listener without at")
		}
	} else if text, ok := d.scalar(n, "a listener"); ok {
		where, err := parseListenAt(text)
		if err != nil {
			d.error(n, err)
		}
		l.At = where
	}
	if len(d.errs) > before {
		return
	}
	switch {
	case l.Name == "":
		l.Name = defaultListener
	case l.Name == flow.Tun:
		d.errorf(valueAt(n, "name"), "choose another name", "a listener cannot be named %q, as the interface is", l.Name)
	case len(l.Name) > maxName || !isName(l.Name):
		d.errorf(valueAt(n, "name"), `use at most 63 letters, digits, "-", "_" and "."`, "%q is not a name for a listener", short(l.Name))
	}
	if v := valueAt(n, "auth"); v != n && v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
		d.errorf(v, "write none to let everybody in", "auth is an empty list")
	}
	checked := l.Users != "" || len(l.Authenticate.Command) > 0
	switch {
	case len(l.Auth) == 0 && checked:
		l.Auth = []Auth{AuthPassword}
	case len(l.Auth) == 0:
		l.Auth = []Auth{AuthNone}
	case slices.Contains(l.Auth, AuthPassword) && !checked:
		d.errorf(valueAt(n, "auth"), "write users: FILE, and make it with tunroute passwd FILE USER", "auth has password, and nobody knows one")
	case !slices.Contains(l.Auth, AuthPassword) && checked:
		d.errorf(valueAt(n, "auth"), "add password, or leave auth out", "auth has no password, so that nobody is asked for one")
	}
	if l.Users != "" && len(l.Authenticate.Command) > 0 {
		d.errorf(valueAt(n, "users"), "leave one of them out", "a listener has users from a file or from authenticate, not both")
	}
	l.checkGSSAPI(d, n)
	if (l.TLS.Cert == "") != (l.TLS.Key == "") {
		d.errorf(valueAt(n, "tls"), "write {cert: FILE, key: FILE}", "tls wants a certificate and its key")
	}
	l.checkUDP(d, n)
	if l.Mode != 0 && l.At.Path == "" {
		d.errorf(valueAt(n, "mode"), "leave it out", "mode is for a unix socket, and %s is none", l.At)
	}
	if l.At.Path != "" && slices.Contains(l.Auth, AuthIdent) {
		d.errorf(valueAt(n, "auth"), "leave ident out", "nobody can be asked whose a connection by a unix socket is")
	}
	for _, file := range []*string{&l.Users, &l.TLS.Cert, &l.TLS.Key} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(d.file), *file)
		}
	}
}

func (l *Listener) checkUDP(d *decoder, n *yaml.Node) {
	u := l.UDP
	n = valueAt(n, "udp")
	switch {
	case u.IsZero():
	case l.At.Path != "" || l.TLS.Cert != "":
		d.errorf(n, "leave udp out", "there is no UDP over TLS and by unix sockets, because datagrams would go beside them")
	case len(u.Ports) > 1:
		d.errorf(n, "write one range, as in 40000-40999", "ports of udp are %d ranges", len(u.Ports))
	}
}

// IsZero says that nothing is said.
func (u ListenUDP) IsZero() bool { return len(u.Ports) == 0 && !u.Announce.IsValid() }

// MarshalYAML writes what is there.
func (u ListenUDP) MarshalYAML() (any, error) {
	out := struct {
		Ports    []rule.PortRange `yaml:"ports,omitempty,flow"`
		Announce string           `yaml:"announce,omitempty"`
	}{Ports: u.Ports}
	if u.Announce.IsValid() {
		out.Announce = u.Announce.String()
	}
	return out, nil
}

func (a *Authenticate) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	d.fields(n, reflect.ValueOf(a).Elem(), "authenticate")
	if len(d.errs) == before && (len(a.Command) == 0 || a.Command[0] == "") {
		d.errorf(n, "write {command: [/usr/local/bin/check-user]}", "authenticate without a command")
	}
}

func parseListenAt(s string) (ListenAt, error) {
	const socks = 1080
	const hint = "write an address, as in 127.0.0.1:1080, [::1]:1080 or 0.0.0.0, or unix:/run/tunroute/socks"
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		// sockaddr_un has 108 bytes, a NUL among them.
		if !strings.HasPrefix(path, "/") || len(path) > 107 || strings.ContainsRune(path, 0) {
			return ListenAt{}, parseError(s, "is not the path of a socket: it begins with a slash and has at most 107 bytes", hint)
		}
		return ListenAt{Path: path}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return ListenAt{Addr: netip.AddrPortFrom(a.Unmap(), socks)}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	switch {
	case err != nil:
		return ListenAt{}, parseError(s, "is not an address with or without a port", hint)
	case ap.Port() == 0:
		return ListenAt{}, parseError(s, "has port 0, which nobody would find", "leave the port out for 1080")
	}
	return ListenAt{Addr: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
}

// inbounds are the ways in.
func (c *Config) inbounds() []string {
	names := []string{flow.Tun}
	for _, l := range c.Listen.Socks {
		names = append(names, l.Name)
	}
	return names
}

// CheckInbound says why nothing can come in by a name, with what may have been meant.
func (c *Config) CheckInbound(name string) error {
	if known := c.inbounds(); !slices.Contains(known, name) {
		return fmt.Errorf("%q is neither a listener nor tun (%s)", name, didYouMean(name, known))
	}
	return nil
}

// linkListeners checks what listeners share with other parts.
func (d *decoder) linkListeners(c *Config) {
	seen := make(map[ListenAt]*Listener)
	for i := range c.Listen.Socks {
		l := &c.Listen.Socks[i]
		if first := seen[l.At]; first != nil {
			d.errorAt(l.at, "leave one of them out", "a second listener at %s; the first is in line %d", l.At, first.at.line)
		}
		seen[l.At] = l
		for _, u := range c.Upstreams {
			own := ListenAt{Path: u.Path}
			if u.Path == "" {
				own.Addr = u.Server.AddrPort()
			}
			if own == l.At && u.Via == "" && u.Scheme != Direct && !u.IsGroup() {
				d.errorAt(u.at, "name another server", "upstream %q is our own listener in line %d, so that its flows would go round in a circle", u.Name, l.at.line)
			}
		}
	}
	inbounds := c.inbounds()
	for i, r := range c.Rules {
		for _, in := range r.Inbound {
			if !slices.Contains(inbounds, in) {
				d.errorAt(r.atInbound, didYouMean(in, inbounds), "rule %d is for what comes by %q, which is neither a listener nor tun", i+1, short(in))
			}
		}
	}
	if c.TUN.Off && len(c.Listen.Socks)+len(c.DNS.Listen) == 0 {
		d.errorAt(c.TUN.atOff, "write listen: {socks: [127.0.0.1]}, or leave tun: off out", "with tun: off and no listeners nothing could ever come in")
	}
}
