package dnsfake

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// HTTPS and SVCB records (RFC 9460) say where else a service is and how it is
// spoken to. Of a faked name clients get what is true behind the fake address as
// well: protocols, port, keys. Not the hints, which are addresses, nor a name at
// which the rules would do something else.

// maxServices bounds the records of one answer, as many as fit in a datagram.
const maxServices = 32

// services answers with the services of a faked name. Whatever goes wrong, there
// are none: clients then take the addresses (RFC 9460 §3).
func (s *Server) services(ctx context.Context, q *query, network string) []byte {
	// Whole, since part of the services is as good as others.
	r, err := s.ask(ctx, q, q.qtype, "tcp")
	if err != nil {
		s.debug(q, err.Error())
		return s.negative(q, dns.RcodeSuccess)
	}
	var m dns.Msg
	if r.bare || r.rcode != dns.RcodeSuccess || m.Unpack(r.msg) != nil {
		return s.negative(q, dns.RcodeSuccess)
	}
	b := q.begin(dns.RcodeSuccess)
	for _, svc := range s.servicesOf(q, m.Answer) {
		b = appendService(b, q.qtype, svc)
	}
	if b[answers] == 0 {
		return s.negative(q, dns.RcodeSuccess)
	}
	b = q.end(b, dns.RcodeSuccess)
	if network != "tcp" && len(b) > q.size {
		b = q.refuse(dns.RcodeSuccess)
		binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])|flagTC)
	}
	s.forwarded.Add(1)
	s.debug(q, "services")
	return b
}

// servicesOf returns the records of a resolver's answer that hold for the name of q
// itself, without what leads past its fake address.
func (s *Server) servicesOf(q *query, rrs []dns.RR) []*dns.SVCB {
	// The name may be an alias. So are its addresses, at the far end, so that
	// what is said of the last name holds for the first.
	owner := q.owner()
	for range rrs {
		i := slices.IndexFunc(rrs, func(rr dns.RR) bool {
			_, ok := rr.(*dns.CNAME)
			return ok && strings.EqualFold(rr.Header().Name, owner)
		})
		if i < 0 {
			break
		}
		owner = rrs[i].(*dns.CNAME).Target
	}
	var found []*dns.SVCB
	for _, rr := range rrs {
		var svc *dns.SVCB
		switch rr := rr.(type) {
		case *dns.SVCB:
			svc = rr
		case *dns.HTTPS:
			svc = &rr.SVCB
		default:
			continue
		}
		if rr.Header().Rrtype != q.qtype || !strings.EqualFold(svc.Hdr.Name, owner) || len(found) == maxServices {
			continue
		}
		if svc.Priority > 0 && strings.EqualFold(svc.Target, owner) {
			svc.Target = "."
		}
		if q.policy.scrub(svc) && s.mayTell(q, svc.Target) {
			found = append(found, svc)
		}
	}
	return found
}

// owner returns the name of q as package dns writes it.
func (q *query) owner() string {
	name, _, err := dns.UnpackDomainName(q.question, 0)
	if err != nil {
		return "." // not after parse
	}
	return name
}

// mayTell reports whether a client of the name of q may be led to the service's
// own name: one that is faked too, and whose flows go the same way. The root is
// no other name (RFC 9460 §2.5).
func (s *Server) mayTell(q *query, target string) bool {
	if target == "." {
		return true
	}
	name, ok := canonical(target)
	if !ok {
		return false
	}
	p := s.policyOf(name)
	return !p.Denied && p.Mode == q.policy.Mode && s.sameWay(q.name, name)
}

// scrub takes out of a record what may not be told. False means that nothing of
// use is left of it.
func (p *Policy) scrub(svc *dns.SVCB) bool {
	hidden := func(k dns.SVCBKey) bool {
		return k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT || k == dns.SVCB_ECHCONFIG && p.StripECH
	}
	svc.Value = slices.DeleteFunc(svc.Value, func(v dns.SVCBKeyValue) bool { return hidden(v.Key()) })
	for i, v := range svc.Value {
		mandatory, ok := v.(*dns.SVCBMandatory)
		if !ok {
			continue
		}
		if p.StripECH && slices.Contains(mandatory.Code, dns.SVCB_ECHCONFIG) {
			return false // whoever has no keys must not use it (RFC 9460 §8)
		}
		mandatory.Code = slices.DeleteFunc(mandatory.Code, hidden)
		if len(mandatory.Code) == 0 {
			svc.Value = slices.Delete(svc.Value, i, i+1)
		}
		break
	}
	return true
}

// appendService appends a record about the name asked for, if it can be written.
func appendService(b []byte, qtype uint16, svc *dns.SVCB) []byte {
	svc.Hdr.Name = "." // one octet, in place of which comes the question's name
	packed := make([]byte, dns.Len(svc))
	n, err := dns.PackRR(svc, packed, 0, nil, false)
	const fixed = 1 + 10
	if err != nil || n < fixed {
		return b
	}
	b = appendRecord(b, qtype, svc.Hdr.Ttl, n-fixed)
	return append(b, packed[fixed:n]...)
}
