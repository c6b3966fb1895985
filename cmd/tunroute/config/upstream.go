package config

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// Names that are ways out by themselves.
const (
	ViaDirect = "direct"
	ViaReject = rule.Reject
	ViaDrop   = "drop"
	viaDNS    = "dns" // only the router sends there
)

var builtIn = []string{ViaDirect, ViaReject, ViaDrop, viaDNS}

func (us *Upstreams) decodeNode(d *decoder, n *yaml.Node) {
	list, ok := d.pairs(n, "upstreams")
	if !ok {
		return
	}
	for _, p := range list {
		name := p.key.Value
		if msg, hint := badUpstreamName(name); msg != "" {
			d.errorf(p.key, hint, "%s", msg)
		}
		u := &Upstream{Name: name, Line: p.key.Line, at: at(p.key)}
		*us = append(*us, u)
		u.decodeNode(d, follow(p.value))
	}
}

// maxName is the longest name that somebody can give to something.
const maxName = 63

// isName tells whether a text has nothing in it that such a name has not.
func isName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return strings.Trim(s, letters) == ""
}

func badUpstreamName(name string) (msg, hint string) {
	for _, b := range builtIn {
		if name == b {
			return fmt.Sprintf("%q is built in and cannot be the name of an upstream", name), "choose another name"
		}
	}
	switch {
	case name == "":
		return "an upstream has an empty name", "give it one"
	case len(name) > maxName:
		return "the name of an upstream is longer than 63 bytes", "choose a shorter one"
	case !isName(name):
		return fmt.Sprintf("%q is not a name for an upstream", name), `use letters, digits, "-", "_" and "."`
	}
	return "", ""
}

func (u *Upstream) decodeNode(d *decoder, n *yaml.Node) {
	name := fmt.Sprintf("upstream %q", short(u.Name))
	urlNode := n
	switch {
	case isNull(n):
		d.errorf(n, "write a URL, as in socks5h://192.0.2.1", "%s has no value", name)
		return
	case n.Kind == yaml.ScalarNode:
		u.URL = n.Value
	default:
		before := len(d.errs)
		d.fields(n, reflect.ValueOf(u).Elem(), name)
		if valueAt(n, "group") != n {
			u.checkGroup(d, n, name)
			return
		}
		u.noGroup(d, n, name)
		urlNode = valueAt(n, "url")
		switch {
		case u.URL == "" && len(d.errs) > before:
			return
		case urlNode == n:
			d.errorf(n, "write url: socks5h://HOST, or group: [A, B]", "%s has no url", name)
			return
		}
	}
	u.atURL, u.atVia, u.atMark = at(urlNode), at(valueAt(n, "via")), at(valueAt(n, "mark"))
	p, err := parseURL(u.URL)
	for _, secret := range p.secrets {
		d.keepSecret(secret)
		d.passwordAt(at(urlNode))
	}
	if err != nil {
		d.errorf(urlNode, err.hint, "the URL of %s %s", name, err.msg)
		return
	}
	if p.hasUser && u.User != "" || p.hasPassword && !u.Password.IsZero() {
		d.errorf(urlNode, "take them out of the URL", "%s has user and password in its URL and as keys", name)
		return
	}
	u.set(p)
	u.completeGSSAPI(filepath.Dir(d.file))
	if u.CA != "" && u.Transport == TLS {
		var err error
		if u.Roots, err = readRoots(d.file, u.CA); err != nil {
			d.errorf(valueAt(n, "ca"), "write the path of a file with certificates in PEM", "ca of %s: %v", name, err)
		}
	}
	for _, e := range u.check() {
		if e.missing != "" && valueAt(n, e.missing) != n {
			continue // it is there, and its own error has been told
		}
		d.errorf(valueAt(n, e.key), e.hint, "%s %s", name, e.msg)
	}
}

// maxCA bounds the file of a ca: all that Debian trusts is 210 KB.
const maxCA = 1 << 20

// readRoots reads the certificates in a file that a config names.
func readRoots(file, path string) (*x509.CertPool, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(file), path)
	}
	// Before it is opened: opening a pipe would wait for its other end.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %s", path, reason(err))
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case info.Size() > maxCA:
		return nil, fmt.Errorf("%s: larger than 1 MiB", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", path, reason(err))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in PEM in it", path)
	}
	return roots, nil
}

// NoUDP says which part of the upstream it is that carries no UDP, or "".
func (u *Upstream) NoUDP() string {
	switch {
	case u.Scheme == Socks4, u.Scheme == Socks4a:
		return "SOCKS4"
	case u.Scheme == HTTP:
		return "HTTP"
	case u.Transport == Unix:
		return "a unix socket"
	case u.Transport == TLS:
		return "SOCKS over TLS"
	}
	return ""
}

// set takes over what a URL says.
func (u *Upstream) set(p parsedURL) {
	u.URL, u.Scheme, u.Transport, u.Server, u.Path = p.canonical(), p.scheme, p.transport, p.server, p.path
	if p.hasUser {
		u.User = p.user
	}
	if p.hasPassword {
		u.Password = NewSecret(p.password)
	}
}

// problem is something wrong with an upstream: it continues a sentence that
// begins with the upstream. key is where it is, or would be; missing is the key
// that would mend it.
type problem struct{ key, msg, hint, missing string }

// check finds what does not go together.
func (u *Upstream) check() []problem {
	var list []problem
	add := func(key, msg, hint string) { list = append(list, problem{key, msg, hint, ""}) }
	hasUser, hasPassword := u.User != "", !u.Password.IsZero()
	switch u.Scheme {
	case Direct:
		if u.Via != "" {
			add("via", "is direct and cannot go via another one", "leave via out")
		}
		if hasUser {
			add("user", "is direct, where nobody asks for a user", "leave user out")
		}
		if hasPassword {
			add("password", "is direct, where nobody asks for a password", "leave password out")
		}
	case Socks4, Socks4a:
		if hasPassword {
			add("password", "speaks SOCKS4, which has no passwords", "leave the password out, or use socks5h")
		}
		if strings.ContainsRune(u.User, 0) {
			add("user", "has a user id with a NUL byte, at which SOCKS4 would end it", "write it without")
		}
	case HTTP:
		if strings.Contains(u.User, ":") {
			add("user", "has a user with a colon, at which HTTP would end it", "is it USER:PASSWORD? then write them apart")
		}
		control := func(s string) bool {
			return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
		}
		if control(u.User) || control(u.Password.Reveal()) {
			add("user", "has a control character in its user or password, which HTTP cannot carry", "is there a line end in the file?")
		}
		if !hasUser && hasPassword {
			list = append(list, problem{"password", "has a password but no user", "add user: NAME", "user"})
		}
	default:
		if hasUser && !hasPassword {
			list = append(list, problem{"user", "has a user but no password", "add password: {file: PATH}; SOCKS5 has no user without one", "password"})
		}
		if !hasUser && hasPassword {
			list = append(list, problem{"password", "has a password but no user", "add user: NAME", "user"})
		}
	}
	list = append(list, u.checkGSSAPI()...)
	if _, err := flow.ParseTemplate(u.User); err != nil {
		add("user", "has a user that "+err.Error(), "the variables are "+flow.Variables()+", and {{ is a brace")
	}
	if u.Pipeline && u.Scheme != Socks5 && u.Scheme != Socks5h {
		add("pipeline", "has nothing to pipeline: only SOCKS5 has more than one message", "leave it out")
	}
	if u.EarlyReply && (u.Scheme == Direct || u.Scheme == HTTP) {
		add("early-reply", "is no SOCKS server, so that early-reply has no effect", "leave it out")
	}
	if u.Transport != TLS {
		const msg, hint = "is not spoken to over TLS, so that %s has no effect", "write socks5h+tls:// or https://, or leave it out"
		if u.CA != "" {
			add("ca", fmt.Sprintf(msg, "ca"), hint)
		}
		if u.ServerName != "" {
			add("server-name", fmt.Sprintf(msg, "server-name"), hint)
		}
	} else if u.ServerName != "" {
		if _, err := flow.NewTarget(u.ServerName, 0); err != nil {
			add("server-name", "has a server-name that is neither a name nor an address", "write it as the certificate has it")
		}
	}
	if u.Transport == Unix && u.Via != "" {
		add("via", "is on a unix socket of this machine and cannot go via another one", "leave via out")
	}
	if u.Scheme != Direct && (u.Via != "" || u.Transport == Unix) {
		msg, hint := "goes via another one, so that %s has no effect", "set it at the first server of the chain"
		if u.Transport == Unix {
			msg, hint = "is on a unix socket, so that %s has no effect", "leave it out"
		}
		if u.Bind.IsValid() {
			add("bind", fmt.Sprintf(msg, "bind"), hint)
		}
		if u.Interface != "" {
			add("interface", fmt.Sprintf(msg, "interface"), hint)
		}
		if u.Mark != 0 {
			add("mark", fmt.Sprintf(msg, "mark"), hint)
		}
	}
	if msg := badInterface(u.Interface); u.Interface != "" && msg != "" {
		add("interface", "has an interface whose name "+msg, "write it as ip link shows it")
	}
	if u.Bind.IsValid() && u.Server.Addr.IsValid() && u.Bind.Is4() != u.Server.Addr.Is4() {
		add("bind", "cannot be reached from its bind address: one is IPv4 and the other IPv6", "bind an address of the server's family")
	}
	return list
}

// parsedURL is what the URL of an upstream says.
type parsedURL struct {
	scheme               Scheme
	transport            Transport
	server               flow.Target
	path                 string // of a unix socket
	user, password       string
	hasUser, hasPassword bool
	secrets              []string // what was read as a password, even if the rest is wrong
}

// canonical returns the URL without user and password.
func (p parsedURL) canonical() string {
	if p.scheme == Direct {
		return p.scheme.String()
	}
	scheme := schemeOf(p.scheme, p.transport)
	if p.transport == Unix {
		return scheme + (&url.URL{Path: p.path}).EscapedPath()
	}
	return scheme + p.server.String()
}

// schemeOf returns what a URL begins with.
func schemeOf(s Scheme, t Transport) string {
	switch {
	case t == TCP:
		return s.String() + "://"
	case s == HTTP:
		return "https://"
	}
	return s.String() + "+" + transports.text(int(t)) + "://"
}

// urlError says what is wrong with a URL: it continues a sentence that begins
// with the URL. It never quotes any of it, since a slip may have put a part of
// the password anywhere.
type urlError struct{ msg, hint string }

const (
	socksPort = 1080 // IANA; of SOCKS over TLS too, which has none of its own
	httpsPort = 443

	// maxSocket is the longest path of a unix socket on Linux (unix(7):
	// sun_path, less the NUL behind it).
	maxSocket = 107
)

// defaultPort is the port of a URL without one; 0 for none.
func (p parsedURL) defaultPort() uint64 {
	switch {
	case p.scheme == HTTP && p.transport == TLS:
		return httpsPort
	case p.scheme == HTTP:
		// Programs differ: curl takes 1080, others 80, and proxies are at
		// 3128 or 8080.
		return 0
	}
	return socksPort
}

// parseURL parses the URL of an upstream. It is not net/url: that one would not
// take a "/" or "#" in a password, and its errors quote it.
func parseURL(s string) (p parsedURL, _ *urlError) {
	if start, end := passwordSpan(s); start < end {
		p.secrets = append(p.secrets, s[start:end])
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return p, &urlError{"has a blank or control character in it", "write it as % and two hexadecimal digits"}
		}
	}
	switch strings.ToLower(s) {
	case "direct", "direct:", "direct://":
		p.scheme = Direct
		return p, nil
	case "":
		return p, &urlError{"is empty", "write one as in socks5h://192.0.2.1"}
	}
	word, rest, ok := strings.Cut(s, "://")
	if !ok {
		return p, &urlError{"has no scheme", "it begins with socks5h://, socks5://, socks4a:// or socks4://"}
	}
	if err := p.parseScheme(word); err != nil {
		return p, err
	}
	// The last "@", so that a password may have some in it.
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		info := rest[:i]
		rest = rest[i+1:]
		user, password, hasPassword := strings.Cut(info, ":")
		p.hasUser, p.hasPassword = true, hasPassword
		var err1, err2 error
		p.user, err1 = url.PathUnescape(user)
		p.password, err2 = url.PathUnescape(password)
		if err1 != nil || err2 != nil {
			return p, &urlError{"has a percent sign in its user or password without two hexadecimal digits behind it", "write a percent sign as %25"}
		}
		if hasPassword {
			p.secrets = append(p.secrets, p.password)
		}
		switch {
		case p.user == "":
			return p, &urlError{"has an @ but no user in front of it", "leave the @ out, or write USER:PASSWORD@"}
		case hasPassword && p.password == "":
			return p, &urlError{"has an empty password", "write USER:PASSWORD@"}
		case len(p.user) > maxSecret || len(p.password) > maxSecret:
			return p, &urlError{fmt.Sprintf("has a user or password longer than the %d bytes that SOCKS can carry", maxSecret), "is it the right one?"}
		}
	}
	var err *urlError
	if p.transport == Unix {
		p.path, err = parseSocket(rest)
		return p, err
	}
	p.server, err = parseServer(rest, p.defaultPort())
	return p, err
}

// parseScheme parses what stands in front of "://".
func (p *parsedURL) parseScheme(word string) *urlError {
	name, over, hasOver := strings.Cut(strings.ToLower(word), "+")
	if name == "https" && !hasOver {
		p.scheme, p.transport = HTTP, TLS
		return nil
	}
	scheme, hint := schemes.parse(name)
	if scheme < 0 {
		if name == "socks" {
			hint = "write socks5h:// for SOCKS5, socks4a:// for SOCKS4"
		}
		return &urlError{"has an unknown scheme", hint}
	}
	p.scheme = Scheme(scheme)
	if p.scheme == Direct {
		return &urlError{"is direct and has a host", "write direct alone"}
	}
	if !hasOver {
		return nil
	}
	transport, hint := transports.parse(over)
	switch {
	case transport < 0:
		return &urlError{"has an unknown scheme behind the plus sign", hint}
	case p.scheme == HTTP && Transport(transport) == TLS:
		return &urlError{"has an unknown scheme", "write https://"}
	case p.scheme == HTTP:
		return &urlError{"is that of an HTTP proxy on a unix socket, which is not supported", "only SOCKS servers can be on one"}
	}
	p.transport = Transport(transport)
	return nil
}

// parseSocket parses the path of a unix socket.
func parseSocket(s string) (string, *urlError) {
	path, err := url.PathUnescape(s)
	switch {
	case err != nil:
		return "", &urlError{"has a percent sign in its path without two hexadecimal digits behind it", "write a percent sign as %25"}
	case !strings.HasPrefix(path, "/"), strings.HasSuffix(path, "/"):
		return "", &urlError{"has no path of a socket that begins with a slash", "write it as in socks5h+unix:///run/tor/socks"}
	case strings.IndexByte(path, 0) >= 0:
		return "", &urlError{"has a NUL byte in its path", "write it without"}
	case len(path) > maxSocket:
		return "", &urlError{fmt.Sprintf("has a path longer than the %d bytes that a socket's can have", maxSocket), "move the socket"}
	}
	return path, nil
}

// parseServer parses HOST, HOST:PORT or [HOST]:PORT, with or without a slash
// behind it. Where there is no port it is n; if n is 0, there must be one.
func parseServer(s string, n uint64) (flow.Target, *urlError) {
	none := flow.Target{}
	s = strings.TrimSuffix(s, "/")
	if strings.ContainsAny(s, "/?#") {
		return none, &urlError{"goes on behind host and port", "leave out what follows the port"}
	}
	host, port, hasPort := s, "", false
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if host, port, ok = strings.Cut(inside, "]"); !ok {
			return none, &urlError{"has a bracket that is not closed", "write IPv6 addresses as [2001:db8::1]"}
		}
		if port, hasPort = strings.CutPrefix(port, ":"); !hasPort && port != "" {
			return none, &urlError{"goes on behind the bracket", "a colon and the port may follow there"}
		}
		a, err := netip.ParseAddr(strings.Replace(host, "%25", "%", 1)) // RFC 6874: %25 before a zone
		if err != nil || !a.Is6() {
			return none, &urlError{"has something in brackets that is not an IPv6 address", "only IPv6 addresses have brackets"}
		}
		host = a.String()
	} else if strings.Count(s, ":") > 1 {
		return none, &urlError{"has more than one colon in its host and port", "write IPv6 addresses in brackets, as in socks5h://[2001:db8::1]:1080"}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
	}
	if host == "" {
		return none, &urlError{"has no host", "write socks5h://HOST:PORT"}
	}
	if !hasPort && n == 0 {
		return none, &urlError{"has no port", "write http://HOST:PORT; proxies are at 3128 or 8080, and programs disagree about which it is where nothing is said"}
	}
	if hasPort {
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 {
			hint := "SOCKS servers are at port 1080 where nothing is said"
			if n != socksPort {
				hint = "write http://HOST:PORT"
			}
			if strings.Trim(port, "0123456789") != "" {
				hint = "if that is the password, the host is missing: USER:PASSWORD@HOST"
			}
			return none, &urlError{"has a port that is not a number from 1 to 65535", hint}
		}
		n = number
	}
	t, err := flow.NewTarget(host, uint16(n))
	if err != nil {
		return none, &urlError{"has no usable host: " + err.Error(), "write a name or an address"}
	}
	if t.Name != "" {
		// What can stand in a rule as one name is a name.
		if d, err := rule.ParseDest(t.Name); err != nil || d.Kind != rule.ExactName || d.Name != t.Name {
			return none, &urlError{"has a host that is neither a name nor an address", "write socks5h://HOST:PORT"}
		}
	} else if t.Addr.IsUnspecified() || t.Addr.IsMulticast() {
		return none, &urlError{"has a host that is not the address of a machine", "write the address at which the server can be reached"}
	}
	return t, nil
}

// passwordSpan returns where in a URL, right or wrong, what may be its password
// is: between the first colon behind "://" and the last "@", or, where the host
// has been forgotten, in the place of the port if that is no number. start is
// end where there is none.
func passwordSpan(s string) (start, end int) {
	first := 0
	if i := strings.Index(s, "://"); i >= 0 {
		first = i + len("://")
	}
	colon, at := strings.IndexByte(s[first:], ':'), strings.LastIndexByte(s[first:], '@')
	switch {
	case colon < 0 || at >= 0 && at < colon:
		return 0, 0
	case at < 0 && strings.HasSuffix(strings.ToLower(s[:first]), "+unix://") && s[first] == '/':
		return 0, 0 // a path with a colon in it
	case at >= 0:
		return first + colon + 1, first + at
	}
	start = first + colon + 1
	port := strings.TrimRight(s[start:], "/")
	if s[first] == '[' || strings.Trim(port, "0123456789") == "" {
		return 0, 0
	}
	return start, start + len(port)
}

// hidePassword returns a URL, right or wrong, without what may be its password.
func hidePassword(s string) string {
	if start, end := passwordSpan(s); start < end {
		s = s[:start] + secretText + s[end:]
	}
	return short(s)
}

// Upstream returns the upstream of a name, or nil.
func (c *Config) Upstream(name string) *Upstream {
	for _, u := range c.Upstreams {
		if u.Name == name {
			return u
		}
	}
	return nil
}

// Chain returns the upstreams on the way of a rule's Via, the one nearest to us
// first. It is empty for what is built in. A group is one of them, and the first.
func (c *Config) Chain(via string) []*Upstream {
	var chain []*Upstream
	for u := c.Upstream(via); u != nil && len(chain) < len(c.Upstreams); u = c.Upstream(u.Via) {
		chain = append([]*Upstream{u}, chain...)
	}
	return chain
}

// String returns the name and the URL, or how a group chooses among whom.
func (u *Upstream) String() string {
	if u.IsGroup() {
		return fmt.Sprintf("%s (%s of %s)", u.Name, u.Policy, strings.Join(u.Group, ", "))
	}
	return u.Name + " (" + u.URL + ")"
}
