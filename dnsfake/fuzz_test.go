package dnsfake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/miekg/dns"
)

// FuzzAnswer feeds a message of a client and one of an upstream. Whatever they
// are, the answer belongs to the question, fits, and can be read by package dns
// wherever it is our own.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"www.example.org.", "www.local.test.", "www.both.test.", "localhost.", ".",
		"1.0.18.198.in-addr.arpa.", "99.0.18.198.in-addr.arpa.", "use-application-dns.net."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeHTTPS, dns.TypeANY, dns.TypeTXT} {
			msg := question(f, name, qtype, edns(1232, true))
			a := unpack(f, msg)
			a.Response = true
			txts(a, 9)
			for _, text := range []string{" 60 IN A 192.0.2.1", " 60 IN HTTPS 1 . mandatory=ipv4hint alpn=h2 ipv4hint=192.0.2.1"} {
				if rr, err := dns.NewRR(name + text); err == nil {
					a.Answer = append(a.Answer, rr)
					a.Extra = append(a.Extra, rr)
				}
			}
			answer, err := a.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(msg, answer, false)
			f.Add(question(f, name, qtype), answer, true)
			f.Add(msg[:len(msg)-11], answer, false)
		}
	}
	f.Fuzz(func(t *testing.T, msg, answer []byte, tcp bool) {
		network, forwarded := "udp", false
		if tcp {
			network = "tcp"
		}
		s := newServer(t, Options{
			Pool: newPool(t, PoolOptions{Max: 64}),
			Policy: services(bySuffix, exchangerFunc(func(_ context.Context, query []byte, _ string) ([]byte, error) {
				var q dns.Msg
				if err := q.Unpack(query); err != nil || len(q.Question) != 1 || q.Response {
					t.Errorf("message %x made the question %x: %v", msg, query, err)
				}
				if len(answer) == 0 {
					return nil, errors.New("no answer")
				}
				forwarded = true
				return bytes.Clone(answer), nil
			})),
		})
		before := bytes.Clone(msg)
		got := s.Answer(t.Context(), msg, network)
		if !bytes.Equal(msg, before) {
			t.Fatalf("message %x became %x", before, msg)
		}
		if len(msg) < 12 || msg[2]&0x80 != 0 {
			if got != nil {
				t.Fatalf("message %x is answered: %x", msg, got)
			}
			return
		}
		limit := maxMessage
		if !tcp {
			limit = maxUDP
			q := new(query)
			if q.parse(msg); q.question != nil {
				limit = q.size
			}
		}
		switch {
		case len(got) < 12 || len(got) > limit:
			t.Fatalf("message %x: answer of %d octets", msg, len(got))
		case got[0] != msg[0] || got[1] != msg[1] || got[2]&0xf8 != 0x80|msg[2]&0x78:
			t.Fatalf("message %x: header %x", msg, got[:12])
		case binary.BigEndian.Uint16(got[4:]) == 1 && !bytes.HasPrefix(msg[12:], got[12:12+questionLen(t, got)]):
			t.Fatalf("message %x: question of %x", msg, got)
		}
		if forwarded {
			return // as good as the upstream's
		}
		off := 12
		if got[5] == 1 {
			off += questionLen(t, got)
		}
		for range int(got[7]) + int(got[9]) + int(got[11]) {
			var err error
			if _, off, err = dns.UnpackRR(got, off); err != nil {
				t.Fatalf("message %x: answer %x: %v", msg, got, err)
			}
		}
		if off != len(got) {
			t.Fatalf("message %x: answer %x ends at %d", msg, got, off)
		}
	})
}

// questionLen returns the length of the question section.
func questionLen(t *testing.T, msg []byte) int {
	_, off, err := dns.UnpackDomainName(msg, 12)
	if err != nil {
		t.Fatalf("question of %x: %v", msg, err)
	}
	return off + 4 - 12
}
