package config

import (
	"os"
	"slices"
	"strings"
	"testing"

	"tunroute/router/flow"
)

func TestRejectEncrypted(t *testing.T) {
	for target, want := range map[string]bool{
		"192.0.2.1:853":                  true,
		"[2001:db8::1]:853":              true,
		"resolver.example:853":           true,
		"1.1.1.1:443":                    true,
		"[::ffff:1.1.1.1]:443":           true,
		"[2620:fe::fe]:443":              true,
		"dns.google:443":                 true,
		"chrome.cloudflare-dns.com:443":  true,
		"1.1.1.1:80":                     false,
		"1.1.1.1:53":                     false,
		"192.0.2.1:443":                  false,
		"www.google:443":                 false,
		"notcloudflare-dns.com:443":      false,
		"dns.google.com.example.org:443": false,
		"www.example.org:443":            false,
	} {
		tt, err := flow.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		on, off := DNS{RejectEncrypted: true}, DNS{}
		for _, network := range []flow.Network{flow.TCP, flow.UDP} {
			f := &flow.Flow{Network: network, Target: tt}
			if got := on.RejectsFlow(f); got != want {
				t.Errorf("%s %s: %v, want %v", network, target, got, want)
			}
			if off.RejectsFlow(f) || off.RejectsName(tt.Name) {
				t.Errorf("%s %s is rejected without the key", network, target)
			}
			if n := testing.AllocsPerRun(10, func() { on.RejectsFlow(f) }); n != 0 {
				t.Errorf("%s: %v allocations", target, n)
			}
		}
	}
}

// TestEncryptedDNSIsDocumented: whoever wonders why a name is not there finds it.
func TestEncryptedDNSIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "## Encrypted DNS\n")
	if !ok {
		t.Fatal("docs/dns.md has no section about it")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	words := strings.FieldsFunc(section, func(r rune) bool { return strings.ContainsRune(" \n,`|", r) })
	for _, n := range dohNames {
		if !slices.Contains(words, n) {
			t.Errorf("%s is not in docs/dns.md", n)
		}
	}
	for a := range dohAddrs {
		if !slices.Contains(words, a.String()) {
			t.Errorf("%s is not in docs/dns.md", a)
		}
	}
}
