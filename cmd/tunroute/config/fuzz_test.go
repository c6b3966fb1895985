package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "*", "*.txt"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(dashes.Split(string(text), 2)[0])
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("tunroute.yaml", []byte(text))
		if err != nil {
			es, ok := err.(Errors)
			if !ok || len(es) == 0 || len(es) > maxErrors {
				t.Fatalf("got error %v, want 1 to %d Errors", err, maxErrors)
			}
			for _, e := range es {
				if e.Msg == "" || e.File != "tunroute.yaml" || e.Line < 0 || e.Line > 0 && e.Column < 1 || strings.ContainsAny(e.Source, "\n\x1b") {
					t.Fatalf("poor error %#v", e)
				}
				_ = e.Error()
			}
			return
		}
		if _, err := c.Table(); err != nil {
			t.Fatalf("Table: %v", err)
		}
		_ = c.Warnings.Error()
		checkRoundTrip(t, c)
	})
}

func FuzzProxyURL(f *testing.F) {
	for _, s := range []string{"socks5h://a:b@192.0.2.1:1080", "direct", "socks4://[2001:db8::1%25x]:1", "a:b@c", "socks5://a@b@c:1/", "socks5h://u:%zz@h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseURL(s)
		if err == nil {
			back, err := parseURL(p.canonical())
			if err != nil || back.server != p.server || back.scheme != p.scheme {
				t.Fatalf("%q is %q, which is %+v, %v", s, p.canonical(), back, err)
			}
		}
		// What stands between the user and the host is shown nowhere.
		const secret = "Xhunter2X"
		shown := hidePassword("socks5h://user:" + secret + "@" + s)
		if _, e := FromProxies([]string{"socks5h://user:" + secret + "@" + s}); e != nil {
			shown += e.Error()
		}
		if strings.Contains(shown, secret) {
			t.Fatalf("the password is in %q", shown)
		}
	})
}
