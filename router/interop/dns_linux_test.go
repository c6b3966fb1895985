package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

var (
	fake4 = netip.MustParsePrefix("198.18.0.0/15")
	fake6 = netip.MustParsePrefix("fd74:756e:726f::/64")
)

// Inside exec every DNS server that a program asks is the fake one, over UDP and
// TCP, and the program's own resolver too.
func TestEveryQuestionIsAnsweredInside(t *testing.T) {
	lab.Need(t, "dig", "bind9-dnsutils")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	asEverybody(t, func(t *testing.T, u user) {
		w := l.Watch(t)
		sh := startShell(t, l.Host, u.exec([]string{"socks5h://" + danted}, "sh")...)
		var seen [2]string
		for _, server := range []string{"", "@" + lab.Target4(1).String(), "@" + lab.Target6(1).String(), "@192.0.2.99", "@fd74:756e:726f::1"} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				for i, q := range []struct {
					kind string
					fake netip.Prefix
				}{{"A", fake4}, {"AAAA", fake6}} {
					out := sh.Must(t, "dig +short %s %s %s %s", transport, server, lab.SecretName, q.kind)
					if a := parseAddr(t, out); !q.fake.Contains(a) {
						t.Errorf("dig %s %s %s: %s is not in %s", transport, server, q.kind, a, q.fake)
					}
					if seen[i] == "" {
						seen[i] = out
					}
					if out != seen[i] {
						t.Errorf("dig %s %s %s: %s, but %s before", transport, server, q.kind, out, seen[i])
					}
				}
			}
		}
		for _, a := range seen {
			if out := sh.Must(t, "dig +short -x %s", strings.TrimSpace(a)); out != lab.SecretName+".\n" {
				t.Errorf("dig -x %s: %q, want %s.", a, out, lab.SecretName)
			}
		}
		// A browser that asks for these goes on with A and AAAA.
		for _, kind := range []string{"HTTPS", "SVCB"} {
			out := sh.Must(t, "dig %s %s", lab.SecretName, kind)
			if !strings.Contains(out, "status: NOERROR") || !strings.Contains(out, "ANSWER: 0, AUTHORITY: 1") {
				t.Errorf("dig %s:\n%s", kind, out)
			}
		}
		// The program's own way to ask, whatever the machine has set up.
		if out := sh.Must(t, "getent ahostsv4 %s", lab.SecretName); !strings.HasPrefix(out, strings.TrimSpace(seen[0])+" ") {
			t.Errorf("getent: %q, want %s", out, seen[0])
		}
		if n := l.DNS.Queries(t, lab.SecretName); n != 0 {
			t.Errorf("the DNS of the machine was asked %d times", n)
		}
		for _, p := range w.Arrived(t, func(p lab.Packet) bool { return p.Dst.Port() == 53 }) {
			t.Errorf("a query has left: %v", p)
		}
	})
}

// ping hears of names, which answer for themselves, and of addresses where the
// rules send them directly. No proxy carries it.
func TestPing(t *testing.T) {
	lab.Need(t, "ping", "iputils-ping")
	l := newLab(t)
	l.Host.Sysctl(t, "net.ipv4.ping_group_range", "0 65534") // as distributions have it
	danted := startServer(t, l, servers.Dante, dante)
	config := lab.File(t, "tunroute.yaml", fmt.Sprintf(`
upstreams:
  danted: socks5h://%s
rules:
  - {to: [%s, %s], via: direct}
  - {to: [%s, %s], via: reject}
  - {via: danted}
`, danted, lab.Target4(1), lab.Target6(1), lab.Target4(3), lab.Target6(3)))
	asEverybody(t, func(t *testing.T, u user) {
		sh := startShell(t, l.Host, u.tunroute("exec", "-c", config, "--", "sh")...)
		for _, tt := range []struct {
			name   string
			target [2]string
			want   string
			status int
		}{
			{"fake address", same(lab.SecretName), "1 received", 0},
			{"direct", both(lab.Target4(1), lab.Target6(1)), "1 received", 0},
			{"through a server", both(lab.Target4(2), lab.Target6(2)), "nreachable", 1},
			{"rejected", both(lab.Target4(3), lab.Target6(3)), "nreachable", 1},
		} {
			for i, family := range []string{"-4", "-6"} {
				t.Run(tt.name+" "+family, func(t *testing.T) {
					out, status := sh.Run(t, "ping %s -c 1 -W 60 %s", family, tt.target[i])
					if status != tt.status || !strings.Contains(out, tt.want) {
						t.Errorf("status %d, want %d and %q:\n%s", status, tt.status, tt.want, out)
					}
				})
			}
		}
	})
}
