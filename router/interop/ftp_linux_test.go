package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// ftpSite is a vsftpd on srv, at all its addresses, with two files to be had.
type ftpSite struct {
	root string
	log  string            // of commands and replies
	sums map[string]string // of the files in pub
}

// The files.
const (
	bigFile   = "big" // 100 MiB
	smallFile = "small"
)

func startFTP(t *testing.T, l *lab.Lab) *ftpSite {
	t.Helper()
	lab.NeedRoot(t) // vsftpd changes to another user, and connects from port 20
	lab.Need(t, "lftp", "lftp")
	lab.Need(t, "tnftp", "tnftp")
	s := &ftpSite{root: lab.Dir(t), log: filepath.Join(lab.Dir(t), "log"), sums: make(map[string]string)}
	for dir, mode := range map[string]os.FileMode{"pub": 0o755, "upload": 0o777} {
		dir = filepath.Join(s.root, dir)
		if err := os.Mkdir(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int64{bigFile: 100 << 20, smallFile: 1 << 20} {
		if light() {
			size = min(size, 8<<20)
		}
		f, err := os.Create(filepath.Join(s.root, "pub", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(f, h), lab.Stream(21, size)); err != nil {
			t.Fatal(err)
		}
		s.sums[name] = hex.EncodeToString(h.Sum(nil))
	}
	servers.Start(t, servers.Vsftpd, servers.Options{
		Listen: netip.IPv6Unspecified(), Port: 21, Config: "anon_root=" + s.root + "\nvsftpd_log_file=" + s.log, Within: l.Srv.Within(),
	})
	return s
}

// ftpClients are the shell commands that fetch pub/$file from $host and put it back as
// upload/$name.
var ftpClients = map[string]string{
	"lftp": `lftp -c "set ftp:passive-mode off; set net:max-retries 1; set cmd:fail-exit yes
		open ftp://$host; get pub/$file; put -O upload $file -o $name; ls"`,
	"lftp sends ahead": `lftp -c "set ftp:passive-mode off; set ftp:sync-mode off; set net:max-retries 1; set cmd:fail-exit yes
		open ftp://$host; get pub/$file; put -O upload $file -o $name"`,
	"tnftp": `printf 'user anonymous a@b\nbinary\nget pub/%s %s\nput %s upload/%s\nquit\n' $file $file $file $name | tnftp -A -n -v $host`,
	"lftp, passive": `lftp -c "set net:max-retries 1; set cmd:fail-exit yes
		open ftp://$host; get pub/$file; put -O upload $file -o $name"`,
}

// transfer runs a client in a shell and compares what arrived at both ends.
func (s *ftpSite) transfer(t *testing.T, sh *lab.Shell, client, host, file string) {
	t.Helper()
	dir := lab.Dir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(dir)
	before, _ := os.ReadFile(s.log) // none before the first client
	out, status := sh.Run(t, "cd %s && export HOME=%s host=%s file=%s name=%s && { %s; } 2>&1 && sha256sum $file", dir, dir, host, file, name, ftpClients[client])
	if down, _, _ := strings.Cut(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:], " "); status != 0 || down != s.sums[file] {
		t.Fatalf("status %d, downloaded sha256 %s, want %s:\n%s", status, down, s.sums[file], out)
	}
	up, err := os.Open(filepath.Join(s.root, "upload", name))
	if err != nil {
		t.Fatalf("%v; the client printed\n%s", err, out)
	}
	defer up.Close()
	defer os.Remove(up.Name())
	h := sha256.New()
	if _, err := io.Copy(h, up); err != nil {
		t.Fatal(err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != s.sums[file] {
		t.Fatalf("uploaded sha256 %s, want %s; the client printed\n%s", sum, s.sums[file], out)
	}
	log, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	said := string(log[len(before):])
	active := strings.Count(said, `command successful. Consider using`)
	if passive := strings.Contains(client, "passive"); passive && active > 0 || !passive && active < 2 {
		t.Errorf("vsftpd took PORT or EPRT %d times from the client:\n%s", active, said)
	}
}

// ftpConfig sends all to an outbound, with the helper.
func ftpConfig(upstreams, via string) string {
	return fmt.Sprintf("upstreams: {%s}\nrules:\n  - {port: 21, via: %s, helper: ftp}\n  - {via: %s}\n", upstreams, via, via)
}

// Active FTP by clients that know nothing of it, directly and through BIND of
// danted and of our own server, by address and by name, over IPv4 and IPv6.
func TestActiveFTP(t *testing.T) {
	l := newLab(t)
	site := startFTP(t, l)
	danted := startServer(t, l, servers.Dante, dante)
	own := netip.AddrPortFrom(lab.Proxy4, 1080).String()
	server := startShell(t, l.Srv, rootUser.tunroute("run", "-c", lab.File(t, "tunroute.yaml",
		"tun: off\nlisten: {socks: "+own+"}\nrules: [{via: direct}]\n"))...)
	server.AwaitLog(t, 0, "msg=ready")
	hosts := []string{lab.Target4(1).String(), lab.Target6(1).String()}
	for _, tt := range []struct {
		way    string
		config string
		name   string
	}{
		{"direct", ftpConfig("", "direct"), lab.PublicName},
		{"danted", ftpConfig("d: socks5h://"+danted, "d"), lab.SecretName},
		{"own", ftpConfig("d: socks5h://"+own, "d"), lab.SecretName},
	} {
		config := lab.File(t, "tunroute.yaml", tt.config)
		t.Run("exec "+tt.way, func(t *testing.T) {
			sh := startShell(t, l.Host, rootUser.tunroute("exec", "-c", config, "--", "sh")...)
			for _, host := range hosts {
				for _, client := range []string{"lftp", "tnftp"} {
					t.Run(client+" "+host, func(t *testing.T) { site.transfer(t, sh, client, host, bigFile) })
				}
			}
			for client := range ftpClients {
				t.Run(client+" "+tt.name, func(t *testing.T) { site.transfer(t, sh, client, tt.name, smallFile) })
			}
		})
		t.Run("run "+tt.way, func(t *testing.T) {
			d := startRun(t, l, config)
			for where, n := range map[string]*lab.Node{"sidecar": l.Host, "gateway": l.Lan} {
				sh := startShell(t, n, "sh")
				for _, host := range append(hosts, tt.name) {
					t.Run(where+" "+host, func(t *testing.T) { site.transfer(t, sh, "lftp", host, smallFile) })
				}
			}
			stopRun(t, d)
		})
	}
	stopRun(t, server)
}
