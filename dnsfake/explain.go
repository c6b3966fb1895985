package dnsfake

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// Told is what a [Server] says about a name, and where it has that from.
type Told struct {
	Name, Type string
	Mode       Mode
	Rcode      string   // "NOERROR", "NXDOMAIN", ...
	Answers    []string // the records of the answer section, as dig prints them
	Source     string   // "lease", "own", "none", "forwarded", "services", or why there is no answer
	Reason     string   // what the answer says besides (RFC 8914); "" for nothing
}

// Explain answers a question about a name as [Server.Answer] does for a client by
// TCP, with all that comes of it: a lease, and a question at the resolver. Qtype is
// the name of a type, as in "AAAA". The error is about name and qtype.
func (s *Server) Explain(ctx context.Context, name, qtype string) (Told, error) {
	t, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return Told{}, fmt.Errorf("%q is not a type of DNS records", qtype)
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return Told{}, fmt.Errorf("%q cannot be a name in DNS", name)
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), t)
	m.SetEdns0(maxUDP, false) // or it may not say why
	msg, err := m.Pack()
	if err != nil {
		return Told{}, fmt.Errorf("%q: %w", name, err)
	}
	q := new(query)
	answer := s.answer(ctx, q, msg, "tcp")
	if answer == nil {
		return Told{}, fmt.Errorf("%s: too many new names wait for the file of leases", name)
	}
	told := Told{Name: strings.Clone(q.name), Type: dns.TypeToString[t], Mode: q.policy.Mode, Source: q.outcome}
	var a dns.Msg
	if err := a.Unpack(answer); err != nil {
		return told, fmt.Errorf("the answer about %s: %w", name, err)
	}
	told.Rcode = dns.RcodeToString[a.Rcode]
	for _, rr := range a.Answer {
		told.Answers = append(told.Answers, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	if opt := a.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				told.Reason = e.ExtraText
			}
		}
	}
	return told, nil
}
