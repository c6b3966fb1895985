package flow

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseTarget(t *testing.T) {
	addr := netip.MustParseAddr
	for in, want := range map[string]Target{
		"example.org:443":         {Name: "example.org", Port: 443},
		"WWW.Example.ORG.:0":      {Name: "www.example.org"},
		"10.0.0.20:80":            {Addr: addr("10.0.0.20"), Port: 80},
		"[2001:db8::1]:80":        {Addr: addr("2001:db8::1"), Port: 80},
		"[::ffff:10.0.0.20]:80":   {Addr: addr("10.0.0.20"), Port: 80}, // or a rule about 10/8 is passed by
		"bücher.example:65535":    {Name: "bücher.example", Port: 65535},
		"10.0.0.20.:80":           {Addr: addr("10.0.0.20"), Port: 80},
		"10.0.0.20.example.org:1": {Name: "10.0.0.20.example.org", Port: 1},
	} {
		got, err := ParseTarget(in)
		if err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "example.org", "example.org:http", "example.org:65536", "example.org:-1", ":80", ".:80", "a b:80", "a\x00b:80", strings.Repeat("a", 256) + ":80"} {
		if got, err := ParseTarget(in); err == nil {
			t.Errorf("ParseTarget(%q) = %+v, want an error", in, got)
		}
	}
}

// TestAddressesOfOldPrograms: what inet_aton(3) reads as an address is no name.
func TestAddressesOfOldPrograms(t *testing.T) {
	for _, in := range []string{"10.1", "0x0a000001", "2130706433", "0X7F.1", "127.0.0.0x1", "0177.0.0.01", "10.1.", "a.1", "1.2.3.4.5", "0x"} {
		if got, err := NewTarget(in, 80); !errors.Is(err, ErrNumber) {
			t.Errorf("%q: %+v, %v, want ErrNumber", in, got, err)
		}
	}
	for _, in := range []string{"10.example", "1a", "0xg", "x0", "1.xn--p1ai", "1-1"} {
		if got, err := NewTarget(in, 80); err != nil || got.Name != in {
			t.Errorf("%q: %+v, %v, want the name", in, got, err)
		}
	}
}

func TestCanonicalNameRefuses(t *testing.T) {
	for in, want := range map[string]error{
		"":                        ErrEmptyName,
		".":                       ErrEmptyName,
		strings.Repeat("x", 256):  ErrLongName,
		"good.example\x00.bad":    ErrBadName,
		"tab\there":               ErrBadName,
		"del\x7f":                 ErrBadName,
		strings.Repeat("x", 255):  nil,
		"MiXeD.example.":          nil,
		"two.dots..":              ErrBadLabel,
		".leading":                ErrBadLabel,
		"mid..dle":                ErrBadLabel,
		"_service._tcp.example":   nil,
		"xn--bcher-kva.example":   nil,
		"ünïcode stays as it is.": ErrBadName, // the spaces
	} {
		if _, err := CanonicalName(in); !errors.Is(err, want) {
			t.Errorf("CanonicalName(%q): %v, want %v", in, err, want)
		}
	}
}

func TestTargetString(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::1")
	for want, in := range map[string]Target{
		"example.org:443":  {Name: "example.org", Addr: v6, Port: 443},
		"[2001:db8::1]:80": {Addr: v6, Port: 80},
	} {
		if got := in.String(); got != want {
			t.Errorf("String of %+v = %q, want %q", in, got, want)
		}
	}
	if s := Network(9).String(); s != "network(9)" {
		t.Errorf("an unknown network is %q", s)
	}
}

func FuzzNewTarget(f *testing.F) {
	for _, s := range []string{"example.org", "10.0.0.1", "[::1]", "::ffff:1.2.3.4", "fe80::1%eth0", "A.", "..", "a\x00", "[::.", "::%]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		got, err := NewTarget(host, 80)
		if err != nil {
			return
		}
		if (got.Name == "") != got.Addr.IsValid() {
			t.Fatalf("NewTarget(%q) = %+v: neither a name alone nor an address alone", host, got)
		}
		if got.Name != "" {
			if _, err := netip.ParseAddr(got.Name); err == nil {
				t.Errorf("NewTarget(%q) has the address %q as a name", host, got.Name)
			}
		}
		again, err := NewTarget(got.Host(), 80)
		if err != nil || again != got {
			t.Errorf("NewTarget(%q) = %+v, and of its own host %+v, %v", host, got, again, err)
		}
	})
}
