package servers

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every server starts, takes a connection, and is gone at the end of its test;
// two of a kind do not disturb each other. Caddy and Stunnel are left to the tests that
// have a certificate for them, and Vsftpd to those that have files.
func TestStartAndStop(t *testing.T) {
	for _, kind := range []Kind{Dante, Microsocks, OpenSSH, Shadowsocks, Squid, Tinyproxy} {
		// The greeting of SOCKS5, or what no proxy does.
		ask, want := "\x05\x01\x00", "\x05\x00"
		if kind == Squid || kind == Tinyproxy {
			ask, want = "CONNECT 127.0.0.1:0 HTTP/1.1\r\nHost: 127.0.0.1:0\r\n\r\n", "HTTP/1."
		}
		t.Run(string(kind), func(t *testing.T) {
			var at [2]netip.AddrPort
			t.Run("running", func(t *testing.T) {
				for i := range at {
					at[i] = Start(t, kind, Options{})
				}
				for _, addr := range at {
					conn, err := net.Dial("tcp", addr.String())
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					io.WriteString(conn, ask)
					b := make([]byte, len(want))
					if _, err := io.ReadFull(conn, b); err != nil || string(b) != want {
						t.Errorf("%v answered %q, %v, want %q", addr, b, err, want)
					}
				}
			})
			for _, addr := range at {
				if !addr.IsValid() { // skipped, or failed to start
					continue
				}
				if conn, err := net.Dial("tcp", addr.String()); err == nil {
					conn.Close()
					t.Errorf("%v still takes connections after the test", addr)
				}
			}
		})
	}
}

// IPv6, credentials and more configuration reach the server.
func TestOptions(t *testing.T) {
	six := Start(t, Microsocks, Options{Listen: netip.IPv6Loopback(), User: "ann", Password: "secret"})
	if six.Addr() != netip.IPv6Loopback() {
		t.Errorf("listens at %v, want ::1", six)
	}
	conn, err := net.Dial("tcp", six.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "\x05\x01\x00")
	b := make([]byte, 2)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "\x05\xff" {
		t.Errorf("without credentials it answered %x, %v, want 05ff", b, err)
	}

	// A rule that refuses all, before the one that passes all.
	closed := Start(t, Dante, Options{Config: "socks block { from: 0/0 to: 0/0 }"})
	conn, err = net.Dial("tcp", closed.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "\x05\x01\x00")
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x09")
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "\x05\x02" {
		t.Errorf("a request answered %x, %v, want 0502", b, err)
	}
}
