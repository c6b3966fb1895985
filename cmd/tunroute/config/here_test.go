package config

import (
	"strings"
	"testing"
)

func TestMeantHere(t *testing.T) {
	for name, want := range map[string]bool{
		"printer":                           true,
		"local":                             true,
		"printer.local":                     true,
		"api.default.svc.cluster.local":     true,
		"www.example.org.svc.cluster.local": true,
		"router.home.arpa":                  true,
		"home.arpa":                         true,
		"1.2.0.10.in-addr.arpa":             true,
		"10.in-addr.arpa":                   true,
		"1.1.31.172.in-addr.arpa":           true,
		"1.1.168.192.in-addr.arpa":          true,
		strings.Repeat("1.", 28) + "0.0.d.f.ip6.arpa": true,
		strings.Repeat("1.", 29) + "b.e.f.ip6.arpa":   true,
		"www.example.org":         false,
		"local.example.org":       false,
		"notlocal.org":            false,
		"www.notlocal":            false,
		"nothome.arpa":            false,
		"4.8.8.8.in-addr.arpa":    false,
		"1.1.110.in-addr.arpa":    false,
		"1.1.32.172.in-addr.arpa": false,
		strings.Repeat("1.", 28) + "0.0.0.2.ip6.arpa": false,
		"resolver.arpa": false,
	} {
		if got := meantHere(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// TestNamesMeantHere: lists of the config say otherwise, the default does not.
func TestNamesMeantHere(t *testing.T) {
	c, err := Parse("t.yaml", []byte("names: {default: local-then-remote, remote: [.corp.local, intranet]}\nrules: [{via: reject}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Mode{
		"www.corp.local": Remote, "intranet": Remote, "printer.local": Local, "printer": Local, "www.example.org": LocalThenRemote,
	} {
		if got := c.NameMode(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.NameMode("1.2.0.8.in-addr.arpa") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
