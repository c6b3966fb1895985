package enginetest

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// DNS is a resolver: of this machine by UDP, or wherever a test has a connection
// for it. It knows some names, and who was asked for.
type DNS struct {
	Addr netip.AddrPort

	mu       sync.Mutex
	asked    []string
	names    map[string]record
	services map[string]*dnsmessage.HTTPSResource
}

// record is an A record.
type record struct {
	addr netip.Addr
	ttl  uint32
}

// StartDNS starts a server that knows the A records of some names, good for a
// minute, and a TXT record of each, until the end of the test. Names that begin
// with "silent." get no answer at all.
func StartDNS(t testing.TB, names map[string]netip.Addr) *DNS {
	t.Helper()
	s := NewDNS(names)
	s.Addr = outboundtest.ServeUDP(t, Loopback, func(conn *net.UDPConn, from netip.AddrPort, query []byte) {
		if answer := s.answer(query); answer != nil {
			conn.WriteToUDPAddrPort(answer, from)
		}
	})
	return s
}

// NewDNS is StartDNS without the UDP.
func NewDNS(names map[string]netip.Addr) *DNS {
	s := &DNS{names: make(map[string]record), services: make(map[string]*dnsmessage.HTTPSResource)}
	for name, addr := range names {
		s.Set(name, addr, 60)
	}
	return s
}

// ServeTCP answers what comes by one connection until its end.
func (s *DNS) ServeTCP(c net.Conn) {
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		if answer := s.answer(query); answer != nil {
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
		}
	}
}

// answer returns the answer to a message, nil for none.
func (s *DNS) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
	s.mu.Lock()
	s.asked = append(s.asked, name)
	known, ok := s.names[name]
	services := s.services[name]
	s.mu.Unlock()
	if strings.HasPrefix(name, "silent.") {
		return nil
	}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: known.ttl}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	switch {
	case !ok:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: known.addr.As4()}}}
	case q.Type == dnsmessage.TypeTXT:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{"from the resolver"}}}}
	case q.Type == dnsmessage.TypeHTTPS && services != nil:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: services}}
	}
	if len(m.Answers) == 0 {
		root := dnsmessage.MustNewName(".")
		m.Authorities = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: root, Class: q.Class, TTL: 3600},
			Body:   &dnsmessage.SOAResource{NS: root, MBox: root, MinTTL: 3600},
		}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// SetHTTPS gives a name that has an A record an HTTPS record for the name itself.
func (s *DNS) SetHTTPS(name string, params ...dnsmessage.SVCParam) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[name] = &dnsmessage.HTTPSResource{SVCBResource: dnsmessage.SVCBResource{
		Priority: 1, Target: dnsmessage.MustNewName("."), Params: params,
	}}
}

// Set changes the A record of a name, which is good for ttl seconds.
func (s *DNS) Set(name string, addr netip.Addr, ttl uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = record{addr, ttl}
}

// Asked returns how many questions about a name there were, of all types.
func (s *DNS) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, asked := range s.asked {
		if asked == name {
			n++
		}
	}
	return n
}

// Questions returns the names that the server was asked for, each once.
func (s *DNS) Questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(s.asked)))
}

// Script is what a scripted SOCKS server does with a request: the first of these
// that is set, or else it replies.
type Script struct {
	Silent bool // it says nothing until the client gives up
	EOF    bool // it closes the connection
	Reply  socks.ReplyError
	// Serve has the connection behind a reply that is a success; nil closes
	// it.
	Serve func(net.Conn)
}

// StartScripted starts a SOCKS5 server that does with each request what the
// script says, until the end of the test. It connects nowhere.
func StartScripted(t testing.TB, what func(socks.Request) Script) netip.AddrPort {
	t.Helper()
	return outboundtest.Serve(t, Loopback, func(c *net.TCPConn) {
		if v, err := socks.ReadVersion(c); err != nil || v != socks.Version5 {
			return
		}
		if _, err := socks.ReadMethods(c); err != nil {
			return
		}
		c.Write(socks.AppendMethod(nil, socks.MethodNone))
		req, err := socks.ReadRequest(c)
		if err != nil {
			return
		}
		do := what(req)
		switch {
		case do.Silent:
			io.Copy(io.Discard, c)
			return
		case do.EOF:
			return
		}
		c.Write(socks.AppendReply(nil, do.Reply, netip.AddrPort{}))
		if do.Reply == socks.ReplySucceeded && do.Serve != nil {
			do.Serve(c)
		}
	})
}
