package dnsfake

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestExplain: what is told of a name is what a client gets, and where it is from; also
// where a new lease waits until it is in the file.
func TestExplain(t *testing.T) {
	t.Run("in memory", func(t *testing.T) { testExplain(t, newPool(t, PoolOptions{})) })
	t.Run("in a file", func(t *testing.T) {
		p := openPool(t, filepath.Join(t.TempDir(), "leases"), PoolOptions{})
		runPool(t, p)
		testExplain(t, p)
	})
}

func testExplain(t *testing.T, pool *Pool) {
	resolver := upstream(t, func(_, a *dns.Msg) { txts(a, 1) })
	s := newServer(t, Options{Pool: pool, Policy: func(name string) Policy {
		switch name {
		case "told.test":
			return Policy{Resolver: resolver}
		case "denied.test":
			return Policy{Denied: true}
		case "local.test":
			return Policy{Mode: Local, Resolver: resolver}
		}
		return Policy{}
	}})
	for _, tt := range []struct {
		name, qtype string
		want        Told
	}{
		{"WWW.test.", "a", Told{Name: "www.test", Type: "A", Mode: Remote, Rcode: "NOERROR", Source: "lease"}},
		{"told.test", "AAAA", Told{Name: "told.test", Type: "AAAA", Mode: Remote, Rcode: "NOERROR", Source: "lease"}},
		{"www.test", "MX", Told{Name: "www.test", Type: "MX", Rcode: "REFUSED", Source: "nobody may be asked", Reason: whyNobody.text}},
		{"denied.test", "A", Told{Name: "denied.test", Type: "A", Rcode: "NXDOMAIN", Source: "none", Reason: whyDenied.text}},
		{"local.test", "TXT", Told{Name: "local.test", Type: "TXT", Mode: Local, Rcode: "NOERROR", Source: "forwarded"}},
		{"localhost", "A", Told{Name: "localhost", Type: "A", Rcode: "NOERROR", Source: "own"}},
	} {
		got, err := s.Explain(t.Context(), tt.name, tt.qtype)
		if err != nil {
			t.Errorf("%s %s: %v", tt.name, tt.qtype, err)
			continue
		}
		// What a client gets.
		m := ask(t, s, question(t, dns.Fqdn(tt.name), dns.StringToType[strings.ToUpper(tt.qtype)]))
		for _, rr := range m.Answer {
			tt.want.Answers = append(tt.want.Answers, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s %s: -want +got\n%s", tt.name, tt.qtype, diff)
		}
	}
	for _, bad := range [][2]string{{"www.test", "NONSENSE"}, {"a..b", "A"}, {strings.Repeat("a", 64) + ".test", "A"}} {
		if got, err := s.Explain(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("%s %s: %+v, want an error", bad[0], bad[1], got)
		}
	}
}
