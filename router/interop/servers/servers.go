package servers

import (
	"embed"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

//go:embed server.sh caddy dante microsocks openssh shadowsocks squid stunnel tinyproxy vsftpd
var scripts embed.FS

// Kind is a server.
type Kind string

// The servers.
const (
	Caddy       Kind = "caddy"       // no proxy: the web, by HTTP/3 too
	Dante       Kind = "dante"       // SOCKS4, SOCKS5, UDP, BIND
	Microsocks  Kind = "microsocks"  // SOCKS5, user and password; nothing else
	OpenSSH     Kind = "openssh"     // ssh -D: SOCKS4, 4a, 5
	Shadowsocks Kind = "shadowsocks" // ss-local: SOCKS5, UDP; success before it knows
	Squid       Kind = "squid"       // HTTP CONNECT
	Stunnel     Kind = "stunnel"     // TLS in front of another server
	Tinyproxy   Kind = "tinyproxy"   // HTTP CONNECT, user and password
	Vsftpd      Kind = "vsftpd"      // no proxy: FTP, active and passive
)

// programs returns the programs that a server needs and the Debian packages that
// have them.
func (k Kind) programs() map[string]string {
	switch k {
	case Caddy:
		return map[string]string{"caddy": "caddy"}
	case Dante:
		return map[string]string{"danted": "dante-server"}
	case Microsocks:
		return map[string]string{"microsocks": "microsocks"}
	case OpenSSH:
		return map[string]string{"sshd": "openssh-server", "ssh": "openssh-client"}
	case Shadowsocks:
		return map[string]string{"ss-local": "shadowsocks-libev", "ss-server": "shadowsocks-libev"}
	case Squid:
		return map[string]string{"squid": "squid"}
	case Stunnel:
		return map[string]string{"stunnel4": "stunnel4"}
	case Tinyproxy:
		return map[string]string{"tinyproxy": "tinyproxy-bin"}
	case Vsftpd:
		return map[string]string{"vsftpd": "vsftpd"}
	}
	return nil
}

// Options say how a server runs. The zero value is one for everybody on the
// loopback interface.
type Options struct {
	Listen   netip.Addr   // where it listens; the zero Addr is 127.0.0.1
	Port     uint16       // 0 is a free one
	External []netip.Addr // what its own connections come from; Dante takes one of each family, Microsocks and Tinyproxy one, the others none

	// What clients must have. Dante asks the system for the password of
	// the user; OpenSSH, Shadowsocks, Squid and Stunnel know no users.
	User, Password string

	// Config is more configuration: for Dante settings and rules of its
	// file, for Microsocks options of the command, for OpenSSH lines of
	// sshd_config, for Shadowsocks options of ss-local, for the others lines of their files; for Stunnel it has to
	// say cert, key and connect, for Vsftpd anon_root, for Caddy tls and respond.
	Config string

	// Within stands before the command, to run the server elsewhere:
	// {"ip", "netns", "exec", "d1"}.
	Within []string
}

// Start starts a server and returns where it listens. It stops at the end of the
// test, whose log gets the server's own if the test fails.
//
// Where the server is not installed the test is skipped and says what to
// install; with CI=true in the environment it fails.
func Start(t testing.TB, kind Kind, o Options) netip.AddrPort {
	t.Helper()
	Need(t, kind)
	scriptDir, dir := t.TempDir(), t.TempDir()
	for _, name := range []string{"server.sh", string(kind)} {
		text, err := scripts.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(scriptDir, name), text, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(action string) string {
		t.Helper()
		args := append(slices.Clone(o.Within), filepath.Join(scriptDir, string(kind)), action)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), o.environ(dir)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", kind, action, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() {
		run("stop")
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("log of %s:\n%s", kind, text)
		}
	})
	at := run("start")
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		t.Fatalf("%s start printed %q: %v", kind, at, err)
	}
	return addr
}

// environ is what server.sh reads.
func (o Options) environ(dir string) []string {
	env := []string{
		"SERVER_DIR=" + dir,
		"SERVER_USER=" + o.User,
		"SERVER_PASSWORD=" + o.Password,
		"SERVER_CONFIG=" + o.Config,
	}
	if o.Listen.IsValid() {
		env = append(env, "SERVER_LISTEN="+o.Listen.String())
	}
	if o.Port != 0 {
		env = append(env, "SERVER_PORT="+strconv.Itoa(int(o.Port)))
	}
	var external []string
	for _, a := range o.External {
		external = append(external, a.String())
	}
	return append(env, "SERVER_EXTERNAL="+strings.Join(external, " "))
}

// Need skips or fails the test if a server is not installed, as [Start] does.
func Need(t testing.TB, kind Kind) {
	t.Helper()
	if kind.programs() == nil {
		t.Fatalf("no server %q", kind)
	}
	for program, debian := range kind.programs() {
		if installed(program) {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("no %s: install the Debian package %s", program, debian)
		}
		t.Skipf("no %s: install the Debian package %s", program, debian)
	}
}

// installed looks where server.sh looks: Debian keeps servers where the PATH of
// an ordinary user does not lead.
func installed(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return true
		}
	}
	return false
}
