package resolve

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// An answer is kept for a day at most, whatever it says: RFC 8767 §4 asks
	// for a bound, and a week, which it allows, is long for a mistake.
	maxTTL = 24 * time.Hour
	// That there is nothing is kept for five minutes at most (RFC 2308 §5
	// allows hours): who adds the missing record waits to see it work.
	maxNegativeTTL = 5 * time.Minute

	// So many aliases lead to a name; unbound follows eleven.
	maxAliases = 16
)

// answer is what a server says, and nothing else: see clean.
type answer struct {
	rcode int
	msg   []byte        // as it is passed on, with id 0 and without OPT
	ttls  []uint16      // where in msg they are
	addrs []netip.Addr  // of the type asked for
	ttl   time.Duration // how long it may be kept; 0: not at all

	refused netip.Addr // a private address that was taken out; zero for none
}

var (
	errMalformed = errors.New("malformed answer")
	errAliases   = errors.New("aliases without end")
)

// to returns the message for whoever asked q. The answer is of an age, and nothing in it
// is good for longer than the whole, or than longest.
func (a *answer) to(q *query, age, longest time.Duration) []byte {
	b := slices.Clone(a.msg)
	setID(b, q.id)
	flags := binary.BigEndian.Uint16(b[2:])&^(flagRD|flagCD) | flagRD
	if q.noRD {
		flags &^= flagRD
	}
	if q.cd {
		flags |= flagCD
	}
	if !q.wantsAD {
		flags &^= flagAD
	}
	binary.BigEndian.PutUint16(b[2:], flags)
	copy(b[headerSize:], q.wire)
	for _, off := range a.ttls {
		ttl := min(seconds(binary.BigEndian.Uint32(b[off:])), a.ttl)
		binary.BigEndian.PutUint32(b[off:], uint32(min(max(0, ttl-age), longest)/time.Second))
	}
	return b
}

// ttlsOf returns where in a message of ours the TTLs are.
func ttlsOf(msg []byte) ([]uint16, error) {
	question, _ := questionOf(msg)
	off := headerSize + len(question)
	records := 0
	for i := 6; i < headerSize; i += 2 {
		records += int(binary.BigEndian.Uint16(msg[i:]))
	}
	ttls := make([]uint16, 0, records)
	for range records {
		_, end, err := dns.UnpackDomainName(msg, off)
		if err != nil || len(msg) < end+10 {
			return nil, errMalformed
		}
		ttls = append(ttls, uint16(end+4))
		off = end + 10 + int(binary.BigEndian.Uint16(msg[end+8:]))
	}
	return ttls, nil
}

// clean reads the answer to q and returns what of it answers q.
//
// That is: the aliases that lead on from the name, and what the last of them has of
// the type; with the signatures and proofs if q asks for those; and the SOA record of
// the zone if there is nothing. Everything else may be true, but the server has not
// been asked, and whoever believes it can be told anything. Unless private is true,
// addresses of private networks are taken out too.
func clean(msg []byte, q *query, private bool) (*answer, error) {
	var m dns.Msg
	if err := m.Unpack(msg); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	a := &answer{rcode: m.Rcode}
	for i, got := range []int{len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if got != int(binary.BigEndian.Uint16(msg[4+2*i:])) {
			return nil, fmt.Errorf("%w: there is less in it than it says", errMalformed)
		}
	}
	switch {
	case m.Truncated:
		return nil, fmt.Errorf("%w: it is cut short", errMalformed)
	case m.Rcode > rcodeBits:
		return nil, fmt.Errorf("the server says %s", codeText(m.Rcode))
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		m.Answer, m.Ns = nil, nil
	}
	chain, err := follow(m.Answer, q)
	if err != nil {
		return nil, err
	}
	last := chain[len(chain)-1]
	ttl := maxTTL
	found := false // what was asked for
	keep := func(list []dns.RR, wanted func(name string, rr dns.RR) bool) []dns.RR {
		return slices.DeleteFunc(list, func(rr dns.RR) bool {
			h := rr.Header()
			name := canonical(h.Name)
			if h.Class != q.qclass || !wanted(name, rr) {
				return true
			}
			if name == q.name {
				h.Name = dns.Fqdn(q.name) // so that it becomes the asker's with his letters
			}
			h.Ttl = min(h.Ttl, uint32(maxTTL/time.Second))
			return false
		})
	}
	m.Answer = keep(m.Answer, func(name string, rr dns.RR) bool {
		t := typeOf(rr)
		switch {
		case name == last && (t == q.qtype || rr.Header().Rrtype == q.qtype || q.qtype == dns.TypeANY):
			if addr := privateAddr(rr); !private && addr.IsValid() {
				a.refused = addr
				ttl = min(ttl, seconds(rr.Header().Ttl))
				return false
			}
			found = found || rr.Header().Rrtype == t
		case t == dns.TypeCNAME && leads(chain, name, rr):
		case t == dns.TypeDNAME && slices.ContainsFunc(chain[:len(chain)-1], func(c string) bool { return c != name && below(c, name) }):
		default:
			return false
		}
		if rr.Header().Rrtype == dns.TypeRRSIG && !q.do && q.qtype != dns.TypeRRSIG && q.qtype != dns.TypeANY {
			return false
		}
		ttl = min(ttl, seconds(rr.Header().Ttl))
		return true
	})
	negative := time.Duration(0)
	m.Ns = keep(m.Ns, func(name string, rr dns.RR) bool {
		switch t := typeOf(rr); {
		case t == dns.TypeSOA && !found && below(last, name):
			if soa, ok := rr.(*dns.SOA); ok {
				negative = min(maxNegativeTTL, seconds(min(soa.Hdr.Ttl, soa.Minttl)))
				return true
			}
			return q.do
		case q.do && (t == dns.TypeNSEC || t == dns.TypeNSEC3):
			return true
		}
		return false
	})
	switch {
	case a.refused.IsValid() && !found:
		ttl = min(ttl, maxNegativeTTL) // of what is hidden
	case !found:
		ttl = min(ttl, negative)
	}
	if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
		a.ttl = ttl
	}
	for _, rr := range m.Answer {
		if addr, ok := addrOf(rr); ok && m.Rcode == dns.RcodeSuccess && rr.Header().Rrtype == q.qtype {
			a.addrs = append(a.addrs, addr)
		}
	}
	m.Extra = nil
	m.AuthenticatedData = m.AuthenticatedData && !a.refused.IsValid()
	m.Id, m.Opcode, m.Truncated, m.Zero, m.RecursionAvailable, m.Compress = 0, dns.OpcodeQuery, false, false, true, true
	m.Question = []dns.Question{{Name: dns.Fqdn(q.name), Qtype: q.qtype, Qclass: q.qclass}}
	if a.msg, err = m.Pack(); err != nil || len(a.msg) > maxMessage {
		return nil, errMalformed // its names cannot be written
	}
	// A last record that ends before all its fields have come is read without a complaint,
	// and may be written down as what nobody can read.
	if m.Unpack(a.msg) != nil || slices.ContainsFunc(slices.Concat(m.Answer, m.Ns), isEmpty) {
		return nil, errMalformed
	}
	if a.ttls, err = ttlsOf(a.msg); err != nil {
		return nil, err
	}
	return a, nil
}

// nothing is our own answer that there is nothing of a type, or no such name. The SOA
// record is the root's, whose names are above all; nobody.invalid is who RFC 6303 §3 has
// to write to. Nil means that it cannot be written.
func nothing(q *query, name bool) *answer {
	const ttl = uint32(maxNegativeTTL / time.Second)
	m := dns.Msg{Compress: true}
	m.Response, m.RecursionAvailable = true, true
	if !name {
		m.Rcode = dns.RcodeNameError
	}
	m.Question = []dns.Question{{Name: dns.Fqdn(q.name), Qtype: q.qtype, Qclass: q.qclass}}
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: q.qclass, Ttl: ttl},
		Ns:  ".", Mbox: "nobody.invalid.", Serial: 1, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: ttl,
	}}
	msg, err := m.Pack()
	if err != nil {
		return nil
	}
	return &answer{rcode: m.Rcode, msg: msg, ttl: maxNegativeTTL}
}

// follow returns the names that answers are about: that of q, and those that its
// aliases lead to.
func follow(answers []dns.RR, q *query) ([]string, error) {
	chain := []string{q.name}
	if q.qtype == dns.TypeCNAME || q.qtype == dns.TypeANY {
		return chain, nil // they ask for the alias itself
	}
	aliases := make(map[string]string)
	for _, rr := range answers {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == q.qclass {
			if name := canonical(c.Hdr.Name); aliases[name] == "" {
				aliases[name] = canonical(c.Target)
			}
		}
	}
	for {
		next, ok := aliases[chain[len(chain)-1]]
		switch {
		case !ok:
			return chain, nil
		case len(chain) > maxAliases, slices.Contains(chain, next):
			return nil, errAliases
		}
		chain = append(chain, next)
	}
}

// leads tells whether a CNAME record of a name, or its signature, is a link of the
// chain.
func leads(chain []string, name string, rr dns.RR) bool {
	i := slices.Index(chain, name)
	if i < 0 || i == len(chain)-1 {
		return false
	}
	c, ok := rr.(*dns.CNAME)
	return !ok || canonical(c.Target) == chain[i+1]
}

// isEmpty tells whether a record has no data, and is not of a type that may have none.
func isEmpty(rr dns.RR) bool {
	h := rr.Header()
	return h.Rdlength == 0 && h.Rrtype != dns.TypeNULL && h.Rrtype != dns.TypeAPL
}

// typeOf returns the type of a record, and for a signature that of what it signs.
func typeOf(rr dns.RR) uint16 {
	if sig, ok := rr.(*dns.RRSIG); ok {
		return sig.TypeCovered
	}
	return rr.Header().Rrtype
}

// addrOf returns the address in an A or AAAA record.
func addrOf(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok := netip.AddrFromSlice(rr.A)
		return addr.Unmap(), ok
	case *dns.AAAA:
		addr, ok := netip.AddrFromSlice(rr.AAAA)
		return addr.Unmap(), ok
	}
	return netip.Addr{}, false
}

// privateAddr returns a private address that a record would lead a client to; the
// zero Addr where there is none.
func privateAddr(rr dns.RR) netip.Addr {
	if addr, ok := addrOf(rr); ok && IsPrivate(addr) {
		return addr
	}
	var hints []dns.SVCBKeyValue
	switch rr := rr.(type) {
	case *dns.HTTPS:
		hints = rr.Value
	case *dns.SVCB:
		hints = rr.Value
	}
	for _, kv := range hints {
		var ips []netip.Addr
		switch kv := kv.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range kv.Hint {
				addr, _ := netip.AddrFromSlice(ip)
				ips = append(ips, addr.Unmap())
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range kv.Hint {
				addr, _ := netip.AddrFromSlice(ip)
				ips = append(ips, addr.Unmap())
			}
		}
		if i := slices.IndexFunc(ips, IsPrivate); i >= 0 {
			return ips[i]
		}
	}
	return netip.Addr{}
}

// privateNets are what netip has no word for: "this network", which systems take for
// themselves; the space shared by the customers of a provider (RFC 6598), in which are
// overlay networks too; broadcast; site-local, which is deprecated (RFC 3879) and still
// routed; NAT64 of one's own network (RFC 8215).
var privateNets = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
}

// embeds are IPv6 addresses that lead to an IPv4 address in them: of NAT64 (RFC 6052),
// 6to4 (RFC 3056), and "IPv4-compatible" ones (RFC 4291 §2.5.5.1).
var embeds = []struct {
	in netip.Prefix
	at int // where the IPv4 address is
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
	{netip.MustParsePrefix("::/96"), 12},
}

// IsPrivate tells whether an address is one of networks that nobody outside of them
// can mean: RFC 1918, RFC 4193, loopback, link-local and privateNets, or leads to one.
func IsPrivate(a netip.Addr) bool {
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() ||
		slices.ContainsFunc(privateNets, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return true
	}
	for _, e := range embeds {
		if b := a.As16(); e.in.Contains(a) {
			return IsPrivate(netip.AddrFrom4([4]byte(b[e.at:])))
		}
	}
	return false
}

// private domains are no part of the public tree, so that their names may well have
// private addresses: RFC 6761, RFC 6762 with its appendix G, RFC 8375, and ICANN's
// "internal".
var privateDomains = []string{
	"local", "localhost", "test", "example", "invalid", "home.arpa", "internal",
	"intranet", "private", "corp", "home", "lan", "localdomain", "onion",
}

// isPublic tells whether a name is one of the public tree.
func isPublic(name string) bool {
	return strings.Contains(name, ".") && !slices.ContainsFunc(privateDomains, func(d string) bool { return below(name, d) })
}

// below tells whether a canonical name is domain or below it.
func below(name, domain string) bool {
	rest, ok := strings.CutSuffix(name, domain)
	return domain == "." || ok && (rest == "" || strings.HasSuffix(rest, ".") && !strings.HasSuffix(rest, `\.`))
}

// codeText returns the name of a response code.
func codeText(code int) string {
	if s, ok := dns.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprintf("response code %d", code)
}

func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }
