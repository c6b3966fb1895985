package engine_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/outbound/outboundtest"
)

// TestWay: a connection to a server is one to that server, over whatever it is spoken to
// and through whoever is before it, and nothing has been said over it.
func TestWay(t *testing.T) {
	cert, _, text := outboundtest.Certificate(t, "localhost")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	unix := outboundtest.StartServer(t, outboundtest.ServerOptions{Unix: true})
	secure := outboundtest.StartServer(t, outboundtest.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	cfg, err := config.Parse("way.yaml", fmt.Appendf(nil, `
upstreams:
  plain: socks5h://%s
  unix: "socks5h+unix://%s"
  tls: {url: socks5h+tls://%s, ca: %q, server-name: localhost}
  chain: {url: socks5h+tls://%[3]s, ca: %[4]q, server-name: localhost, via: unix}
  wrong: {url: socks5h+tls://%[3]s, ca: %[4]q, server-name: other.test}
  any: {group: [plain, tls]}
rules: [{via: any}]
`, plain.Target(), unix.Path(), secure.Target(), ca))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "unix", "tls", "chain"} {
		dial, err := engine.Way(cfg, name)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dial(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer conn.Close()
		conn.Write([]byte{5, 1, 0})
		b := make([]byte, 2)
		if _, err := io.ReadFull(conn, b); err != nil || b[0] != 5 || b[1] != 0 {
			t.Errorf("%s: the greeting is answered by %x, %v", name, b, err)
		}
	}
	if len(unix.Requests()) != 1 { // of the chain
		t.Errorf("the server before the last was asked for %v", unix.Requests())
	}
	dial, err := engine.Way(cfg, "wrong")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t.Context()); err == nil || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("of another certificate: %v", err)
	}
	for _, name := range []string{"any", "nobody"} {
		if _, err := engine.Way(cfg, name); err == nil {
			t.Errorf("%s is taken for a server", name)
		}
	}
}
