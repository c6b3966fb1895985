package interop

import (
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// A name that the machine's DNS does not know is found through the servers, and
// the machine's DNS is not asked for it.
func TestNameThatOnlyTheProxyKnows(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	danted6 := startServer(t, l, servers.Dante, servers.Options{Listen: lab.Proxy6, External: dante.External})
	micro := startServer(t, l, servers.Microsocks, servers.Options{External: []netip.Addr{lab.Proxy4}})
	auth := startServer(t, l, servers.Microsocks, servers.Options{User: "ann", Password: "pass word"})
	ssh := startServer(t, l, servers.OpenSSH, servers.Options{})

	tests := []struct {
		name    string
		proxies []string
		v6      bool // whether the far end reaches IPv6 targets
	}{
		{"socks5h danted", []string{"socks5h://" + danted}, true},
		{"socks5h danted over IPv6", []string{"socks5h://" + danted6}, true},
		{"socks5h ssh -D", []string{"socks5h://" + ssh}, true},
		{"socks4a ssh -D", []string{"socks4a://" + ssh}, false},
		{"socks5h microsocks", []string{"socks5h://" + micro}, false},
		{"socks5h microsocks with password", []string{"socks5h://ann:pass%20word@" + auth}, true},
		{"danted, microsocks", []string{"socks5h://" + danted, "socks5h://" + micro}, false},
		{"ssh -D, danted", []string{"socks4a://" + ssh, "socks5h://" + danted}, true},
		{"danted, microsocks with password, ssh -D", []string{"socks5://" + danted, "socks5h://ann:pass%20word@" + auth, "socks4a://" + ssh}, false},
	}
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				for _, family := range []string{"-4", "-6"} {
					// The family of the fake address says nothing about
					// that of the target, which the far end chooses.
					page := must(t, l.Host, u.exec(tt.proxies, "curl", "-s", family, "http://"+lab.SecretName+"/")...)
					if !strings.HasPrefix(page, "the page of "+lab.SecretName+" for ") {
						t.Errorf("curl %s printed %q", family, page)
					}
					if strings.Contains(page, lab.Host4.String()) || strings.Contains(page, lab.Host6.String()) {
						t.Errorf("curl %s went past the servers: %q", family, page)
					}
				}
			})
		}
		if n := l.DNS.Queries(t, lab.SecretName); n != 0 {
			t.Errorf("the DNS of the machine was asked %d times", n)
		}
	})
}
