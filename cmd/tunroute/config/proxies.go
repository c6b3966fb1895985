package config

import (
	"fmt"
	"net/url"
	"strings"
)

// FromProxies returns the config of a command line without a file: every flow
// goes through the chain of these servers, each reached through the one before
// it, or directly if there is none. Names are resolved at the far end.
//
// An error names the proxy by its URL, without the password; if there are
// several, by its number too.
func FromProxies(urls []string) (*Config, error) {
	c := Default()
	via := ViaDirect
	for i, text := range urls {
		u := &Upstream{Name: "proxy"}
		if len(urls) > 1 {
			u.Name = fmt.Sprintf("proxy%d", i+1)
		}
		wrong := func(msg, hint string) error {
			number := ""
			if len(urls) > 1 {
				number = fmt.Sprintf(" %d", i+1)
			}
			if hint != "" {
				hint = " (" + hint + ")"
			}
			return fmt.Errorf("proxy%s %q %s%s", number, hidePassword(text), msg, hint)
		}
		p, err := parseURL(text)
		if err != nil {
			return nil, wrong(err.msg, err.hint)
		}
		if p.scheme == Direct && len(urls) > 1 {
			return nil, wrong("is direct and cannot be part of a chain", "leave it out")
		}
		u.set(p)
		if i > 0 {
			u.Via = via
		}
		for _, e := range u.check() {
			return nil, wrong(e.msg, e.hint)
		}
		c.Upstreams = append(c.Upstreams, u)
		via = u.Name
	}
	c.Rules = []Rule{{Via: via}}
	c.compileNames()
	c.Warnings = (&source{}).warnings(c)
	return c, nil
}

// proxyVariables are the environment variables that name a proxy, the first to
// count first. The first two are curl's, who reads the small one first; they
// have a URL. The others are Dante's and have HOST:PORT.
//
// Dante resolves names locally unless told otherwise and would send 4a to no
// server that was not said to speak it. Here names are resolved by the server
// where it certainly can, as the purpose is to tell nobody else.
var proxyVariables = []struct{ name, scheme string }{
	{"all_proxy", ""},
	{"ALL_PROXY", ""},
	{"SOCKS5_SERVER", "socks5h"},
	{"SOCKS_SERVER", "socks5h"},
	{"SOCKS4_SERVER", "socks4"},
}

// ProxyVariable returns the name of the environment variable that says through
// which server to go, or "" if none does. getenv is as [os.Getenv].
//
// all_proxy and ALL_PROXY count if they have the URL of a SOCKS server or of an
// HTTP proxy; then come SOCKS5_SERVER, SOCKS_SERVER and SOCKS4_SERVER. If there is
// none of all these, but a proxy of another kind, it is that one: whoever has set
// it does not expect to go without, and [FromProxies] says what is wrong with it.
func ProxyVariable(getenv func(string) string) string {
	other := ""
	for _, v := range proxyVariables {
		value := strings.TrimSpace(getenv(v.name))
		switch {
		case value == "":
		case v.scheme != "" || known(value):
			return v.name
		case other == "":
			other = v.name
		}
	}
	return other
}

// known tells whether a URL is that of a server of a kind that there is here.
func known(url string) bool {
	url = strings.ToLower(url)
	return strings.HasPrefix(url, "socks") || strings.HasPrefix(url, "http:") || strings.HasPrefix(url, "https:")
}

// ProxyFromEnv returns the URL of the proxy that the environment names (see
// [ProxyVariable]), or "". A server that Dante's variables name gets the user
// and password in SOCKS_USERNAME and SOCKS_PASSWORD; the URL is not to be
// printed.
func ProxyFromEnv(getenv func(string) string) string {
	name := ProxyVariable(getenv)
	value := strings.TrimSpace(getenv(name))
	for _, v := range proxyVariables {
		if v.name != name || v.scheme == "" {
			continue
		}
		if strings.Contains(value, "://") {
			return value // not Dante's form, but what is meant is plain
		}
		user, password := getenv("SOCKS_USERNAME"), getenv("SOCKS_PASSWORD")
		info := ""
		switch {
		case user != "" && password != "" && v.scheme != "socks4":
			info = url.UserPassword(user, password).String() + "@"
		case user != "":
			info = url.User(user).String() + "@"
		}
		return v.scheme + "://" + info + value
	}
	return value
}
