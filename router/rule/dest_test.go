package rule

import (
	"errors"
	"strings"
	"testing"
)

func TestParseDest(t *testing.T) {
	for _, c := range []struct {
		in, want string
		kind     DestKind
	}{
		{"10.0.0.0/8", "10.0.0.0/8", Addresses},
		{"10.0.0.1", "10.0.0.1", Addresses},
		{"10.0.0.1/32", "10.0.0.1", Addresses},
		{"0.0.0.0/0", "0.0.0.0/0", Addresses},
		{"::/0", "::/0", Addresses},
		{"2001:DB8::1", "2001:db8::1", Addresses},
		{"[2001:db8::1]", "2001:db8::1", Addresses},
		{"[2001:db8::]/32", "2001:db8::/32", Addresses},
		{"::ffff:10.0.0.1", "10.0.0.1", Addresses},
		{"::ffff:10.0.0.0/104", "10.0.0.0/8", Addresses},
		{"::ffff:0:0/96", "0.0.0.0/0", Addresses},
		{"example.org", "example.org", ExactName},
		{"=example.org", "example.org", ExactName},
		{"Example.ORG.", "example.org", ExactName},
		{"localhost", "localhost", ExactName},
		{"1.example", "1.example", ExactName},
		{"_sip._tcp.example", "_sip._tcp.example", ExactName},
		{".example.org", ".example.org", NameAndBelow},
		{".ORG.", ".org", NameAndBelow},
		{"*.example.org", "*.example.org", NamePattern},
		{"a.*.b.*", "a.*.b.*", NamePattern},
		{"bücher.example", "bücher.example", ExactName},
		{".", ".", EveryName},
		{strings.Repeat("a", 63) + ".org", strings.Repeat("a", 63) + ".org", ExactName},
	} {
		d, err := ParseDest(c.in)
		if err != nil {
			t.Errorf("ParseDest(%q): %v", c.in, err)
			continue
		}
		if d.Kind != c.kind || d.String() != c.want {
			t.Errorf("ParseDest(%q) = %q of kind %d, want %q of kind %d", c.in, d, d.Kind, c.want, c.kind)
		}
		if err := d.check(); err != nil {
			t.Errorf("check of %q: %v", c.in, err)
		}
	}
}

func TestBadDest(t *testing.T) {
	for _, c := range []struct{ in, reason, hint string }{
		{"", "is no destination", "everything"},
		{"*", "one label only", "every name"},
		{"..", "no name in it", ""},
		{"=", "no name in it", ""},
		{"=.", "no name in it", ""},
		{"a..b", "empty label", ""},
		{"..example.org", "empty label", ""},
		{"a b", "space", ""},
		{"a\x00.example", "control character", ""},
		{"example.org:443", "has a port in it", "to: example.org and port: 443"},
		{"10.0.0.1:80", "has a port in it", "to: 10.0.0.1 and port: 80"},
		{"[2001:db8::1]:80", "has a port in it", "to: 2001:db8::1 and port: 80"},
		{"https://example.org/", "is a URL", "only its host"},
		{"example.org/24", "slash", "prefix"},
		{"foo*.example.org", `"*" beside other letters`, "whole label"},
		{".*.example.org", "leading dot", "exactly one label"},
		{"=*.example.org", `leading "="`, "leave out"},
		{".10.0.0.1", "mixes an address", "write 10.0.0.1"},
		{"=10.0.0.1", "mixes an address", "write 10.0.0.1"},
		{"127.1", "ends in a number", "four numbers"},
		{"10.0.0.256", "ends in a number", "four numbers"},
		{"010.0.0.1", "ends in a number", "four numbers"},
		{"0x7f.1", "ends in a number", "four numbers"},
		{"2130706433", "ends in a number", "four numbers"},
		{"10.0.0.0/33", "has 32 bits", ""},
		{"::/129", "has 128 bits", ""},
		{"10.0.0.0/", "number of bits", ""},
		{"10.0.0.0/08", "number of bits", ""},
		{"10.0.0.0/255.255.0.0", "number of bits", "write 10.0.0.0/16"},
		{"10.0.0.0/255.0.255.0", "number of bits", ""},
		{"10/8", "not a prefix", "write 10.0.0.0/8"},
		{"192.168.1/16", "not a prefix", "write 192.168.0.0/16"},
		{"10.0.0.1/8", "bits set behind the first 8", "write 10.0.0.0/8 for the network or 10.0.0.1 for the address"},
		{"::ffff:0.0.0.0/90", "wider than", "0.0.0.0/0"},
		{"fe80::1%eth0", "zone", "write fe80::1"},
		{"exa$mple.org", `'$'`, ""},
		{"\xff.example", "not UTF-8", ""},
		{strings.Repeat("a", 64) + ".org", "63 bytes", ""},
		{strings.Repeat("ü", 60) + ".org", "63 bytes", ""},
		{strings.Repeat("a.", 130) + "b", "255 bytes", ""},
	} {
		_, err := ParseDest(c.in)
		checkParseError(t, c.in, err, c.reason, c.hint)
	}
}

func TestParseFrom(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8":      "10.0.0.0/8",
		"10.0.0.1":        "10.0.0.1/32",
		"2001:db8::1":     "2001:db8::1/128",
		"::ffff:10.0.0.1": "10.0.0.1/32",
	} {
		p, err := ParseFrom(in)
		if err != nil || p.String() != want {
			t.Errorf("ParseFrom(%q) = %v, %v, want %s", in, p, err, want)
		}
	}
	for _, c := range []struct{ in, reason, hint string }{
		{"", "neither an address nor a prefix", ""},
		{"any", "neither an address nor a prefix", "without from"},
		{"example.org", "neither an address nor a prefix", ""},
		{"10.0.0.1/8", "bits set", "10.0.0.0/8"},
		{"10/8", "not a prefix", "write 10.0.0.0/8"},
	} {
		_, err := ParseFrom(c.in)
		checkParseError(t, c.in, err, c.reason, c.hint)
	}
}

func TestParsePorts(t *testing.T) {
	for in, want := range map[string]string{
		"80":              "80",
		"1-1023":          "1-1023",
		"1 - 1023":        "1-1023",
		"65535":           "65535",
		"https":           "443",
		"HTTPS":           "443",
		"http-alt":        "8080",
		"80, 443,ssh,1-2": "80 443 22 1-2",
	} {
		ranges, err := ParsePorts(in)
		var got []string
		for _, r := range ranges {
			got = append(got, r.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("ParsePorts(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
	for _, c := range []struct{ in, reason, hint string }{
		{"", "is not a port", "a number"},
		{"80,", "is not a port", "a number"},
		{"htps", "is not a port", "a number"},
		{"0", "port 0", "from 1"},
		{"0-10", "port 0", "from 1"},
		{"65536", "beyond the last port", "to 65535"},
		{"99999999999999999999999", "beyond the last port", "to 65535"},
		{"-1", "is not a port", "a number"},
		{"+1", "is not a port", "a number"},
		{"1-2-3", "is not a port", "a number"},
		{"1024-", "is not a port", "a number"},
		{"90-80", "ends before it begins", "write 80-90"},
	} {
		_, err := ParsePorts(c.in)
		checkParseError(t, c.in, err, c.reason, c.hint)
	}
}

func checkParseError(t *testing.T, in string, err error, reason, hint string) {
	t.Helper()
	var pe *ParseError
	if !errors.As(err, &pe) {
		t.Errorf("%q: got error %v, want a ParseError", in, err)
		return
	}
	if !strings.Contains(pe.Reason, reason) || !strings.Contains(pe.Hint, hint) || pe.Hint == "" {
		t.Errorf("%q: got %q with hint %q, want %q with hint %q", in, pe.Reason, pe.Hint, reason, hint)
	}
}

// TestNamesInASCII has names that are registered, and what other libraries make
// of them.
func TestNamesInASCII(t *testing.T) {
	for in, want := range map[string]string{
		"www.BÜCHER.example":       "www.xn--bcher-kva.example",
		"www.bu\u0308cher.example": "www.xn--bcher-kva.example", // with a combining accent
		"straße.example":           "xn--strae-oqa.example",
		"そのスピードで.example":          "xn--d9juau41awczczp.example",
		"_sip.*.münchen.example":   "_sip.*.xn--mnchen-3ya.example",
		"plain_name.example":       "plain_name.example",
	} {
		if got, err := toASCII(in); err != nil || got != want {
			t.Errorf("toASCII(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"\xff.example", "a\u200d.example"} {
		if got, err := toASCII(in); err == nil {
			t.Errorf("toASCII(%q) = %q, want an error", in, got)
		}
	}
}

func FuzzParseDest(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "::ffff:1.2.3.4/100", "[::1]", ".example.org", "=a", "*.b", ".", "bücher.example", "10/8", "1.2.3.4/255.0.0.0", "a:80", "fe80::1%x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDest(s)
		if err != nil {
			var pe *ParseError
			if !errors.As(err, &pe) || pe.Reason == "" || pe.Hint == "" {
				t.Fatalf("ParseDest(%q): poor error %#v", s, err)
			}
			return
		}
		if err := d.check(); err != nil {
			t.Fatalf("ParseDest(%q) = %#v: %v", s, d, err)
		}
		mustCompile(t, []Rule{{To: []Dest{d}, Via: "x"}})
	})
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"80", "1-1023", "http,https", "80 , 443", "-", "70000", "http-alt"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ranges, err := ParsePorts(s)
		if err == nil && len(ranges) == 0 {
			t.Fatalf("ParsePorts(%q): neither ports nor an error", s)
		}
		for _, r := range ranges {
			back, err := ParsePorts(r.String())
			if err != nil || len(back) != 1 || back[0] != r || r.First == 0 || r.First > r.Last {
				t.Fatalf("ParsePorts(%q) has %v, which parses as %v, %v", s, r, back, err)
			}
		}
	})
}

func FuzzParseFrom(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "::1", "::ffff:1.2.3.4/120", "10.1/16", "1.2.3.4/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseFrom(s)
		if err != nil {
			return
		}
		if back, err := ParseFrom(p.String()); err != nil || back != p || !canonicalPrefix(p) {
			t.Fatalf("ParseFrom(%q) = %v, which parses as %v, %v", s, p, back, err)
		}
	})
}
