package flow

import (
	"net/netip"
	"strings"
	"testing"
)

func TestTemplate(t *testing.T) {
	named := &Flow{Source: netip.MustParseAddrPort("[::ffff:10.0.0.7]:5"), Target: Target{Name: "example.org", Addr: netip.MustParseAddr("192.0.2.1"), Port: 443}}
	six := &Flow{Source: netip.MustParseAddrPort("[2001:db8::7]:5"), Target: AddrTarget(netip.MustParseAddrPort("[2001:db8::1]:80"))}
	for _, tt := range []struct {
		text  string
		f     *Flow
		want  string
		fixed bool
	}{
		{"joe", named, "joe", true},
		{"", nil, "", true},
		{"{{rule}}", named, "{rule}}", true},
		{"}", named, "}", true},
		{"{rule}", named, "3", false},
		{"{rule}-{source}-{target}-{port}", named, "3-10.0.0.7-example.org-443", false},
		{"{source}/{target}", six, "2001-db8--7/2001-db8--1", false},
		{"a{{{port}b", six, "a{80b", false},
		{"{rule}-{source}", nil, "---", false},
	} {
		p, err := ParseTemplate(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := p.Text(tt.f, 3); got != tt.want || p.Fixed() != tt.fixed {
			t.Errorf("%q: got %q, fixed %v, want %q, %v", tt.text, got, p.Fixed(), tt.want, tt.fixed)
		}
	}
	for text, want := range map[string]string{
		"{uid}": "unknown variable {uid}", "{}": "no variable", "{Hunter 2}": "in braces that is no variable", "a{rule": `a "{" without`, "{Rule}": "no variable", "{{{": `a "{" without`,
	} {
		if _, err := ParseTemplate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// Whatever parses has a text for every flow, and a fixed one is the same for all.
func FuzzParseTemplate(f *testing.F) {
	f.Add("{rule}-{source}")
	f.Add("{{}{port}")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseTemplate(text)
		if err != nil {
			return
		}
		some := p.Text(&Flow{Target: Target{Name: "a", Port: 1}}, 1)
		if none := p.Text(nil, 0); p.Fixed() && some != none {
			t.Fatalf("%q is %q and %q", text, some, none)
		}
		if !strings.Contains(text, "{") && some != text {
			t.Fatalf("%q is %q", text, some)
		}
	})
}
