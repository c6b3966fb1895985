package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

func mustParse(t testing.TB, text string) *Config {
	t.Helper()
	c, err := Parse("tunroute.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

func TestLoadReadsSecretsBesideTheConfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tunroute.yaml")
	write(t, filepath.Join(dir, "unix.secret"), "hunter2\n", 0o600)
	write(t, filepath.Join(dir, "windows.secret"), "hunter2\r\n", 0o600)
	write(t, filepath.Join(dir, "two.secret"), "hunter2\n\n", 0o600)
	write(t, path, `
upstreams:
  a: {url: socks5h://192.0.2.1, user: office, password: {file: unix.secret}}
  b: {url: socks5h://192.0.2.1, user: office, password: {file: windows.secret}}
  c: {url: socks5h://192.0.2.1, user: {file: unix.secret}, password: {file: two.secret}}
rules: [{to: .a, via: a}, {to: .b, via: b}, {via: c}]
`, 0o600)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, u := range c.Upstreams {
		got = append(got, u.User+" "+u.Password.Reveal())
	}
	want := []string{"office hunter2", "office hunter2", "hunter2 hunter2\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
}

func TestLoadWarnsOfSecretsThatOthersMayRead(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the mode of a file does not say who may read it")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "tunroute.yaml")
	secret := filepath.Join(dir, "p.secret")
	text := `
upstreams:
  a: {url: socks5h://192.0.2.1, user: office, password: hunter2}
  b: {url: socks5h://192.0.2.1, user: office, password: {file: p.secret}}
rules: [{to: .a, via: a}, {via: b}]
`
	for _, c := range []struct {
		config, secret os.FileMode
		want           []string
	}{
		{0o600, 0o600, nil},
		{0o640, 0o640, nil},
		{0o644, 0o600, []string{"a password stands here, and every user of this machine may read the file"}},
		{0o600, 0o644, []string{"every user of this machine may read " + secret}},
	} {
		write(t, path, text, c.config)
		write(t, secret, "hunter3", c.secret)
		cfg, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range cfg.Warnings {
			got = append(got, w.Msg)
			if strings.Contains(w.Error(), "hunter") {
				t.Errorf("a warning shows the password:\n%v", w)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("modes %o and %o: -want +got\n%s", c.config, c.secret, diff)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "missing.yaml"), dir} {
		_, err := Load(path)
		var e *Error
		if !errors.As(err, &e) || e.File != path || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("Load(%q): got error %v, want one that names it once", path, err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	data := strings.Repeat("# this is no config\n", maxFile/20+1)
	if _, err := Parse("big.yaml", []byte(data)); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("got error %v", err)
	}
}

func TestErrorsEnd(t *testing.T) {
	_, err := Parse("x.yaml", []byte("rules:\n"+strings.Repeat("  - {vai: direct}\n", 10*maxErrors)))
	es, ok := err.(Errors)
	if !ok || len(es) != maxErrors || es[maxErrors-1].Line != maxErrors+1 {
		t.Errorf("got %d errors, want %d", len(es), maxErrors)
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	s := NewSecret("hunter2")
	held := struct {
		Exported Secret
		private  Secret
	}{s, s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%10s", "%t"} {
		for _, v := range []any{s, &s, held, &held, []Secret{s}, map[string]Secret{"a": s}, Upstream{Password: s}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, "hunter2") || strings.Contains(got, "68756e") || strings.Contains(got, "104 117") {
				t.Errorf("%s of %T prints %q", verb, v, got)
			}
		}
	}
	if got := fmt.Sprintf("%s %d %v", s, s, s); got != "[secret] [secret] [secret]" {
		t.Errorf("got %q", got)
	}
	j, err := json.Marshal(map[string]any{"a": s, "b": held})
	if err != nil || strings.Contains(string(j), "hunter2") {
		t.Errorf("JSON: %s, %v", j, err)
	}
	y, err := yaml.Dump(map[string]any{"a": s, "b": Upstreams{{Name: "x", Password: s}}})
	if err != nil || strings.Contains(string(y), "hunter2") || !strings.Contains(string(y), "[secret]") {
		t.Errorf("YAML: %s, %v", y, err)
	}
	var log strings.Builder
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).Info("x", "a", s, "b", held, "c", &Upstream{Password: s})
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("log: %s", log.String())
	}
	if s.Reveal() != "hunter2" || s.IsZero() || !(Secret{}).IsZero() || (Secret{}).String() != "" {
		t.Error("Reveal or IsZero is wrong")
	}
}

func TestNameMode(t *testing.T) {
	c := mustParse(t, `
names:
  default: local-then-remote
  remote: [.corp.example, bücher.example, public.intern.example]
  local: [.intern.example, www.corp.example, .deep.sub.corp.example]
rules: [{via: direct}]
`)
	for name, want := range map[string]Mode{
		"example.org":             LocalThenRemote,
		".":                       LocalThenRemote,
		"corp.example":            Remote,
		"a.b.corp.example":        Remote,
		"badcorp.example":         LocalThenRemote,
		"www.corp.example":        Local,
		"x.www.corp.example":      Remote,
		"sub.corp.example":        Remote,
		"a.deep.sub.corp.example": Local,
		"intern.example":          Local,
		"public.intern.example":   Remote,
		"bücher.example":          Remote,
		"xn--bcher-kva.example":   Remote,
	} {
		if got := c.NameMode(name); got != want {
			t.Errorf("NameMode(%q) = %s, want %s", name, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.NameMode("a.deep.sub.corp.example") }); n != 0 {
		t.Errorf("NameMode allocates %v times", n)
	}
}

func TestChain(t *testing.T) {
	c := mustParse(t, `
upstreams:
  c: {url: socks5h://192.0.2.3, via: b}
  a: socks5h://192.0.2.1
  b: {url: socks5h://192.0.2.2, via: a}
rules: [{via: c}]
`)
	for via, want := range map[string]string{"c": "a b c", "b": "a b", "a": "a", "direct": "", "nobody": ""} {
		var got []string
		for _, u := range c.Chain(via) {
			got = append(got, u.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("Chain(%q) = %v, want %s", via, got, want)
		}
	}
}

func TestTableHasTheLines(t *testing.T) {
	c := mustParse(t, "upstreams:\n  p: socks5h://192.0.2.1\nrules:\n  - to: .org\n    port: [https, 8000-8100]\n    proto: [tcp, udp]\n    via: p\n  - {via: drop}\n")
	table, err := c.Table()
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]rule.Verdict{
		"example.org:8080": {Index: 0, Line: 4, Via: "p"},
		"example.org:80":   {Index: 1, Line: 8, Via: "drop"},
	} {
		to, err := flow.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := table.Match(&flow.Flow{Network: flow.UDP, Target: to}); got != want {
			t.Errorf("%s: got %+v, want %+v", target, got, want)
		}
	}
}

func TestTUNRoutesHaveTheFakeRanges(t *testing.T) {
	for in, want := range map[string]string{
		"[0.0.0.0/0, '::/0']":       "[0.0.0.0/0 ::/0]",
		"[0.0.0.0/0]":               "[0.0.0.0/0 fd74:756e:726f::/64]",
		"[10.0.0.0/8, 'fd00::/8']":  "[10.0.0.0/8 fd00::/8 198.18.0.0/15]",
		"[]":                        "[198.18.0.0/15 fd74:756e:726f::/64]",
		"[198.18.0.0/16, '::/0']":   "[198.18.0.0/16 ::/0 198.18.0.0/15]",
		"['198.18.0.0/14', '::/0']": "[198.16.0.0/14 ::/0]",
	} {
		if strings.Contains(in, "/14") {
			in = strings.ReplaceAll(in, "198.18.0.0/14", "198.16.0.0/14")
		}
		c := mustParse(t, "rules: [{via: direct}]\ntun: {routes: "+in+"}\n")
		if got := fmt.Sprint(c.TUNRoutes()); got != want {
			t.Errorf("routes %s: got %s, want %s", in, got, want)
		}
	}
}

func TestDefaultIsWhatAnEmptyConfigIs(t *testing.T) {
	if diff := cmp.Diff(string(dump(t, Default())), string(dump(t, mustParse(t, "{}")))); diff != "" {
		t.Errorf("-Default +{}\n%s", diff)
	}
	for _, p := range []netip.Prefix{Default().DNS.Range4, Default().DNS.Range6} {
		if p != p.Masked() {
			t.Errorf("%s is not masked", p)
		}
	}
}

func TestErrorsCanBeTakenApart(t *testing.T) {
	_, err := Parse("x.yaml", []byte("rules:\n  - {vai: direct}\n  - {via: dirct}\n"))
	var e *Error
	if !errors.As(fmt.Errorf("reload: %w", err), &e) || e.Line != 2 || e.Column != 6 || e.Source != "  - {vai: direct}" || e.Hint != `did you mean "via"?` {
		t.Errorf("got %#v", e)
	}
}

// TestNoLineShowsAPassword has lines as they stand in files that could not be
// read, where nothing is known but the text.
func TestNoLineShowsAPassword(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`password: hunter2`, `password: [secret]`},
		{`  password:   hunter2   # of the office`, `  password:   [secret]   # of the office`},
		{`{url: a, password: hunter2, bind: b}`, `{url: a, password: [secret], bind: b}`},
		{`{password: "hunt, er2", bind: b}`, `{password: [secret], bind: b}`},
		{`{password: "hunt\"er2", bind: b}`, `{password: [secret], bind: b}`},
		{`{"password":"hunter2"}`, `{"password":[secret]}`},
		{`Password: 'hunter2`, `Password: [secret]`},
		{`passwrd: hunter2`, `passwrd: [secret]`},
		{`pass: hunter2`, `pass: [secret]`},
		{`password: {file: office.secret}`, `password: {file: office.secret}`},
		{`password: {env: OFFICE}`, `password: {env: OFFICE}`},
		{`password: *hunter2`, `password: [secret]`}, // which may be a password, without quotes
		{`password: !hunter2`, `password: [secret]`},
		{`pwd: hunter2`, `pwd: [secret]`},
		{`dns: {ttl: 9s, key: hunter2}`, `dns: {ttl: 9s, key: [secret]}`},
		{"dns:\n\n  hosts:\n    - a\n  key: hunter2", `  key: [secret]`},
		{"dns:\n  key:\n    hunter2", `    [secret]`},
		{"listen:\n  socks:\n    - tls: {cert: c.pem, key: k.pem}", `    - tls: {cert: c.pem, key: k.pem}`},
		{`p1: socks5h://office:hunter2@192.0.2.1`, `p1: socks5h://office:[secret]@192.0.2.1`},
		{`p1: socks5h://office:hunt@er2@192.0.2.1`, `p1: socks5h://office:[secret]@192.0.2.1`},
		{`p1: "socks5h://office:hunt er2@192.0.2.1"`, `p1: "socks5h://office:[secret]@192.0.2.1"`},
		{`p1: 'socks5h://office:hunter2'`, `p1: 'socks5h://office:[secret]'`},
		{`p1: socks5h://office:hunter2`, `p1: socks5h://office:[secret]`},
		{`{a: socks5h://192.0.2.1:1080}`, `{a: socks5h://192.0.2.1:1080}`},
		{`{a: "socks5h://[2001:db8::1]:1080"}`, `{a: "socks5h://[2001:db8::1]:1080"}`},
		{`{a: socks5h://b, c: socks5h://u:hunter2@d}`, `{a: socks5h://b, c: socks5h://u:[secret]@d}`},
		{"password: |\n  hunter2", `  [secret]`},
		{"password:\n\n    hunter2", `    [secret]`},
		{"password: >-\n  one\n    hunter2", `    [secret]`},
		{"password: hunt\n  er2", `  [secret]`},
		{"password:\n  file: office.secret", `  file: office.secret`},
		{"password:\n  file: office.secret\nbind: eth0", `bind: eth0`},
		{"p1:\n  password: hunter2\n  bind: eth0", `  bind: eth0`},
		{"{password: hunter2,\n  bind: eth0}", `  [secret]`}, // too much, but a password could go on like this
		{"\tvia: \x1b[31mred", "\tvia: \ufffd[31mred"},
	} {
		s := newSource("x.yaml", []byte(c.text))
		got, _ := s.show(len(s.lines)-1, 0)
		if got != c.want {
			t.Errorf("%q\n got %q\nwant %q", c.text, got, c.want)
		}
	}
}

// TestNoErrorShowsAPassword has passwords that YAML takes for something else.
func TestNoErrorShowsAPassword(t *testing.T) {
	for _, value := range []string{"*hunter2", "!hunter2", "!hunter2 x", "!!hunter2 x", "!!int hunter2", "!hunter2!x y", "&hunter2", "%hunter2", "@hunter2", "`hunter2", "hunter2: x", "[hunter2", `"\hunter2"`} {
		for _, key := range []string{"upstreams:\n  p1:\n    url: socks5h://192.0.2.1\n    user: ann\n    password", "rules: [{via: direct}]\ndns:\n  key"} {
			text := key + ": " + value + "\n"
			_, err := Parse("tunroute.yaml", []byte(text))
			if err == nil && strings.HasPrefix(value, "*") {
				t.Errorf("%s is no error", text)
			}
			if err != nil && strings.Contains(err.Error(), "unter2") {
				t.Errorf("%s%v", text, err)
			}
		}
	}
}

func TestCaretFollowsTheCut(t *testing.T) {
	for _, c := range []struct{ text, at, want string }{
		{`{password: hunter2, bind: eth0}`, "eth0", "eth0}"},
		{`{password: hunter2, bind: eth0}`, "hunter2", "[secret], bind: eth0}"},
		{`{password: hunter2, bind: eth0}`, "ter2", "[secret], bind: eth0}"},
		{`{bind: eth0, password: hunter2}`, "eth0", "eth0, password: [secret]}"},
		{`{ü: [é], password: hunter2, bind: eth0}`, "eth0", "eth0}"},
	} {
		s := newSource("x.yaml", []byte(c.text))
		column := len([]rune(c.text[:strings.Index(c.text, c.at)]))
		text, caret := s.show(0, column)
		if got := string([]rune(text)[caret:]); got != c.want {
			t.Errorf("%q at %q: the caret is at %q, want %q", c.text, c.at, got, c.want)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	known := []string{"upstreams", "names", "rules", "tun", "dns", "timeouts"}
	for word, want := range map[string]string{
		"upstream": "upstreams", "upstraems": "upstreams", "Rules": "rules", "ruls": "rules",
		"tunn": "tun", "timeout": "timeouts", "proxies": "", "x": "", "": "",
	} {
		if got := closest(word, known); got != want {
			t.Errorf("closest(%q) = %q, want %q", word, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1}, {"abc", "ab", 1}, {"kitten", "sitting", 3}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.b, c.a, got, c.want)
		}
	}
}

// A ca is read beside the config, and trusted is what it has.
func TestLoadReadsTheCA(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tunroute.yaml")
	text := certificate(t)
	write(t, filepath.Join(dir, "ca.pem"), string(text), 0o644)
	write(t, filepath.Join(dir, "empty.pem"), "no certificate\n", 0o644)
	const config = "upstreams: {a: {url: https://192.0.2.1, ca: %s}}\nrules: [{via: a}]\n"
	write(t, path, fmt.Sprintf(config, "ca.pem"), 0o600)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := x509.NewCertPool()
	want.AppendCertsFromPEM(text)
	if u := c.Upstreams[0]; u.Roots == nil || !u.Roots.Equal(want) || len(c.Warnings) > 0 {
		t.Errorf("roots %v, warnings %v", u.Roots, c.Warnings)
	}
	for name, want := range map[string]string{
		"empty.pem": filepath.Join(dir, "empty.pem") + ": no certificate in PEM in it",
		"none.pem":  filepath.Join(dir, "none.pem") + ": no such file or directory",
		".":         dir + ": not a regular file",
	} {
		write(t, path, fmt.Sprintf(config, name), 0o600)
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), `ca of upstream "a": `+want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// certificate returns a certificate that has signed itself, in PEM.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
