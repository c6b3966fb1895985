package netns

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"tunroute/tun/nstest"
)

func TestResolvContent(t *testing.T) {
	got := string(resolvContent(Config{
		Nameservers: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd00::2")},
		Search:      []string{"corp.example", "example"},
	}))
	want := "# made by tunroute for this namespace only\nnameserver 198.18.0.2\nnameserver fd00::2\nsearch corp.example example\n"
	if got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
}

func TestNsswitchContent(t *testing.T) {
	for _, tt := range []struct{ name, host, want string }{
		{"debian", "passwd: files systemd\nhosts: files dns\n# end\n", "passwd: files systemd\n# end\nhosts: files dns\n"},
		{"fedora", "hosts:      files myhostname resolve [!UNAVAIL=return] dns\nnetworks: files\n", "networks: files\nhosts: files myhostname dns\n"},
		{"nscd, mdns, sss", "hosts: files mdns4_minimal [NOTFOUND=return] sss dns\n", "hosts: files dns\n"},
		{"no newline at the end", "hosts: resolve\npasswd: files", "passwd: files\nhosts: files dns\n"},
		{"spaces, twice", " hosts : resolve\nhosts:dns\n", "hosts: files dns\n"},
		{"only in a comment", "# hosts: myhostname\n#hosts: x\n", "# hosts: myhostname\n#hosts: x\nhosts: files dns\n"},
		{"comment behind", "hosts: dns # not myhostname\n", "hosts: files dns\n"},
		{"other words with hosts", "ethers: files\nmyhosts: x\n", "ethers: files\nmyhosts: x\nhosts: files dns\n"},
		{"empty", "", "hosts: files dns\n"},
	} {
		if got := string(nsswitchContent([]byte(tt.host))); got != tt.want {
			t.Errorf("%s: %q becomes %q, want %q", tt.name, tt.host, got, tt.want)
		}
	}
}

func FuzzNsswitchContent(f *testing.F) {
	f.Add([]byte("passwd: files\nhosts: files resolve dns\n"))
	f.Add([]byte("hosts:\n\n:hosts"))
	f.Fuzz(func(t *testing.T, host []byte) {
		once := nsswitchContent(host)
		if twice := nsswitchContent(once); string(twice) != string(once) {
			t.Errorf("%q becomes %q and then %q", host, once, twice)
		}
		if n := strings.Count("\n"+string(once), "\nhosts: files "); n < 1 {
			t.Errorf("%q becomes %q", host, once)
		}
	})
}

// etc puts another /etc and /run in the place of those of the host, for this
// test: files with content, or links where it begins with "->".
func etc(t *testing.T, files map[string]string) {
	t.Helper()
	nstest.NeedTUN(t)
	for _, dir := range []string{"/etc", "/run"} {
		if err := unix.Mount("none", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever the host has, inside names are asked at our name server and nowhere
// else, and the host keeps what it has.
func TestNamesAreAskedInside(t *testing.T) {
	const (
		resolved = "nameserver 127.0.0.53\nsearch corp.example\noptions ndots:5\n"
		debian   = "passwd: files\nhosts: files resolve dns\n"
		stub     = "/run/systemd/resolve/stub-resolv.conf"
	)
	for name, files := range map[string]map[string]string{
		"plain files":         {resolvConf: resolved, nsswitch: debian},
		"systemd-resolved":    {resolvConf: "->../run/systemd/resolve/stub-resolv.conf", stub: resolved, nsswitch: debian, "/run/systemd/resolve/io.systemd.Resolve": "socket"},
		"link to nowhere":     {resolvConf: "->/run/resolvconf/resolv.conf", nsswitch: debian},
		"no nsswitch.conf":    {resolvConf: resolved},
		"nsswitch.conf links": {resolvConf: resolved, nsswitch: "->/etc/authselect/nsswitch.conf", "/etc/authselect/nsswitch.conf": debian},
		"nscd":                {resolvConf: resolved, nsswitch: debian, "/run/nscd/socket": "socket"},
	} {
		t.Run(name, func(t *testing.T) {
			asEverybody(t, func(t *testing.T, u user) {
				etc(t, files)
				before := host(t)
				script := `cat /etc/resolv.conf; cat /etc/nsswitch.conf 2>/dev/null | grep hosts; ls -A /run/nscd /run/systemd/resolve 2>/dev/null | grep -v :; getent ahosts known.test`
				want := "# made by tunroute for this namespace only\nnameserver 198.18.0.2\nnameserver fd00:74::2\n"
				if files[nsswitch] != "" {
					want += "hosts: files dns\n"
				}
				out := u.must(t, "sh", "-c", script)
				got, isOurs := strings.CutPrefix(strings.ReplaceAll(out, "\n\n", "\n"), want)
				if !isOurs {
					t.Errorf("inside there is\n%s\nwant\n%s", out, want)
				}
				for line := range strings.Lines(strings.TrimPrefix(got, "\n")) {
					if a := strings.Fields(line); a[0] != "198.18.5.5" && a[0] != "fd00:74::5" {
						t.Errorf("%q is not of our name server, or not hidden", line)
					}
				}
				if !strings.Contains(got, "198.18.5.5") || !strings.Contains(got, "fd00:74::5") {
					t.Errorf("known.test has the addresses %q", got)
				}
				if diff := cmp.Diff(before, host(t)); diff != "" {
					t.Errorf("on the host (-before +after):\n%s", diff)
				}
			})
		})
	}
}

func TestMissingResolvConfIsAnObstacle(t *testing.T) {
	asEverybody(t, func(t *testing.T, u user) {
		etc(t, map[string]string{nsswitch: "hosts: dns\n"})
		_, errs, status := u.run(t, "true")
		if status != exitFailed || !strings.Contains(errs, "touch /etc/resolv.conf") || strings.Count(errs, "\n") != 1 {
			t.Errorf("status %d, %q", status, errs)
		}
		if _, err := os.Lstat(resolvConf); err == nil {
			t.Error("the host has a resolv.conf now")
		}
	})
}

// What is mounted on the host later appears inside, and what is mounted inside
// does not appear on the host.
func TestMountsComeInAndDoNotGoOut(t *testing.T) {
	nstest.NeedTUN(t)
	dir := publicDir(t)
	if err := unix.Mount("none", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	later := filepath.Join(dir, "later")
	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	p := launch(t, user{}.command(t, "sh", "-c", "echo ready; read x; ls "+later+"; mount -t tmpfs none "+dir+" && echo mounted; read x"))
	p.line(t)
	if err := unix.Mount("none", later, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(later, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.in.Write([]byte("\n"))
	if got := p.line(t); got != "file" {
		t.Errorf("inside there is %q, want the file that was mounted later", got)
	}
	if got := p.line(t); got != "mounted" {
		t.Errorf("inside: %q", got)
	}
	if _, err := os.Stat(later); err != nil {
		t.Error("what is mounted inside covers a directory of the host:", err)
	}
	p.in.Close()
	p.rest(t)
}
