package dnsfake

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// forward answers with what the resolver of the name says.
func (s *Server) forward(ctx context.Context, q *query, network string) []byte {
	switch {
	case q.policy.Mode == LocalThenRemote && (q.qtype == dns.TypeA || q.qtype == dns.TypeAAAA):
		return s.localThenRemote(ctx, q, network)
	case q.policy.Mode != Local && (q.qtype == dns.TypeHTTPS || q.qtype == dns.TypeSVCB):
		return s.services(ctx, q, network)
	}
	r, err := s.ask(ctx, q, q.qtype, network)
	if err != nil {
		return s.unanswered(q, err)
	}
	return s.passOn(q, r, network)
}

// unanswered answers that there is no answer.
func (s *Server) unanswered(q *query, err error) []byte {
	why := whySilent
	if errors.Is(err, ErrBusy) {
		why = whyBusy
	}
	return s.fail(q, why, err.Error())
}

// localThenRemote answers with the resolver's addresses, or with a lease if it
// has none of either family. A name that has one family only is not leased for
// the other: half of its flows would go another way. That holds also where the
// resolver says no more of the other than that there is no such name, as some load
// balancers do, or fails.
func (s *Server) localThenRemote(ctx context.Context, q *query, network string) []byte {
	r, err := s.ask(ctx, q, q.qtype, network)
	if err == nil && r.usable() {
		return s.passOn(q, r, network)
	}
	if q.qtype == dns.TypeA && q.policy.NoIPv6 {
		return s.lease(q) // an IPv6 address is of no use to anybody
	}
	other, otherErr := s.ask(ctx, q, dns.TypeA+dns.TypeAAAA-q.qtype, network)
	switch {
	case errors.Is(err, ErrBusy), errors.Is(otherErr, ErrBusy):
		return s.fail(q, whyBusy, whyBusy.text)
	case otherErr != nil || !other.usable():
		return s.lease(q)
	case err != nil:
		return s.unanswered(q, err)
	case r.rcode != dns.RcodeSuccess:
		return s.negative(q, dns.RcodeSuccess)
	}
	return s.passOn(q, r, network)
}

// Reasons for which an answer is not passed on.
var (
	errNotAnswer = errors.New("the resolver's message is malformed or answers another question")
	errFakeAddr  = errors.New("the resolver's answer has an address of our own fake range")
)

// ErrBusy says that too many questions wait already, which says nothing of the name.
var ErrBusy = errors.New(whyBusy.text)

// ask asks the resolver for the name of q and a type, unless it knows.
func (s *Server) ask(ctx context.Context, q *query, qtype uint16, network string) (reply, error) {
	question := slices.Clone(q.question)
	binary.BigEndian.PutUint16(question[len(question)-4:], qtype)

	// A new message, not the client's: its EDNS options are between it and
	// us (RFC 6891 §6.1.1), a cookie for one (RFC 7873).
	msg := make([]byte, headerSize, headerSize+len(question)+16)
	binary.BigEndian.PutUint16(msg, q.id)
	binary.BigEndian.PutUint16(msg[2:], q.flags&(flagRD|flagAD|flagCD))
	msg[5] = 1
	msg = append(msg, question...)
	if q.edns {
		msg = appendOPT(msg, 0, q.do)
	}
	if r, ok := q.policy.Resolver.(Recaller); ok {
		if answer, ok := r.Recall(ctx, msg); ok {
			return s.readReply(answer, question)
		}
	}
	leave, ok := s.admitForward(ctx)
	if !ok {
		return reply{}, ErrBusy
	}
	defer leave()
	answer, err := q.policy.Resolver.Exchange(ctx, msg, network)
	if errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
		// As at a reload: there may be another.
		if r := s.policyOf(q.name).Resolver; r != nil {
			answer, err = r.Exchange(ctx, msg, network)
		}
	}
	if err != nil {
		return reply{}, fmt.Errorf("ask the resolver: %w", err)
	}
	return s.readReply(answer, question)
}

// reply is an answer of the resolver as read.
type reply struct {
	msg       []byte
	rcode     int  // without the upper bits that OPT may hold
	bare      bool // no question: a refusal of a server that read no further
	truncated bool
	addrs     int  // addresses of the type asked for
	others    bool // addresses of another type or elsewhere, and hints at some
	opt       int  // where OPT is, after its name; 0 where there is none
}

// usable reports whether there is an address, or would be by TCP.
func (r *reply) usable() bool {
	return r.rcode == dns.RcodeSuccess && (r.addrs > 0 || r.truncated)
}

// readReply reads what claims to be the answer to question.
func (s *Server) readReply(msg, question []byte) (reply, error) {
	if len(msg) < headerSize {
		return reply{}, errNotAnswer
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	r := reply{rcode: int(flags & rcodeBits), truncated: flags&flagTC != 0}
	var counts [4]int
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(msg[4+2*i:]))
	}
	switch {
	case flags&flagQR == 0 || flags&opcodeBits != 0:
		return reply{}, errNotAnswer
	case counts[0] == 0 && r.rcode != dns.RcodeSuccess:
		r.bare = true
		return r, nil
	case counts[0] != 1 || !sameQuestion(msg, question):
		return reply{}, errNotAnswer
	}
	qtype := binary.BigEndian.Uint16(question[len(question)-4:])
	off := headerSize + len(question)
	for i := range counts[1] + counts[2] + counts[3] {
		rec, next, ok := readRecord(msg, off)
		if !ok {
			return reply{}, errNotAnswer
		}
		off = next
		switch rec.rtype {
		case dns.TypeA, dns.TypeAAAA:
			addr, ok := netip.AddrFromSlice(rec.data)
			if !ok || addr.Is4() != (rec.rtype == dns.TypeA) {
				return reply{}, errNotAnswer
			}
			if s.pool.Owns(addr) {
				return reply{}, errFakeAddr // as from a tunroute around this one
			}
			if i < counts[1] && rec.rtype == qtype {
				r.addrs++
			} else {
				r.others = true
			}
		case dns.TypeHTTPS, dns.TypeSVCB:
			r.others = true
		case dns.TypeOPT:
			if i < counts[1]+counts[2] || !rec.root || r.opt != 0 {
				return reply{}, errNotAnswer
			}
			r.opt = rec.off
		}
	}
	r.msg = msg[:off]
	return r, nil
}

// passOn makes of the resolver's answer the one for the client.
func (s *Server) passOn(q *query, r reply, network string) []byte {
	s.forwarded.Add(1)
	s.debug(q, "forwarded")
	if r.bare {
		return q.refuse(r.rcode)
	}
	limit := maxMessage
	if network != "tcp" {
		limit = q.size
	}
	msg := r.msg
	binary.BigEndian.PutUint16(msg, q.id)
	copy(msg[headerSize:], q.question)
	switch {
	case !q.edns && r.opt != 0:
		return rewrite(q, msg, limit) // without it
	case q.policy.Mode != Local && r.others:
		// As the addresses of its servers beside an MX: a client that took
		// them would go past the fake ones.
		return rewrite(q, msg, limit)
	case q.edns && r.opt != 0:
		binary.BigEndian.PutUint16(msg[r.opt+2:], maxUDP)
	case q.edns:
		msg = appendOPT(msg, 0, q.do)
	}
	if len(msg) > limit {
		return rewrite(q, msg, limit)
	}
	return msg
}

// leads reports whether a record, or the one that it signs, leads past the fake
// addresses.
func leads(rr dns.RR) bool {
	t := rr.Header().Rrtype
	if sig, ok := rr.(*dns.RRSIG); ok {
		t = sig.TypeCovered
	}
	return t == dns.TypeA || t == dns.TypeAAAA || t == dns.TypeHTTPS || t == dns.TypeSVCB
}

// rewrite packs an answer anew, with as many of its records as fit and TC where
// some do not; for names that are not Local without addresses that were not asked
// for.
func rewrite(q *query, msg []byte, limit int) []byte {
	var m dns.Msg
	if m.Unpack(msg) == nil {
		// A TSIG does not outlive the change, and Truncate cuts no message
		// that has one.
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
			t := rr.Header().Rrtype
			return t == dns.TypeTSIG || t == dns.TypeOPT && !q.edns
		})
		if opt := m.IsEdns0(); opt != nil {
			opt.SetUDPSize(maxUDP)
		} else if q.edns {
			m.SetEdns0(maxUDP, q.do)
		}
		if q.policy.Mode != Local {
			m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype != q.qtype && leads(rr) })
			m.Ns = slices.DeleteFunc(m.Ns, leads)
			m.Extra = slices.DeleteFunc(m.Extra, leads)
		}
		m.Truncate(limit)
		if b, err := m.Pack(); err == nil && len(b) <= limit {
			return b
		}
	}
	b := q.refuse(dns.RcodeSuccess)
	binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])|flagTC)
	return b
}
