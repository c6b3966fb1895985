package resolve

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseResolvConf(t *testing.T) {
	const none = "[127.0.0.1:53]"
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", none},
		{"one", "nameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"no newline at the end", "nameserver 192.0.2.1", "[192.0.2.1:53]"},
		{"order", "nameserver 192.0.2.2\nnameserver 192.0.2.1\n", "[192.0.2.2:53 192.0.2.1:53]"},
		{"tabs, spaces, carriage returns", "nameserver\t 192.0.2.1 \r\nnameserver  ::1\t\r\n", "[192.0.2.1:53 [::1]:53]"},
		{"scope", "nameserver fe80::1%eth0\n", "[[fe80::1%eth0]:53]"},
		{"other keywords", "search example.org\noptions ndots:5\ndomain x\nsortlist 10.0.0.0\nnameserver 192.0.2.1", "[192.0.2.1:53]"},
		{"comments", "# nameserver 192.0.2.9\n;nameserver 192.0.2.8\nnameserver 192.0.2.1 # one\nnameserver 192.0.2.2;two\n#", "[192.0.2.1:53 192.0.2.2:53]"},
		{"three at most", strings.Repeat("nameserver 192.0.2.1\n", 4), "[192.0.2.1:53 192.0.2.1:53 192.0.2.1:53]"},
		{"names are no addresses", "nameserver dns.example.org\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"longer keyword", "nameserver6 ::1\nnameservers 192.0.2.1\n", none},
		{"not at the start", " nameserver 192.0.2.1\n", none},
		{"nothing after it", "nameserver\nnameserver \n", none},
		{"comment after it", "nameserver #192.0.2.1\n", none},
		{"capitals", "NAMESERVER 192.0.2.1\n", none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fmt.Sprint(parseResolvConf(tt.text)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestSystemServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if _, err := SystemServers(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := SystemServers(path); err != nil || fmt.Sprint(got) != "[192.0.2.1:53]" {
		t.Errorf("%v, %v", got, err)
	}
	switch got, err := SystemServers(""); {
	case err == nil && len(got) > 0:
	case errors.Is(err, errors.ErrUnsupported):
	default:
		t.Errorf("this system: %v, %v", got, err)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1 # x\nsearch example.org\n\nnameserver fe80::1%eth0\r\n;")
	f.Add("nameserver\t::1;\nnameserver 1\nnameserver 1.2.3.4\nnameserver 2.3.4.5\n")
	f.Fuzz(func(t *testing.T, text string) {
		servers := parseResolvConf(text)
		if len(servers) == 0 || len(servers) > maxServers {
			t.Fatalf("%q: %d servers", text, len(servers))
		}
		own := netip.MustParseAddrPort("127.0.0.1:53")
		var again strings.Builder
		for _, s := range servers {
			if !s.IsValid() || s.Port() != dnsPort {
				t.Fatalf("%q: server %v", text, s)
			}
			// Every server but the one of an empty file stands in the text.
			if s != own && !strings.Contains(text, "nameserver") {
				t.Fatalf("%q: server %v from nowhere", text, s)
			}
			fmt.Fprintf(&again, "nameserver %v\n", s.Addr())
		}
		if got := parseResolvConf(again.String()); fmt.Sprint(got) != fmt.Sprint(servers) {
			t.Fatalf("%q: %v, and again %v", text, servers, got)
		}
	})
}
