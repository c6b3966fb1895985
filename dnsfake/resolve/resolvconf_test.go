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
	"testing/synctest"
	"time"
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
			if got := fmt.Sprint(parseResolvConf(tt.text).Servers); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestSearchList(t *testing.T) {
	for _, tt := range []struct{ text, name, want string }{
		{"", "www", "[www]"},
		{"search a.test B.test.", "www", "[www.a.test www.b.test www]"},
		{"search a.test", "www.x", "[www.x www.x.a.test]"},
		{"search a.test\noptions timeout:1 ndots:2", "www.x", "[www.x.a.test www.x]"},
		{"search a.test\noptions ndots:0", "www", "[www www.a.test]"},
		{"search a.test\noptions ndots:x ndots:-1", "www", "[www www.a.test]"},
		{"search a.test\noptions ndots:99", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p", "[a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.a.test]"},
		{"search a.test\ndomain b.test c.test", "www", "[www.b.test www]"},
		{"domain b.test\nsearch a.test", "www", "[www.a.test www]"},
		{"search .", "www", "[www]"},
		{"search lan.. a..test .b.test c.test", "www", "[www.c.test www]"},
		{"search", "www", "[www]"},
		{" search a.test", "www", "[www]"},
	} {
		if got := fmt.Sprint(parseResolvConf(tt.text).candidates(tt.name)); got != tt.want {
			t.Errorf("%q, %s: %s, want %s", tt.text, tt.name, got, tt.want)
		}
	}
}

// TestSystemIsReadAgain: when it has changed, and not while it is gone.
func TestSystemIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		s := NewSystem(path)
		if _, err := s.Conf(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v", err)
		}
		expect := func(want string) {
			t.Helper()
			if got, err := s.Conf(); err != nil || fmt.Sprint(got.Servers) != want {
				t.Errorf("%v, %v, want %s", got.Servers, err, want)
			}
		}
		writeFile(t, path, "nameserver 192.0.2.1\n", 1)
		time.Sleep(recheck)
		expect("[192.0.2.1:53]")
		writeFile(t, path, "nameserver 192.0.2.2\n", 2)
		time.Sleep(recheck - time.Nanosecond)
		expect("[192.0.2.1:53]")
		time.Sleep(time.Nanosecond)
		expect("[192.0.2.2:53]")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(recheck)
		expect("[192.0.2.2:53]")
		writeFile(t, path, "nameserver 192.0.2.3\n", 2)
		time.Sleep(recheck)
		expect("[192.0.2.3:53]")
	})
}

// writeFile writes a file that was changed at a second.
func writeFile(t *testing.T, path, text string, second int) {
	t.Helper()
	at := time.Unix(int64(second), 0)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
		t.Fatal(err)
	}
}

// TestBehindStub: of systemd-resolved's stub those are asked that it asks, with the
// search list of resolv.conf; but not where others are named, or it has not said whom.
func TestBehindStub(t *testing.T) {
	dir := t.TempDir()
	for i, tt := range []struct{ conf, behind, want string }{
		{"nameserver 127.0.0.53\nsearch lan\noptions ndots:2\n", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch other\n", "{[192.0.2.1:53 192.0.2.2:53] [lan] 2}"},
		{"nameserver 127.0.0.54\n", "nameserver 192.0.2.1\n", "{[192.0.2.1:53] [] 1}"},
		{"nameserver 127.0.0.53\nnameserver 192.0.2.9\n", "nameserver 192.0.2.1\n", "{[127.0.0.53:53 192.0.2.9:53] [] 1}"},
		{"nameserver 127.0.0.1\n", "nameserver 192.0.2.1\n", "{[127.0.0.1:53] [] 1}"},
		{"nameserver 127.0.0.53\n", "# none yet\n", "{[127.0.0.53:53] [] 1}"},
		{"nameserver 127.0.0.53\n", "", "{[127.0.0.53:53] [] 1}"},
	} {
		conf, behind := fmt.Sprintf("%s/conf%d", dir, i), fmt.Sprintf("%s/behind%d", dir, i)
		writeFile(t, conf, tt.conf, 1)
		if tt.behind != "" {
			writeFile(t, behind, tt.behind, 1)
		}
		s := NewSystem(conf)
		s.BehindStub(behind)
		if got, err := s.Conf(); err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%q and %q: %v, %v, want %s", tt.conf, tt.behind, got, err, tt.want)
		}
	}
}

func TestSystemOfThisMachine(t *testing.T) {
	switch got, err := NewSystem("").Conf(); {
	case err == nil && len(got.Servers) > 0:
	case errors.Is(err, errors.ErrUnsupported):
	default:
		t.Errorf("this system: %v, %v", got, err)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 192.0.2.1 # x\nsearch example.org\n\nnameserver fe80::1%eth0\r\n;")
	f.Add("nameserver\t::1;\nnameserver 1\nnameserver 1.2.3.4\nnameserver 2.3.4.5\n")
	f.Fuzz(func(t *testing.T, text string) {
		conf := parseResolvConf(text)
		servers := conf.Servers
		for _, c := range conf.candidates("www") {
			if !strings.HasPrefix(c, "www") || strings.HasSuffix(c, ".") {
				t.Fatalf("%q: candidate %q", text, c)
			}
		}
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
		if got := parseResolvConf(again.String()).Servers; fmt.Sprint(got) != fmt.Sprint(servers) {
			t.Fatalf("%q: %v, and again %v", text, servers, got)
		}
	})
}
