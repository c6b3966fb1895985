package dnsfake

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// services is policy with the services of faked names.
func services(mode func(string) Mode, r Exchanger) func(string) Policy {
	return func(name string) Policy {
		return Policy{Mode: mode(name), Resolver: r, Services: true, Denied: name == "denied.test"}
	}
}

// stripping is a policy that takes out keys, or not.
func stripping(strip bool, policy func(string) Policy) func(string) Policy {
	return func(name string) Policy {
		p := policy(name)
		p.StripECH = strip
		return p
	}
}

// TestServices: what clients are told of the HTTPS and SVCB records of a faked name.
func TestServices(t *testing.T) {
	const none = "NOERROR" + soa
	for _, tt := range []struct {
		what, name string
		records    []string
		strip      bool // Policy.StripECH
		want       string
	}{
		{"hints go", "www.test.", []string{
			"www.test. 300 IN HTTPS 1 . alpn=h3,h2 port=8443 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1 ech=AAAA",
		}, false, `NOERROR; www.test. 300 IN HTTPS 1 . alpn="h3,h2" port="8443" ech="AAAA"`},
		{"as do keys, if so said", "www.test.", []string{
			"www.test. 300 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1 ech=AAAA",
		}, true, `NOERROR; www.test. 300 IN HTTPS 1 . alpn="h2"`},
		{"nothing but hints", "www.test.", []string{
			"www.test. 300 IN HTTPS 1 . ipv4hint=192.0.2.1",
		}, false, "NOERROR; www.test. 300 IN HTTPS 1 ."},
		{"what is mandatory", "www.test.", []string{
			"www.test. 300 IN HTTPS 1 . mandatory=alpn,ipv4hint alpn=h2 ipv4hint=192.0.2.1",
			"www.test. 300 IN HTTPS 2 . mandatory=ipv6hint alpn=h2 ipv6hint=2001:db8::1",
			"www.test. 300 IN HTTPS 3 . mandatory=ech alpn=h2 ech=AAAA",
		}, false, `NOERROR; www.test. 300 IN HTTPS 1 . mandatory="alpn" alpn="h2"; www.test. 300 IN HTTPS 2 . alpn="h2"; ` +
			`www.test. 300 IN HTTPS 3 . mandatory="ech" alpn="h2" ech="AAAA"`},
		{"keys that are mandatory and go", "www.test.", []string{
			"www.test. 300 IN HTTPS 1 . mandatory=ech alpn=h2 ech=AAAA",
		}, true, none},
		{"at the end of an alias", "www.test.", []string{
			"www.test. 300 IN CNAME a.cdn.test.",
			"a.cdn.test. 300 IN CNAME B.cdn.test.",
			"b.CDN.test. 60 IN HTTPS 1 . alpn=h2",
			"b.cdn.test. 60 IN HTTPS 2 b.cdn.test. alpn=h3",
			"other.test. 60 IN HTTPS 1 . alpn=h2",
		}, false, `NOERROR; www.test. 60 IN HTTPS 1 . alpn="h2"; www.test. 60 IN HTTPS 2 . alpn="h3"`},
		{"aliases in a ring", "www.test.", []string{
			"www.test. 300 IN CNAME a.test.",
			"a.test. 300 IN CNAME www.test.",
			"a.test. 300 IN HTTPS 1 . alpn=h2",
		}, false, "NOERROR"},
		{"at other names", "www.test.", []string{
			"www.test. 300 IN HTTPS 0 alias.test.",
			"www.test. 300 IN HTTPS 1 Same.test. alpn=h2 ipv4hint=192.0.2.1",
			"www.test. 300 IN HTTPS 2 elsewhere.test. alpn=h2",
			"www.test. 300 IN HTTPS 3 denied.test. alpn=h2",
			"www.test. 300 IN HTTPS 4 www.local.test. alpn=h2",
			"www.test. 300 IN HTTPS 5 10.0.0.1. alpn=h2",
			`www.test. 300 IN HTTPS 6 a\.b.test. alpn=h2`,
		}, false, `NOERROR; www.test. 300 IN HTTPS 0 alias.test.; www.test. 300 IN HTTPS 1 Same.test. alpn="h2"`},
		{"at other names only", "www.test.", []string{"www.test. 300 IN HTTPS 1 elsewhere.test. alpn=h2"}, false, none},
		{"not there for what it is", "www.test.", []string{"www.test. 300 IN HTTPS 0 ."}, false, "NOERROR; www.test. 300 IN HTTPS 0 ."},
		{"case", "WwW.tEst.", []string{"www.test. 300 IN HTTPS 1 . alpn=h2"}, false, `NOERROR; WwW.tEst. 300 IN HTTPS 1 . alpn="h2"`},
		{"no such name", "www.test.", []string{"NXDOMAIN"}, false, none},
		{"no such record", "www.test.", nil, false, none},
		{"a resolver that fails", "www.test.", []string{"SERVFAIL"}, false, none},
		{"a resolver that does not answer", "www.test.", []string{"error"}, false, none},
		{"true addresses", "www.test.", []string{"www.test. 300 IN A 192.0.2.1"}, false, none},
		{"a local name is told all", "www.local.test.", []string{
			"www.local.test. 300 IN HTTPS 1 elsewhere.test. ipv4hint=192.0.2.1",
		}, true, `NOERROR; www.local.test. 300 IN HTTPS 1 elsewhere.test. ipv4hint="192.0.2.1"`},
	} {
		t.Run(tt.what, func(t *testing.T) {
			var networks []string
			s := newServer(t, Options{
				SameWay: func(a, b string) bool { return a == "www.test" && b != "elsewhere.test" },
				Policy: stripping(tt.strip, services(bySuffix, exchangerFunc(func(_ context.Context, query []byte, network string) ([]byte, error) {
					networks = append(networks, network)
					a := new(dns.Msg).SetReply(unpack(t, query))
					for _, r := range tt.records {
						if rcode, ok := dns.StringToRcode[r]; ok {
							a.Rcode = rcode
							continue
						}
						rr, err := dns.NewRR(r)
						if err != nil || rr == nil {
							return nil, errors.New("no answer")
						}
						a.Answer = append(a.Answer, rr)
					}
					return a.Pack()
				}))),
			})
			m := ask(t, s, question(t, tt.name, dns.TypeHTTPS, edns(1232, true)))
			if got := text(m); got != tt.want && !(tt.want == "NOERROR" && strings.HasPrefix(got, tt.want)) {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
			if m.AuthenticatedData || m.IsEdns0() == nil || m.Question[0].Name != tt.name {
				t.Errorf("answer %v", m)
			}
			if len(networks) != 1 || networks[0] != "tcp" && tt.name != "www.local.test." {
				t.Errorf("asked by %q, want once and for the whole", networks)
			}
		})
	}
}

// TestServicesThatAreLong: too long for a datagram, they come by TCP.
func TestServicesThatAreLong(t *testing.T) {
	s := newServer(t, Options{Policy: services(remote, upstream(t, func(q, a *dns.Msg) {
		for i := range 40 {
			a.Answer = append(a.Answer, &dns.SVCB{
				Hdr:      dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSVCB, Class: dns.ClassINET, Ttl: 60},
				Priority: uint16(1 + i), Target: ".", Value: []dns.SVCBKeyValue{&dns.SVCBAlpn{Alpn: []string{"h2", "h3"}}},
			})
		}
	}))})
	msg := question(t, "_foo.test.", dns.TypeSVCB, edns(512, false))
	if m := unpack(t, s.Answer(t.Context(), msg, "udp")); !m.Truncated || len(m.Answer) > 0 {
		t.Errorf("by UDP: %v", m)
	}
	if m := unpack(t, s.Answer(t.Context(), msg, "tcp")); m.Truncated || len(m.Answer) != maxServices {
		t.Errorf("by TCP: %d records, want %d", len(m.Answer), maxServices)
	}
}

func remote(string) Mode { return Remote }

// TestForwardedAddressesAreNotTold: an answer about a faked name may have the true
// addresses of others beside it.
func TestForwardedAddressesAreNotTold(t *testing.T) {
	mx := func(q, a *dns.Msg) {
		for i, r := range []string{
			"www.test. 60 IN MX 10 mx.test.", "www.test. 60 IN NS ns.test.", "mx.test. 60 IN A 192.0.2.1",
			"mx.test. 60 IN AAAA 2001:db8::1", "mx.test. 60 IN TXT text", "mx.test. 60 IN HTTPS 1 . ipv4hint=192.0.2.1",
			"mx.test. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 test. AAAA",
		} {
			rr, err := dns.NewRR(r)
			if err != nil {
				t.Fatal(err)
			}
			switch i {
			case 0:
				a.Answer = append(a.Answer, rr)
			case 1:
				a.Ns = append(a.Ns, rr)
			default:
				a.Extra = append(a.Extra, rr)
			}
		}
		if q.IsEdns0() != nil {
			a.SetEdns0(4096, true)
		}
	}
	for _, tt := range []struct {
		mode Mode
		want string
	}{
		{Remote, "NOERROR; www.test. 60 IN MX 10 mx.test.; ns www.test. 60 IN NS ns.test.; extra mx.test. 60 IN TXT \"text\""},
		{Local, "extra mx.test. 60 IN A 192.0.2.1; extra mx.test. 60 IN AAAA 2001:db8::1"},
	} {
		s := newServer(t, Options{Policy: policy(func(string) Mode { return tt.mode }, upstream(t, mx))})
		for _, edit := range [][]func(*dns.Msg){nil, {edns(1232, true)}} {
			m := ask(t, s, question(t, "www.test.", dns.TypeMX, edit...))
			if got := text(m); got != tt.want && !(tt.mode == Local && strings.Contains(got, tt.want)) {
				t.Errorf("%s: %s\nwant %s", tt.mode, got, tt.want)
			}
			if opt := m.IsEdns0(); (opt != nil) != (edit != nil) || opt != nil && (opt.UDPSize() != maxUDP || !opt.Do()) {
				t.Errorf("%s: OPT %v", tt.mode, opt)
			}
		}
	}
}
