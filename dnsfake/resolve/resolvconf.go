package resolve

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	resolvConf = "/etc/resolv.conf"

	// Where systemd-resolved writes whom it asks itself, in the form of a
	// resolv.conf (systemd-resolved.service(8)).
	behindStub = "/run/systemd/resolve/resolv.conf"

	dnsPort = 53

	// More name servers than this no resolver asks (MAXNS of resolv.conf(5)).
	maxServers = 3

	// The most that glibc takes of "ndots".
	maxNdots = 15
)

// Conf is what a resolv.conf(5) says.
type Conf struct {
	Servers []netip.AddrPort
	Search  []string // domains, in lower case and without final dot
	Ndots   int      // names with fewer dots are tried with a domain first
}

// System is how this machine resolves names: the content of a resolv.conf(5) file,
// read again when it has changed. It is safe for concurrent use.
type System struct {
	file watched[Conf]

	behind *System // where the file names the stub of systemd-resolved and nobody else
}

// NewSystem returns what a resolv.conf says; an empty path means /etc/resolv.conf.
// Nothing is read yet.
func NewSystem(path string) *System {
	s := &System{}
	s.file.path = path
	if path == "" {
		s.file.path = resolvConf
	}
	s.file.read = func(data []byte, err error) (Conf, error) {
		switch {
		case path == "" && runtime.GOOS == "windows":
			return Conf{}, fmt.Errorf("name servers of this system: %w (name them in the config)", errors.ErrUnsupported)
		case path == "" && errors.Is(err, fs.ErrNotExist):
			return parseResolvConf(""), nil
		case err != nil:
			return Conf{}, err
		}
		return parseResolvConf(string(data)), nil
	}
	return s
}

// BehindStub makes Conf see through the stub of systemd-resolved, whose own questions
// may lead back here: where the file names it and nobody else, the servers are those
// that it asks, which a file has; an empty path is where systemd-resolved writes it.
// The file is not asked for else. It is called before Conf.
func (s *System) BehindStub(path string) {
	if path == "" {
		path = behindStub
	}
	s.behind = NewSystem(path)
}

// isStub tells whether a server is the stub of systemd-resolved.
func isStub(server netip.AddrPort) bool {
	a := server.Addr()
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

// Conf returns what the file says now, as of at most five seconds ago. As glibc does,
// it has the first three servers, passes over what is no address, and has the server
// on this machine, 127.0.0.1:53, where none is left or /etc/resolv.conf does not exist.
// Where a system keeps its servers elsewhere (Windows) an empty path is an error that Is
// [errors.ErrUnsupported].
func (s *System) Conf() (Conf, error) {
	conf, err := s.file.get()
	if err != nil || s.behind == nil || slices.ContainsFunc(conf.Servers, func(a netip.AddrPort) bool { return !isStub(a) }) {
		return conf, err
	}
	if behind, err := s.behind.Conf(); err == nil && !behind.Servers[0].Addr().IsLoopback() { // which stands for none
		conf.Servers = behind.Servers
	}
	return conf, nil
}

// parseResolvConf reads the text of a resolv.conf. A keyword is at the start of its
// line.
func parseResolvConf(text string) Conf {
	conf := Conf{Ndots: 1}
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(line, fields[0]) {
			continue
		}
		switch fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(fields[1])
			if err == nil && len(conf.Servers) < maxServers {
				conf.Servers = append(conf.Servers, netip.AddrPortFrom(addr, dnsPort))
			}
		case "search", "domain": // the last of both counts
			conf.Search = nil
			if fields[0] == "domain" {
				fields = fields[:2]
			}
			for _, d := range fields[1:] {
				d = canonical(d)
				if _, ok := dns.IsDomainName(d); ok && !strings.HasSuffix(d, ".") { // not the root, nor "lan.."
					conf.Search = append(conf.Search, d)
				}
			}
		case "options":
			for _, o := range fields[1:] {
				if n, ok := strings.CutPrefix(o, "ndots:"); ok {
					if n, err := strconv.Atoi(n); err == nil {
						conf.Ndots = min(max(n, 0), maxNdots)
					}
				}
			}
		}
	}
	if conf.Servers == nil {
		conf.Servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}
	}
	return conf
}

// candidates returns the names that a name without final dot may stand for, in the
// order in which they are tried.
func (c Conf) candidates(name string) []string {
	var list []string
	for _, d := range c.Search {
		list = append(list, name+"."+d)
	}
	if strings.Count(name, ".") >= c.Ndots {
		return append([]string{name}, list...)
	}
	return append(list, name)
}
