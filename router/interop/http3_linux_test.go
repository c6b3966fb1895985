package interop

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
	"tunroute/router/outbound/outboundtest"
)

// A browser that takes HTTP/3 and nothing else for an answer gets a page by QUIC: directly,
// through a UDP ASSOCIATE of danted, and through that of one danted behind another.
func TestHTTP3(t *testing.T) {
	lab.Need(t, "chromium", "chromium")
	l := newLab(t)
	certificate, _, cert := outboundtest.Certificate(t, lab.PublicName)
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	dir := lab.Dir(t)
	for name, text := range map[string][]byte{"cert.pem": cert, "key.pem": outboundtest.Key(t, certificate)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []servers.Options{{Listen: lab.Target4(1)}, {Listen: lab.Target6(1)}} {
		at.Port = 443
		at.Config = fmt.Sprintf("tls %s/cert.pem %s/key.pem\nrespond \"{http.request.proto} from {http.request.remote.host}\"", dir, dir)
		startServer(t, l, servers.Caddy, at)
	}
	first, second := "socks5h://"+startServer(t, l, servers.Dante, dante), "socks5h://"+startServer(t, l, servers.Dante, dante)
	for _, tt := range []struct {
		name    string
		proxies []string
		from    []netip.Addr
	}{
		{"direct", nil, []netip.Addr{lab.Host4, lab.Host6}},
		{"danted", []string{first}, []netip.Addr{lab.Proxy4, lab.Proxy6}},
		{"danted behind danted", []string{first, second}, []netip.Addr{lab.Proxy4, lab.Proxy6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			home := lab.Dir(t)
			args := []string{"exec", "-v"}
			for _, p := range tt.proxies {
				args = append(args, "--proxy", p)
			}
			args = append(args, "--", "timeout", "-s", "KILL", "150",
				"chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
				"--user-data-dir="+home, "--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(key[:]),
				"--enable-quic", "--origin-to-force-quic-on="+lab.PublicName+":443", "--dump-dom", "https://"+lab.PublicName+"/")
			args = append([]string{"env", "HOME=" + home}, rootUser.tunroute(args...)...)
			reached := func(r lab.Result) bool {
				return slices.ContainsFunc(tt.from, func(a netip.Addr) bool { return strings.Contains(r.Stdout, "HTTP/3.0 from "+a.String()) })
			}
			r := run(t, l.Host, args...)
			// Where the machine stands still, the browser gives a handshake up.
			for try := 1; try < 4 && !reached(r); try++ {
				t.Logf("status %d, %s\n%s", r.Status, r.Stdout, r.Stderr)
				r = run(t, l.Host, args...)
			}
			if !reached(r) {
				t.Fatalf("status %d, %s\n%s", r.Status, r.Stdout, r.Stderr)
			}
			// There is none where a part of the browser outlives it: so does the router then.
			flow := ""
			for line := range strings.Lines(r.Stderr) {
				if strings.Contains(line, "net=udp") && strings.Contains(line, "dst="+lab.PublicName+":443 ") {
					flow = line
				}
			}
			t.Logf("%s%s", r.Stdout, flow)
		})
	}
}
