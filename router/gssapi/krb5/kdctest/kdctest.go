package kdctest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Options say how a KDC runs.
type Options struct {
	Realm string // else TEST.REALM

	// Listen is where it listens; the zero AddrPort is a free port of 127.0.0.1.
	Listen netip.AddrPort
	// Within stands before its command, and those of its administration, to run them
	// elsewhere.
	Within []string
	// Clock is how far ahead of the true one its clock is. It needs faketime.
	Clock time.Duration

	// Config is more text for krb5.conf.
	Config string
}

// KDC is a running KDC.
type KDC struct {
	Realm string
	Addr  netip.AddrPort
	Conf  string // the path of its krb5.conf, for clients and servers
	dir   string
	o     Options
}

// deadline of a program that takes a fraction of a second.
const deadline = time.Minute

// programs are what is needed, and the Debian packages that have it.
var programs = [][2]string{
	{"krb5kdc", "krb5-kdc"}, {"kdb5_util", "krb5-kdc"}, {"kadmin.local", "krb5-admin-server"}, {"kinit", "krb5-user"},
}

// Need skips or, where CI=true, fails the test if a program is not installed.
func Need(t testing.TB, program, debian string) string {
	t.Helper()
	for dir := range strings.SplitSeq(os.Getenv("PATH")+":/usr/sbin:/sbin", ":") {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	reason := fmt.Sprintf("no %s: install the Debian package %s", program, debian)
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
	return ""
}

// Start starts a KDC and returns when it listens. It stops at the end of the test, whose
// log gets the KDC's own if the test fails.
func Start(t testing.TB, o Options) *KDC {
	t.Helper()
	for _, p := range programs {
		Need(t, p[0], p[1])
	}
	if o.Realm == "" {
		o.Realm = "TEST.REALM"
	}
	// Not t.TempDir: its name has that of the test, and MIT's take a ":" for a mark.
	dir, err := os.MkdirTemp("", "kdc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // who is not root reads krb5.conf there
		t.Fatal(err)
	}
	k := &KDC{Realm: o.Realm, Addr: o.Listen, Conf: filepath.Join(dir, "krb5.conf"), dir: dir, o: o}
	if !k.Addr.IsValid() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		k.Addr = l.Addr().(*net.TCPAddr).AddrPort()
		l.Close()
	}
	k.write(t, "krb5.conf", fmt.Sprintf(`[libdefaults]
	default_realm = %[1]s
	dns_lookup_kdc = false
	dns_canonicalize_hostname = false
	rdns = false
	udp_preference_limit = 1
%[3]s
[realms]
	%[1]s = {
		kdc = %[2]s
	}
`, k.Realm, k.Addr, o.Config))
	k.write(t, "kdc.conf", fmt.Sprintf(`[kdcdefaults]
	kdc_ports = ""
	kdc_listen = %[2]s
	kdc_tcp_ports = ""
	kdc_tcp_listen = %[2]s
[realms]
	%[1]s = {
		database_name = %[3]s/principal
		key_stash_file = %[3]s/stash
		acl_file = %[3]s/acl
		max_life = 10h
		supported_enctypes = aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal
	}
[logging]
	kdc = STDERR
`, k.Realm, k.Addr, dir))
	k.run(t, "", "kdb5_util", "create", "-s", "-P", "master", "-r", k.Realm)
	k.serve(t)
	return k
}

func (k *KDC) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Env is the environment of programs that are to use the realm.
func (k *KDC) Env() []string {
	return []string{"KRB5_CONFIG=" + k.Conf, "KRB5_KDC_PROFILE=" + k.dir + "/kdc.conf", "KRB5RCACHENAME=none:"}
}

// Path returns the path of a file in the directory of the KDC.
func (k *KDC) Path(name string) string { return filepath.Join(k.dir, name) }

// command returns a command with the environment of the realm, and with another clock.
func (k *KDC) command(ctx context.Context, t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	line := append(slices.Clone(k.o.Within), Need(t, program, "krb5-user"))
	line = append(line, args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), k.Env()...)
	if k.o.Clock != 0 {
		// The program of the package would fork, and what it starts would outlive it.
		libs, _ := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
		if len(libs) == 0 {
			Need(t, "faketime", "faketime")
			t.Fatal("no libfaketime.so.1")
		}
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+libs[0], fmt.Sprintf("FAKETIME=%+ds", int(k.o.Clock.Seconds())))
	}
	cmd.WaitDelay = time.Second
	return cmd
}

// run runs a program to its end and returns what it prints.
func (k *KDC) run(t testing.TB, stdin, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := k.command(ctx, t, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// serve runs the KDC until the end of the test.
func (k *KDC) serve(t testing.TB) {
	t.Helper()
	cmd := k.command(context.Background(), t, "krb5kdc", "-n", "-r", k.Realm, "-P", k.Path("pid"))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	ready, ended := make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			if strings.Contains(lines.Text(), "commencing operation") {
				ready <- true
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("log of krb5kdc:\n%s", log.String())
		}
	})
	select {
	case <-ready:
	case <-ended:
		t.Fatalf("krb5kdc ended:\n%s", log.String())
	case <-time.After(deadline):
		t.Fatal("krb5kdc does not start")
	}
}

// Admin runs commands of kadmin.local, one a line, and returns what it prints.
func (k *KDC) Admin(t testing.TB, commands string) string {
	t.Helper()
	out := k.run(t, commands+"\n", "kadmin.local", "-r", k.Realm)
	for _, wrong := range []string{"kadmin.local: unknown", "Unknown request", "while "} {
		if strings.Contains(out, wrong) {
			t.Fatalf("kadmin.local: %s\n%s", commands, out)
		}
	}
	return out
}

// Add makes principals with random keys.
func (k *KDC) Add(t testing.TB, principals ...string) {
	t.Helper()
	var b strings.Builder
	for _, p := range principals {
		fmt.Fprintf(&b, "addprinc -randkey %s\n", p)
	}
	k.Admin(t, b.String())
}

// Keytab returns the path of a keytab with the keys that principals have now.
func (k *KDC) Keytab(t testing.TB, principals ...string) string {
	t.Helper()
	f, err := os.CreateTemp(k.dir, "*.keytab")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	os.Remove(f.Name()) // ktadd makes it
	k.Admin(t, fmt.Sprintf("ktadd -norandkey -k %s %s", f.Name(), strings.Join(principals, " ")))
	return f.Name()
}

// Login returns the path of a credential cache of a principal whose key the KDC has;
// args are more arguments for kinit.
func (k *KDC) Login(t testing.TB, principal string, args ...string) string {
	t.Helper()
	kt := k.Keytab(t, principal)
	cache := strings.TrimSuffix(kt, ".keytab") + ".ccache"
	k.run(t, "", "kinit", append(args, "-k", "-t", kt, "-c", cache, principal)...)
	return cache
}

// Command returns a program with the environment of the realm and a credential cache,
// if it is to have one.
func (k *KDC) Command(ccache string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), k.Env()...)
	if ccache != "" {
		cmd.Env = append(cmd.Env, "KRB5CCNAME="+ccache)
	}
	return cmd
}
