package demo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/tun/netns/hosts"
)

// nameServer is a DNS server on a host, which knows one name, and that all below it are
// the same; others do not exist. It remembers who has asked.
type nameServer struct {
	*hosts.Host
	at   netip.AddrPort
	name string
	addr netip.Addr

	mu   sync.Mutex // guards seen
	seen []query
}

// query is a question that a name server was asked.
type query struct {
	from netip.Addr
	name string // in lower case, without the dot at its end
}

// newNameServer starts a DNS server. It ends with this process.
func newNameServer(h *hosts.Host, at netip.Addr, name string, addr netip.Addr) (*nameServer, error) {
	s := &nameServer{Host: h, at: netip.AddrPortFrom(at, 53), name: name, addr: addr}
	c, err := h.ListenUDP(s.at)
	if err != nil {
		return nil, err
	}
	go s.serve(c)
	return s, nil
}

func (s *nameServer) serve(c *net.UDPConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if answer, err := s.answer(b[:n], from.Addr()); err == nil {
			c.WriteToUDPAddrPort(answer, from)
		}
	}
}

func (s *nameServer) answer(b []byte, from netip.Addr) ([]byte, error) {
	var p dnsmessage.Parser
	head, err := p.Start(b)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	s.mu.Lock()
	s.seen = append(s.seen, query{from.Unmap(), name})
	s.mu.Unlock()

	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	switch known := name == s.name || strings.HasSuffix(name, "."+s.name); {
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: s.addr.As4()},
		}}
	}
	return m.Pack()
}

// asked returns the questions about names below a domain, of all that have come until
// now.
func (s *nameServer) asked(domain string) ([]query, error) {
	if err := s.sync(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []query
	for _, q := range s.seen {
		if q.name == domain || strings.HasSuffix(q.name, "."+domain) {
			list = append(list, q)
		}
	}
	return list, nil
}

// sync returns when all that has arrived is written down: datagrams are read in their
// order, and so after them one that is sent now.
func (s *nameServer) sync() error {
	q := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("sync."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := q.Pack()
	if err != nil {
		return err
	}
	return s.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(s.at))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 512))
		return err
	})
}
