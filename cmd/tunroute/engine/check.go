package engine

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"tunroute/cmd/tunroute/config"
	"tunroute/router/inbound/users"
)

// Check makes all that cfg describes, without a device, looks at the files that it names,
// and returns all that cannot be. It opens no listener and asks nobody.
func Check(cfg *config.Config) []config.Problem {
	var found problems
	_, err := AddrsOf(cfg)
	found.add(err, "", "dns")
	if err == nil {
		found.outbounds(cfg)
	}
	for i, l := range cfg.Listen.Socks {
		found.listener(l, i)
	}
	for i, to := range cfg.Log.To {
		if to.Kind == config.LogFile {
			_, err := os.Stat(filepath.Dir(cfg.Path(to)))
			found.add(err, "make the directory", "log", "to", i)
		}
	}
	found.ports(cfg)
	return found
}

type problems []config.Problem

// add notes an error, if it is one, about what is at a path of keys and indices.
func (ps *problems) add(err error, hint string, at ...any) {
	if err != nil {
		*ps = append(*ps, config.Problem{At: at, Msg: err.Error(), Hint: hint})
	}
}

// outbounds makes them, and what is done with names.
func (ps *problems) outbounds(cfg *config.Config) {
	b, err := newBuilder(cfg, 0, func(netip.Addr) bool { return false })
	if err != nil {
		ps.add(err, "", "dns")
		return
	}
	defer b.close()
	before := len(*ps)
	for _, u := range cfg.Upstreams {
		_, err := b.dialer(u)
		ps.add(err, "", "upstreams", u.Name)
		if u.Keytab != "" {
			ps.add(readable(u.Keytab), "write the path of a keytab that can be read", "upstreams", u.Name, "keytab")
		}
	}
	if len(*ps) == before {
		_, err := b.snapshot()
		ps.add(err, "")
	}
}

// listener looks at what the listener with number i needs when it is opened.
func (ps *problems) listener(l config.Listener, i int) {
	if l.Users != "" {
		_, err := users.Open(l.Users, nil)
		ps.add(err, "make it with tunroute passwd FILE USER", "listen", "socks", i, "users")
	}
	if command := l.Authenticate.Command; len(command) > 0 {
		_, err := exec.LookPath(command[0])
		ps.add(err, "write the path of a program that can be run", "listen", "socks", i, "authenticate")
	}
	if l.TLS.Cert != "" {
		_, err := tls.LoadX509KeyPair(l.TLS.Cert, l.TLS.Key)
		ps.add(err, "write the paths of a certificate and its key, in PEM", "listen", "socks", i, "tls")
	}
	for _, a := range l.Auth {
		if a == config.AuthGSSAPI {
			_, err := gssapiMethod(l)
			ps.add(err, "write the path of a keytab that can be read", "listen", "socks", i, "keytab")
		}
	}
}

// readable says why a file cannot be read.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// ports finds parts that would listen at one port.
func (ps *problems) ports(cfg *config.Config) {
	type listener struct {
		what string
		at   netip.AddrPort
	}
	var seen []listener
	add := func(what string, at netip.AddrPort, path ...any) {
		if !at.IsValid() {
			return // a unix socket, or nothing
		}
		for _, s := range seen {
			if overlap(s.at, at) {
				ps.add(fmt.Errorf("%s cannot listen at %s: %s listens at %s", what, at, s.what, s.at), "choose another port", path...)
				return
			}
		}
		seen = append(seen, listener{what, at})
	}
	for i, l := range cfg.Listen.Socks {
		add("listen.socks", l.At.Addr, "listen", "socks", i)
	}
	for i, f := range cfg.Forward {
		add("forward", netip.AddrPort(f.Listen), "forward", i, "listen")
	}
	for i, at := range cfg.DNS.Listen {
		add("dns.listen", netip.AddrPort(at), "dns", "listen", i)
	}
	for i, a := range cfg.Ident.Listen {
		add("ident.listen", netip.AddrPortFrom(a, identPort), "ident", "listen", i)
	}
	for i, at := range cfg.Admin.Metrics {
		add("admin.metrics", netip.AddrPort(at), "admin", "metrics", i)
	}
}

// overlap says whether two sockets that listen would be in each other's way. One at [::]
// is for IPv4 as well.
func overlap(a, b netip.AddrPort) bool {
	covers := func(a, b netip.Addr) bool {
		return a == b || a.IsUnspecified() && (a.Is6() || b.Is4())
	}
	return a.Port() == b.Port() && (covers(a.Addr(), b.Addr()) || covers(b.Addr(), a.Addr()))
}
