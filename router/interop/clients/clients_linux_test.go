package clients

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tunroute/router/inbound/users"
	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// server is a tunroute on srv: for everybody at port 1080 of the lab's address for SOCKS
// servers and on a unix socket, and for a user with a password at port 1081.
type server struct {
	*lab.Lab
	log    *lab.Shell
	socket string
}

// The longest user and password that there can be (RFC 1929 §2).
var (
	user     = strings.Repeat("u", 255)
	password = strings.Repeat("p", 255)
)

func startServer(t *testing.T) *server {
	t.Helper()
	if err := lookAtSources(); err != nil {
		t.Fatal(err)
	}
	s := &server{Lab: lab.New(t)}
	dir := lab.Dir(t)
	s.socket = filepath.Join(dir, "socks")
	if err := os.WriteFile(filepath.Join(dir, "users"), fmt.Appendf(nil, "%s:%s\n", user, users.Hash(password)), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "tunroute.yaml")
	text := fmt.Sprintf(`
tun: off
admin: {socket: off}
listen:
  socks:
    - %[1]v
    - {at: "unix:%[2]s", name: path}
    - {at: "%[1]v:1081", name: guarded, users: users}
dns: {resolvers: 127.0.0.1}
rules: [{via: direct}]
`, lab.Proxy4, s.socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.log = lab.NewShell(t, s.Srv.Command(lab.Bin+"/tunroute", "run", "-c", config))
	s.log.AwaitLog(t, 0, "msg=ready")
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if strings.Contains(s.log.Log(), "DATA RACE") {
			t.Errorf("in tunroute:\n%s", s.log.Log())
		}
	})
	return s
}

// gets runs a program on host that has to print the page of a name, which came by way of
// the server: who has asked is srv, by the listener that is named.
func (s *server) gets(t *testing.T, listener, name string, args ...string) {
	t.Helper()
	skip := len(s.log.Log())
	r := s.Host.Run(t, args...)
	_, from, ok := strings.Cut(strings.TrimSpace(r.Stdout), "the page of "+name+" for ")
	from, _, _ = strings.Cut(from, "\n")
	if addr, err := netip.ParseAddr(strings.TrimSpace(from)); r.Status != 0 || !ok || err != nil || addr == lab.Host4 {
		t.Errorf("%s: status %d, %q, want the page through the server\n%s", strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
		return
	}
	// A client that comes through the server twice is told twice, in either order.
	t.Logf("%s", short(s.log.AwaitLog(t, skip, " in="+listener+" ")))
}

// short is a line without what is long in it.
func short(line string) string {
	return strings.NewReplacer(user, "uuu…", strings.Repeat("long.", 40), "long.long.…").Replace(line)
}

// longName is a name of 253 bytes, the most that there are (RFC 1035 §2.3.4), that only
// srv knows.
var longName = func() string {
	name := lab.SecretName
	for len(name)+2 <= 253 {
		label := min(63, 253-len(name)-1)
		if rest := 253 - len(name) - 1 - label; rest == 1 {
			label-- // one byte has no room for a dot and a label
		}
		name = strings.Repeat("l", label) + "." + name
	}
	return name
}()

// The cases of curl's own tests of SOCKS (its data/test700 and those that follow).
func TestCurl(t *testing.T) {
	lab.Need(t, "curl", "curl")
	s := startServer(t)
	const proxy, guarded = "192.0.2.10:1080", "192.0.2.10:1081"
	secret := "http://" + lab.SecretName + "/"
	public := "http://" + lab.PublicName + "/"
	curl := []string{"curl", "-sS", "-m", "60"}
	for _, c := range []struct {
		name     string
		listener string
		host     string
		args     []string
	}{
		{"SOCKS4", "socks", lab.PublicName, []string{"-4", "--socks4", proxy, public}},
		{"SOCKS4a", "socks", lab.SecretName, []string{"--socks4a", proxy, secret}},
		{"SOCKS5", "socks", lab.PublicName, []string{"-4", "--socks5", proxy, public}},
		{"SOCKS5 with the name", "socks", lab.SecretName, []string{"--socks5-hostname", proxy, secret}},
		{"an address", "socks", lab.Target4(2).String(), []string{"--socks5-hostname", proxy, "http://" + lab.Target4(2).String() + "/"}},
		{"the longest name", "socks", longName, []string{"--socks5-hostname", proxy, "http://" + longName + "/"}},
		{"the longest user and password", "guarded", lab.SecretName, []string{"--socks5-hostname", guarded, "--proxy-user", user + ":" + password, secret}},
		{"HTTP CONNECT", "socks", lab.SecretName, []string{"-p", "-x", "http://" + proxy, secret}},
		{"HTTP CONNECT with a password", "guarded", lab.SecretName, []string{"-p", "-x", "http://" + guarded, "--proxy-user", user + ":" + password, secret}},
		{"a unix socket", "path", lab.SecretName, []string{"-x", "socks5h://localhost" + s.socket, secret}},
		{"a proxy before a proxy", "guarded", lab.SecretName, []string{"--preproxy", "socks5h://" + proxy, "-p", "-x", "http://" + guarded, "--proxy-user", user + ":" + password, secret}},
	} {
		t.Run(c.name, func(t *testing.T) { s.gets(t, c.listener, c.host, append(curl, c.args...)...) })
	}
	t.Run("what fails", func(t *testing.T) {
		for _, c := range []struct {
			want string
			args []string
		}{
			{"(5)", []string{"--socks5-hostname", proxy, "http://" + lab.Target4(1).String() + ":9/"}}, // refused
			{"(4)", []string{"--socks5-hostname", proxy, "http://" + lab.NoName + "/"}},
			{"(4)", []string{"--socks5-hostname", proxy, "http://" + lab.NoHost4.String() + "/"}},
			{"(3)", []string{"--socks5-hostname", proxy, "http://" + lab.NoNet4.String() + "/"}},
			{"No authentication method was acceptable", []string{"--socks5-hostname", guarded, secret}},
			{"User was rejected", []string{"--socks5-hostname", guarded, "--proxy-user", "u:p", secret}},
		} {
			if r := s.Host.Run(t, append(curl, c.args...)...); r.Status != 97 || !strings.Contains(r.Stderr, c.want) {
				t.Errorf("curl %s: status %d, %s want status 97, %q", strings.Join(c.args, " "), r.Status, r.Stderr, c.want)
			}
		}
	})
	if n := s.DNS.Queries(t, lab.SecretName); n > 0 {
		t.Errorf("the DNS of the clients was asked %d times for the name that only the server knows", n)
	}
}

// Programs that are preloaded with a library, or start another one.
func TestWrappers(t *testing.T) {
	lab.Need(t, "curl", "curl")
	s := startServer(t)
	secret := "http://" + lab.SecretName + "/"
	t.Run("socksify", func(t *testing.T) {
		lab.Need(t, "socksify", "dante-client")
		route := "route {\n from: 0.0.0.0/0 to: %s via: 192.0.2.10 port = 1080\n proxyprotocol: socks_v5\n method: none\n}\n"
		file := lab.File(t, "socks.conf", "resolveprotocol: fake\n"+fmt.Sprintf(route, "0.0.0.0/0")+fmt.Sprintf(route, "."))
		s.gets(t, "socks", lab.SecretName, "env", "SOCKS_CONF="+file, "SOCKS_AUTOADD_LANROUTES=no", "socksify", "curl", "-sS", "-4", "-m", "60", secret)
	})
	t.Run("proxychains4", func(t *testing.T) {
		lab.Need(t, "proxychains4", "proxychains4")
		file := lab.File(t, "proxychains.conf", "strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\nsocks5 192.0.2.10 1080\n")
		s.gets(t, "socks", lab.SecretName, "proxychains4", "-f", file, "curl", "-sS", "-m", "60", secret)
	})
	if n := s.DNS.Queries(t, lab.SecretName); n > 0 {
		t.Errorf("the DNS of the clients was asked %d times for the name that only the server knows", n)
	}
}

// A browser, which knows a proxy for everything.
func TestChromium(t *testing.T) {
	lab.Need(t, "chromium", "chromium")
	s := startServer(t)
	dir := lab.Dir(t)
	s.gets(t, "socks", lab.SecretName, "env", "HOME="+dir, "timeout", "-s", "KILL", "150",
		"chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
		"--user-data-dir="+dir, "--proxy-server=socks5://192.0.2.10:1080", "--dump-dom", "http://"+lab.SecretName+"/")
	if n := s.DNS.Queries(t, lab.SecretName); n > 0 {
		t.Errorf("the DNS of the browser was asked %d times for the name that only the server knows", n)
	}
}

// Passive FTP, by EPSV and by PASV: the server is told a second connection.
func TestFTP(t *testing.T) {
	lab.NeedRoot(t) // vsftpd changes to another user
	lab.Need(t, "curl", "curl")
	s := startServer(t)
	root := lab.Dir(t)
	const size = 4 << 20
	file, err := os.Create(filepath.Join(root, "file"))
	if err == nil {
		_, err = io.Copy(file, lab.Stream(5, size))
	}
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	servers.Start(t, servers.Vsftpd, servers.Options{Within: s.Srv.Within(), Listen: lab.Target4(1), Port: 21, Config: "anon_root=" + root})
	for _, way := range [][]string{{"--ftp-pasv"}, {"--ftp-pasv", "--disable-epsv"}} {
		skip := len(s.log.Log())
		args := append([]string{"sh", "-c", `curl -sS -m 60 "$@" | sha256sum`, "curl", "--socks5-hostname", "192.0.2.10:1080", "ftp://" + lab.SecretName + "/file"}, way...)
		r := s.Host.Run(t, args...)
		if got, _, _ := strings.Cut(r.Stdout, " "); r.Status != 0 || got != lab.Sum(5, size) {
			t.Errorf("%v: status %d, %q, %s", way, r.Status, r.Stdout, r.Stderr)
			continue
		}
		s.log.AwaitLog(t, skip, "dst="+lab.SecretName+":21 ")
		t.Logf("%v: %d bytes, %s", way, size, s.log.AwaitLog(t, skip, fmt.Sprintf(" down=%d ", size)))
	}
}

// OpenSSH, whose ProxyCommand speaks SOCKS.
func TestSSH(t *testing.T) {
	lab.NeedRoot(t) // sshd does
	lab.Need(t, "sshd", "openssh-server")
	lab.Need(t, "ssh", "openssh-client")
	lab.Need(t, "nc", "netcat-openbsd")
	s := startServer(t)
	dir := lab.Dir(t)
	for _, key := range []string{"host", "client"} {
		if r := s.Host.Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)); r.Status != 0 {
			t.Fatal(r.Stderr)
		}
	}
	config := lab.File(t, "sshd_config", fmt.Sprintf("ListenAddress %v:22\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/client.pub\n"+
		"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n", lab.Target4(1), dir))
	if r := s.Srv.Run(t, "mkdir", "-p", "/run/sshd"); r.Status != 0 {
		t.Fatal(r.Stderr)
	}
	sshd := lab.NewShell(t, s.Srv.Command("/usr/sbin/sshd", "-D", "-e", "-f", config))
	sshd.AwaitLog(t, 0, "Server listening")
	skip := len(s.log.Log())
	r := s.Host.Run(t, "ssh", "-F", "none", "-i", filepath.Join(dir, "client"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ProxyCommand=nc -X 5 -x 192.0.2.10:1080 %h %p",
		"root@"+lab.SecretName, "echo hello from $SSH_CONNECTION")
	if r.Status != 0 || !strings.HasPrefix(r.Stdout, "hello from ") || strings.HasPrefix(r.Stdout, "hello from "+lab.Host4.String()) {
		t.Errorf("status %d, %q, want a hello from srv\n%s", r.Status, r.Stdout, r.Stderr)
	}
	t.Logf("%s%s", r.Stdout, s.log.AwaitLog(t, skip, "dst="+lab.SecretName+":22 "))
}

// UDP by an association: of tunroute, whose exec has the server as its proxy, and of a
// client that is not ours.
func TestUDP(t *testing.T) {
	lab.Need(t, "bash", "bash")
	s := startServer(t)
	echo := fmt.Sprintf("exec 3<>/dev/udp/%v/%d; echo hello >&3; timeout 60 head -n 1 <&3", lab.Target4(1), lab.EchoPort)
	t.Run("tunroute", func(t *testing.T) {
		s.echoes(t, lab.Bin+"/tunroute", "exec", "--proxy", "socks5h://192.0.2.10", "--", "bash", "-c", echo)
	})
	t.Run("socksify", func(t *testing.T) {
		lab.Need(t, "socksify", "dante-client")
		file := lab.File(t, "socks.conf", "route {\n from: 0.0.0.0/0 to: 0.0.0.0/0 via: 192.0.2.10 port = 1080\n proxyprotocol: socks_v5\n method: none\n}\n")
		lab.Need(t, "nc", "netcat-openbsd")
		s.echoes(t, "env", "SOCKS_CONF="+file, "SOCKS_AUTOADD_LANROUTES=no", "sh", "-c",
			fmt.Sprintf("echo hello | timeout 60 socksify nc -u -W 1 %v %d", lab.Target4(1), lab.EchoPort))
	})
}

// echoes runs a program on host that has to print what it has sent by UDP, by way of the
// server.
func (s *server) echoes(t *testing.T, args ...string) {
	t.Helper()
	skip := len(s.log.Log())
	if r := s.Host.Run(t, args...); r.Status != 0 || r.Stdout != "hello\n" {
		t.Errorf("%s: status %d, %q, want hello\n%s", strings.Join(args, " "), r.Status, r.Stdout, r.Stderr)
		return
	}
	t.Logf("%s", s.log.AwaitLog(t, skip, "msg=flow net=udp src="+lab.Host4.String()))
}
