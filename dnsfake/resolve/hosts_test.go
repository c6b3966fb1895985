package resolve

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const hostsText = `
127.0.0.1	localhost
127.0.1.1	this.example.com this
192.0.2.7	www.Example.com www # and a comment
192.0.2.8	www
192.0.2.7	www
2001:db8::7 www.example.com
fe80::1%eth0 link
0.0.0.0 ads.example.com
1.2.3 bad
192.0.2.9
#192.0.2.10 hidden
192.0.2.11 a..b .. . \101 ` + "\n192.0.2.12 last"

// withHosts returns a cache that knows a hosts file, and a server for all else.
func withHosts(t *testing.T, path string, search *System) (*Cache, *peer) {
	t.Helper()
	p := newPeer(t, func(w *writer, q *dns.Msg) {
		if q.Question[0].Name == "dead.a.test." {
			return
		}
		if strings.HasSuffix(q.Question[0].Name, ".no.test.") || strings.Count(q.Question[0].Name, ".") == 1 {
			w.answer(q, rcodeIs(dns.RcodeNameError))
			return
		}
		honest(w, q)
	})
	r := start(t, Options{Servers: []Server{p.server(UDP)}})
	c := NewCache(CacheOptions{Choose: func(string) *Resolver { return r }, Hosts: []*Hosts{NewHosts(path)}, Search: search})
	t.Cleanup(c.Close)
	return c, p
}

// TestAbsentNames: nobody is asked for them, and there are none but those of a file.
func TestAbsentNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/hosts"
		writeFile(t, path, "192.0.2.7 nas.local\n", 1)
		p := newPeer(t, honest)
		r := start(t, Options{Servers: []Server{p.server(UDP)}})
		c := NewCache(CacheOptions{
			Choose: func(string) *Resolver { return r },
			Hosts:  []*Hosts{NewHosts(path)},
			Absent: func(name string) bool { return below(name, "local") },
		})
		defer c.Close()
		const soa = " . nobody.invalid. 1 3600 1200 604800 300(300)"
		for _, tt := range []struct {
			name  string
			qtype uint16
			rd    bool
			want  string
		}{
			{"X.local.", dns.TypeA, true, "NXDOMAIN" + soa},
			{"x.local.", dns.TypeTXT, false, "NXDOMAIN" + soa},
			{`a\.b\200.local.`, dns.TypeA, true, "NXDOMAIN" + soa},
			{"nas.local.", dns.TypeA, true, "NOERROR 192.0.2.7(10)"},
			{"nas.local.", dns.TypeMX, true, "NOERROR" + soa},
			{"local.example.com.", dns.TypeA, true, "NOERROR 203.0.113.80(60)"},
		} {
			q := new(dns.Msg).SetQuestion(tt.name, tt.qtype)
			q.RecursionDesired = tt.rd
			if _, got := exchange(t, c, q); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
		for host, want := range map[string]string{"x.local": "not found", "nas.local": "[192.0.2.7]"} {
			if got := said(c.LookupNetIP(t.Context(), "ip", host)); got != want {
				t.Errorf("%s: %s, want %s", host, got, want)
			}
		}
		if got := p.questions(); len(got) != 1 {
			t.Errorf("asked %v", got)
		}
	})
}

// TestHosts: what the file has nobody is asked for.
func TestHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/hosts"
		writeFile(t, path, hostsText, 1)
		c, p := withHosts(t, path, nil)
		for _, tt := range []struct{ network, host, want string }{
			{"ip", "www.example.com", "[192.0.2.7 2001:db8::7]"},
			{"ip4", "WWW.example.com.", "[192.0.2.7]"},
			{"ip6", "www.example.com", "[2001:db8::7]"},
			{"ip", "www", "[192.0.2.7 192.0.2.8]"},
			{"ip6", "www", "not found"},
			{"ip", "this", "[127.0.1.1]"},
			{"ip", "link", "[fe80::1]"},
			{"ip", "last", "[192.0.2.12]"},
			{"ip", "localhost", "[127.0.0.1 ::1]"},
		} {
			if got := said(c.LookupNetIP(t.Context(), tt.network, tt.host)); got != tt.want {
				t.Errorf("%s %s: %s, want %s", tt.network, tt.host, got, tt.want)
			}
		}
		for _, tt := range []struct {
			name  string
			qtype uint16
			want  string
		}{
			{"WWW.example.com.", dns.TypeA, "NOERROR 192.0.2.7(10)"},
			{"www.example.com.", dns.TypeAAAA, "NOERROR 2001:db8::7(10)"},
			{"www.", dns.TypeAAAA, "NOERROR"},
			{"this.", dns.TypeA, "NOERROR"}, // 127.0.1.1 is not for others
			{"ads.example.com.", dns.TypeA, "NOERROR 0.0.0.0(10)"},
			{"www.example.com.", dns.TypeHTTPS, "NOERROR"},
			{"_8443._https.www.example.com.", dns.TypeHTTPS, "NOERROR"},
			{"_dns.www.example.com.", dns.TypeSVCB, "NOERROR"},
			{"7.2.0.192.in-addr.arpa.", dns.TypePTR, "NOERROR www.example.com.(10)"},
			{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.d.0.1.0.0.2.ip6.arpa.", dns.TypePTR, "NOERROR www.example.com.(10)"},
		} {
			if _, got := exchange(t, c, new(dns.Msg).SetQuestion(tt.name, tt.qtype)); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
		if got := p.questions(); len(got) > 0 {
			t.Errorf("asked %v", got)
		}
		for _, q := range []*dns.Msg{
			new(dns.Msg).SetQuestion("www.example.com.", dns.TypeMX),
			new(dns.Msg).SetQuestion("hidden.example.com.", dns.TypeA),
			new(dns.Msg).SetQuestion("9.2.0.192.in-addr.arpa.", dns.TypePTR),
			new(dns.Msg).SetQuestion("1.0.0.127.in-addr.arpa.", dns.TypePTR),
			new(dns.Msg).SetQuestion("2.0.192.in-addr.arpa.", dns.TypePTR),
			new(dns.Msg).SetQuestion("x.ip6.arpa.", dns.TypePTR),
		} {
			exchange(t, c, q)
		}
		if got := p.questions(); len(got) != 6 {
			t.Errorf("asked %v", got)
		}

		// It changes.
		writeFile(t, path, "192.0.2.70 www.example.com\n", 2)
		time.Sleep(recheck)
		if got := said(c.LookupNetIP(t.Context(), "ip", "www.example.com")); got != "[192.0.2.70]" {
			t.Errorf("after a change: %s", got)
		}
	})
}

func TestHostsMissing(t *testing.T) {
	if err := NewHosts(t.TempDir() + "/hosts").Check(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := NewHosts(t.TempDir()).Check(); err == nil {
		t.Error("a directory is taken")
	}
	if err := NewHosts("").Check(); err != nil {
		t.Error(err)
	}
}

// TestSearch: names are tried with the domains of the list, and a final dot says that
// they are whole.
func TestSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, dir+"/hosts", "192.0.2.7 www\n", 1)
		writeFile(t, dir+"/resolv.conf", "search no.test a.test\noptions ndots:2\n", 1)
		c, p := withHosts(t, dir+"/hosts", NewSystem(dir+"/resolv.conf"))
		for _, tt := range []struct{ host, want, asked string }{
			{"www", "[192.0.2.7]", "[]"},
			{"nas", "[203.0.113.80]", "[nas.no.test nas.a.test]"},
			{"NAS", "[203.0.113.80]", "[]"}, // that there is none is not kept, without a zone
			{"nas.", "not found", "[nas]"},
			{"x.nas", "[203.0.113.80]", "[x.nas.no.test x.nas.a.test]"},
			{"a.b.c", "[203.0.113.80]", "[a.b.c]"},
			{"dead", "temporary", ""}, // another name may not stand in for it
		} {
			got := said(c.LookupNetIP(t.Context(), "ip4", tt.host))
			asked := p.questions()
			if got != tt.want || tt.asked != "" && tt.host != "NAS" && strings.Join(asked, " ") != strings.Trim(tt.asked, "[]") {
				t.Errorf("%s: %s, asked %v, want %s, %s", tt.host, got, asked, tt.want, tt.asked)
			}
		}
	})
}

// FuzzHosts: whatever is in the file, what is read of it can be asked for.
func FuzzHosts(f *testing.F) {
	f.Add(hostsText)
	f.Add("::1 a\r\n::ffff:192.0.2.1\tb\v")
	f.Fuzz(func(t *testing.T, text string) {
		h := parseHosts(text)
		for name, addrs := range h.addrs {
			if _, ok := keyOf(name, dns.TypeA).query(); !ok || len(addrs) == 0 || canonical(name) != name {
				t.Errorf("%q: %q has %v", text, name, addrs)
			}
		}
		for addr, name := range h.names {
			reverse, err := dns.ReverseAddr(addr.String())
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := reverseAddr(canonical(reverse)); !ok || got != addr || h.addrs[name] == nil {
				t.Errorf("%q: %v is %s, and back %v", text, addr, reverse, got)
			}
		}
		_, _ = reverseAddr(text)
	})
}
