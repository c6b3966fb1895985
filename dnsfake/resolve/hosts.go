package resolve

import (
	"errors"
	"io/fs"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	hostsFile = "/etc/hosts"

	// How long who asks may keep what a hosts file says: the file may change.
	hostsTTL = 10 * time.Second
)

// Hosts is a hosts(5) file: names and their addresses, read again when it has changed.
// It is safe for concurrent use.
type Hosts struct{ file watched[*hosts] }

// hosts is the content of a hosts file.
type hosts struct {
	addrs map[string][]netip.Addr // by canonical name
	names map[netip.Addr]string   // the first of each
}

// NewHosts returns what a file says; an empty path means /etc/hosts, or what Windows
// has instead, which may be missing. Nothing is read yet.
func NewHosts(path string) *Hosts {
	h := &Hosts{}
	h.file.path = path
	if path == "" {
		h.file.path = hostsFile
		if runtime.GOOS == "windows" {
			h.file.path = `C:\Windows\System32\drivers\etc\hosts`
		}
	}
	h.file.read = func(data []byte, err error) (*hosts, error) {
		if err != nil && !(path == "" && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
		return parseHosts(string(data)), nil
	}
	return h
}

// Check reads the file. What was read once stays if it cannot be read again.
func (h *Hosts) Check() error {
	_, err := h.file.get()
	return err
}

// parseHosts reads the text of a hosts file. What is no address and what is no name is
// passed over.
func parseHosts(text string) *hosts {
	h := &hosts{addrs: make(map[string][]netip.Addr), names: make(map[netip.Addr]string)}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		addr = addr.Unmap().WithZone("") // a zone is of one machine
		for _, name := range fields[1:] {
			name = canonical(name)
			if _, ok := keyOf(name, dns.TypeA).query(); !ok || name == "." || strings.Contains(name, `\`) {
				continue
			}
			name = strings.Clone(name)
			if !contains(h.addrs[name], addr) {
				h.addrs[name] = append(h.addrs[name], addr)
			}
			if _, ok := h.names[addr]; !ok {
				h.names[addr] = name
			}
		}
	}
	return h
}

func contains(addrs []netip.Addr, addr netip.Addr) bool {
	for _, a := range addrs {
		if a == addr {
			return true
		}
	}
	return false
}

// lookup returns the addresses of a canonical name; nil where the file does not have
// it.
func (h *Hosts) lookup(name string) []netip.Addr {
	hosts, err := h.file.get()
	if err != nil || hosts == nil {
		return nil
	}
	return hosts.addrs[name]
}

// answer returns what the file says to a question; nil where that is nothing. Other
// machines are not told loopback addresses, which would be their own. A name that it has
// has no HTTPS and SVCB records: those of others lead to their addresses, which browsers
// would take.
func (h *Hosts) answer(q *query) *answer {
	hosts, err := h.file.get()
	if err != nil || hosts == nil || q.qclass != dns.ClassINET {
		return nil
	}
	m := new(dns.Msg)
	m.Response, m.RecursionAvailable = true, true
	m.Compress = true
	owner := dns.Fqdn(q.name)
	m.Question = []dns.Question{{Name: owner, Qtype: q.qtype, Qclass: q.qclass}}
	head := dns.RR_Header{Name: owner, Rrtype: q.qtype, Class: dns.ClassINET, Ttl: uint32(hostsTTL / time.Second)}
	switch q.qtype {
	case dns.TypeA, dns.TypeAAAA:
		addrs, ok := hosts.addrs[q.name]
		if !ok {
			return nil
		}
		for _, a := range addrs {
			switch {
			case a.IsLoopback() || a.Is4() != (q.qtype == dns.TypeA):
			case a.Is4():
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
			default:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
			}
		}
	case dns.TypePTR:
		addr, ok := reverseAddr(q.name)
		name := hosts.names[addr]
		if !ok || name == "" || addr.IsLoopback() {
			return nil
		}
		m.Answer = append(m.Answer, &dns.PTR{Hdr: head, Ptr: dns.Fqdn(name)})
	case dns.TypeHTTPS, dns.TypeSVCB:
		name := q.name
		for strings.HasPrefix(name, "_") { // _8443._https.www.example.org (RFC 9460 §2.3)
			_, name, _ = strings.Cut(name, ".")
		}
		if _, ok := hosts.addrs[name]; !ok {
			return nil
		}
	default:
		return nil
	}
	a := &answer{ttl: hostsTTL}
	if a.msg, err = m.Pack(); err != nil {
		return nil
	}
	return a
}

// reverseAddr returns the address that a canonical name of in-addr.arpa or ip6.arpa is
// the reverse of.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return addr, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 62; i >= 0; i -= 2 {
		text.WriteByte(rest[i])
		if i > 0 && i%8 == 0 {
			text.WriteByte(':')
		}
	}
	addr, err := netip.ParseAddr(text.String())
	return addr, err == nil
}
