package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// completeGSSAPI fills in what has a default with auth: gssapi, and makes paths absolute.
func (u *Upstream) completeGSSAPI(dir string) {
	if u.Auth != AuthGSSAPI {
		return
	}
	if u.Service == "" {
		u.Service = "rcmd"
	}
	if u.Protection == 0 {
		u.Protection = Confidentiality
	}
	for _, path := range []*string{&u.Keytab, &u.CCache} {
		*path = filePath(*path, dir)
	}
}

// filePath returns the path of a file of Kerberos, which may have FILE: before it. Where
// it is another kind that is said by who opens it.
func filePath(path, dir string) string {
	path = strings.TrimPrefix(path, "FILE:")
	if path != "" && !filepath.IsAbs(path) && !strings.Contains(path, ":") {
		return filepath.Join(dir, path)
	}
	return path
}

// checkGSSAPI finds what does not go together with GSSAPI, or is of no use without it.
func (u *Upstream) checkGSSAPI() []problem {
	var list []problem
	add := func(key, msg, hint string) { list = append(list, problem{key, msg, hint, ""}) }
	if u.Auth != AuthNone && u.Auth != AuthGSSAPI {
		add("auth", fmt.Sprintf("authenticates by %s, which is for listeners", u.Auth), "write user and password, or auth: gssapi")
	}
	if u.Auth != AuthGSSAPI {
		for _, k := range []struct {
			key string
			set bool
		}{
			{"service", u.Service != ""}, {"protection", u.Protection != 0}, {"compatibility", u.Compatibility != 0},
			{"keytab", u.Keytab != ""}, {"principal", u.Principal != ""}, {"ccache", u.CCache != ""},
		} {
			if k.set {
				list = append(list, problem{k.key, fmt.Sprintf("has %s, which is for GSSAPI only", k.key), "add auth: gssapi, or leave it out", "auth"})
			}
		}
		return list
	}
	if u.Scheme != Socks5 && u.Scheme != Socks5h {
		add("auth", "has GSSAPI, and only SOCKS5 has that", "write socks5h:// or leave auth out")
		return list
	}
	if u.User != "" || !u.Password.IsZero() {
		add("user", "has user and password, and authenticates by GSSAPI", "leave one of them out")
	}
	if u.Pipeline {
		add("pipeline", "has nothing to pipeline: GSSAPI needs an answer to each message", "leave it out")
	}
	if u.Server.Name == "" && !strings.Contains(u.Service, "/") {
		add("service", "has no name, by which Kerberos knows servers", "add service: rcmd/HOST, as its keytab has it, or write the name in the URL")
	}
	if service, _, _ := strings.Cut(u.Service, "@"); strings.HasPrefix(service, "/") || strings.HasSuffix(service, "/") || strings.ContainsAny(u.Service, " \t") {
		add("service", "has a service that is none", "write rcmd, or rcmd/HOST")
	}
	if u.Keytab != "" && u.CCache != "" {
		add("ccache", "has a keytab and a ccache, and tickets come from one of them", "leave one of them out")
	}
	if u.Principal != "" && u.Keytab == "" {
		list = append(list, problem{"principal", "has a principal but no keytab", "add keytab: PATH; of a ccache it is the one that kinit was run for", "keytab"})
	}
	return list
}

// checkGSSAPI fills in what has a default where auth has gssapi, and finds what is of no
// use where it has not.
func (l *Listener) checkGSSAPI(d *decoder, n *yaml.Node) {
	if slices.Contains(l.Auth, AuthGSSAPI) {
		if l.Service == "" {
			l.Service = "rcmd"
		}
		if len(l.Protection) == 0 {
			l.Protection = []Protection{Integrity, Confidentiality}
		}
		l.Keytab = filePath(l.Keytab, filepath.Dir(d.file))
		return
	}
	for _, key := range []string{"keytab", "service", "protection", "compatibility"} {
		if v := valueAt(n, key); v != n {
			d.errorf(v, "add gssapi to auth, or leave it out", "a listener has %s, which is for GSSAPI only", key)
		}
	}
}
