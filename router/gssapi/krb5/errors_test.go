package krb5

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tunroute/router/gssapi/krb5/kdctest"
)

// TestErrorsSayWhatToDo are the mistakes that people make, and the words they get.
func TestErrorsSayWhatToDo(t *testing.T) {
	kdc := kdctest.Start(t, kdctest.Options{})
	kdc.Add(t, "alice", "bob", "rcmd/host.test")
	alice := kdc.Login(t, "alice")
	elsewhere := kdctest.Start(t, kdctest.Options{Realm: "OTHER.REALM"})
	elsewhere.Add(t, "alice")
	stranger := elsewhere.Login(t, "alice")
	fast := kdctest.Start(t, kdctest.Options{Realm: "FAST.REALM", Clock: 20 * time.Minute})
	fast.Add(t, "alice", "rcmd/host.test")
	early := fast.Login(t, "alice")
	old := kdc.Keytab(t, "bob")
	kdc.Admin(t, "cpw -randkey bob\naddprinc -randkey +requires_preauth carol")
	carol := kdc.Keytab(t, "carol")
	kdc.Admin(t, "cpw -randkey carol")
	dead := kdc.Path("dead.conf")
	text, err := os.ReadFile(kdc.Conf)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`\tkdc = .*`).ReplaceAll(text, []byte("\tkdc = 127.0.0.1:1"))
	if err := os.WriteFile(dead, text, 0o644); err != nil {
		t.Fatal(err)
	}
	garbage := kdc.Path("garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name string
		o    ClientOptions
		spn  string
		want string
	}{
		{"no tickets", ClientOptions{CCache: "/nonexistent/cc"}, "rcmd",
			"no Kerberos tickets: /nonexistent/cc does not exist: run kinit as the user who runs this, or give it a keytab"},
		{"tickets that are no file", ClientOptions{CCache: "KCM:0"}, "rcmd",
			"KCM:0, and only files can be read here: use FILE:PATH, as in kinit -c FILE:PATH"},
		{"no ccache", ClientOptions{CCache: garbage}, "rcmd",
			"DIR/garbage has no Kerberos tickets in it that could be read: run kinit, or name another file"},
		{"expired", ClientOptions{CCache: kdc.Login(t, "alice", "-l", "3s")}, "rcmd",
			"the Kerberos ticket of alice@TEST.REALM in DIR/N.ccache expired at TIME: run kinit"},
		{"no such service", ClientOptions{CCache: alice}, "socks",
			"the KDC of TEST.REALM knows no socks/host.test@TEST.REALM: is the name of the server right? else kadmin: addprinc -randkey socks/host.test@TEST.REALM, and ktadd it into the keytab of the server"},
		{"a realm without a KDC", ClientOptions{CCache: stranger}, "rcmd",
			"DIR/krb5.conf names no KDC of the realm OTHER.REALM: is the realm right? else add kdc = HOST there, in [realms]"},
		{"a service of another realm", ClientOptions{CCache: alice}, "rcmd/host.test@OTHER.REALM",
			"the KDC of TEST.REALM knows no krbtgt/OTHER.REALM@TEST.REALM: is the name of the server right? else kadmin: addprinc -randkey krbtgt/OTHER.REALM@TEST.REALM, and ktadd it into the keytab of the server"},
		{"our clock is slow", ClientOptions{CCache: early, Config: fast.Conf}, "rcmd",
			"the KDC 127.0.0.1:PORT: our clock is 20m0s behind its clock, and Kerberos allows 5m0s: set them right (NTP)"},
		{"the KDC is down", ClientOptions{CCache: alice, Config: dead}, "rcmd",
			"no KDC of the realm TEST.REALM answers: KDC 127.0.0.1:PORT: dial tcp 127.0.0.1:PORT: connect: connection refused"},
		{"no krb5.conf", ClientOptions{CCache: alice, Config: "/nonexistent/krb5.conf"}, "rcmd",
			"stat /nonexistent/krb5.conf: no such file or directory: it has to name the KDC of the realm; KRB5_CONFIG says where else it is"},
		{"no keytab", ClientOptions{Keytab: "/nonexistent/kt"}, "rcmd",
			"the Kerberos keytab /nonexistent/kt: no such file or directory: write the path of a keytab that we may read"},
		{"a keytab that is none", ClientOptions{Keytab: garbage}, "rcmd",
			"DIR/garbage is no keytab"},
		{"a key that has changed", ClientOptions{Keytab: old}, "rcmd",
			"the KDC has another key of bob@TEST.REALM than DIR/N.keytab: get a new one by ktadd"},
		{"a key that has changed, which the KDC sees", ClientOptions{Keytab: carol}, "rcmd",
			"the KDC has another key of carol@TEST.REALM than DIR/N.keytab: get a new one by ktadd"},
		{"somebody else's keytab", ClientOptions{Keytab: old, Principal: "alice"}, "rcmd",
			"the keytab DIR/N.keytab has no AES key of alice@TEST.REALM: klist -k shows what it has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.o.Config == "" {
				c.o.Config = kdc.Conf
			}
			_, err := NewClient(c.o).Initiate(t.Context(), c.spn, "host.test")
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error()
			for _, r := range [][2]string{
				{regexp.QuoteMeta(filepath.Dir(kdc.Conf)), "DIR"}, {`DIR/\d+\.`, "DIR/N."},
				{`127\.0\.0\.1:\d+`, "127.0.0.1:PORT"}, {`expired at [\d: -]+\d`, "expired at TIME"},
				{`our clock is (19m5\d|20m\d)s`, "our clock is 20m0s"},
			} {
				got = regexp.MustCompile(r[0]).ReplaceAllString(got, r[1])
			}
			if got != c.want {
				t.Errorf("\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestServerErrors are those of the keytab of a server.
func TestServerErrors(t *testing.T) {
	r := newRealm(t, "HTTP/host")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\x05\x02"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    ServerOptions
		want string
	}{
		{ServerOptions{Keytab: "/nonexistent/kt"}, "the Kerberos keytab: stat /nonexistent/kt: no such file or directory"},
		{ServerOptions{Keytab: empty}, "EMPTY is no keytab"},
		{ServerOptions{Keytab: r.file, Service: "rcmd"}, "the Kerberos keytab KEYTAB has no AES key of rcmd: add one by kadmin: ktadd -k KEYTAB rcmd/HOST"},
	} {
		_, err := NewServer(c.o)
		got := strings.NewReplacer(empty, "EMPTY", r.file, "KEYTAB").Replace(fmt.Sprint(err))
		if got != c.want {
			t.Errorf("%s\nwant\n%s", got, c.want)
		}
	}
}

// TestTicketsFollowTheFile: kinit and kdestroy are felt by the next flow, and a ticket
// is asked for once.
func TestTicketsFollowTheFile(t *testing.T) {
	kdc := kdctest.Start(t, kdctest.Options{})
	kdc.Add(t, "alice", "bob", "rcmd/host.test")
	cache := filepath.Join(t.TempDir(), "cc")
	c := NewClient(ClientOptions{Config: kdc.Conf, CCache: cache})
	use := func(from string) *initiator {
		t.Helper()
		if from != "" {
			b, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(cache, b, 0o600)
			}
			if err == nil {
				err = os.Chtimes(cache, time.Time{}, time.Now().Add(time.Duration(len(from))*time.Second))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		g, err := c.Initiate(t.Context(), "rcmd", "HOST.test.")
		if err != nil {
			t.Fatal(err)
		}
		return g.(*initiator)
	}
	first := use(kdc.Login(t, "alice"))
	if again := use(""); again.ticket != first.ticket {
		t.Error("the ticket is asked for twice")
	}
	if second := use(kdc.Login(t, "bob")); second.ticket.client.PrincipalNameString() != "bob" {
		t.Errorf("after kinit bob we are %v", second.ticket.client)
	}
	os.Remove(cache)
	if _, err := c.Initiate(t.Context(), "rcmd", "host.test"); err == nil {
		t.Error("after kdestroy there are tickets")
	}
	// By a keytab, whose first principal it is.
	k := NewClient(ClientOptions{Config: kdc.Conf, Keytab: kdc.Keytab(t, "bob")})
	g, err := k.Initiate(t.Context(), "rcmd", "host.test")
	if err != nil {
		t.Fatal(err)
	}
	if got := g.(*initiator).ticket.client.PrincipalNameString(); got != "bob" {
		t.Errorf("by bob's keytab we are %s", got)
	}
}

// TestServerNoticesSkew: a client whose clock is wrong is told by how much.
func TestServerNoticesSkew(t *testing.T) {
	r := newRealm(t, "rcmd/host")
	i, err := newInitiator(r.ticket(t, "rcmd/host", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	i.clock = -20 * time.Minute
	request, _, err := i.Step(nil)
	if err != nil {
		t.Fatal(err)
	}
	// Time goes by between the two, which is what is told.
	about := func(err error) string {
		return regexp.MustCompile(`(19m5\d|20m\d+)s`).ReplaceAllString(fmt.Sprint(err), "20m0s")
	}
	reply, _, err := r.server(t, "rcmd").Accept().Step(request)
	if want := "the clock of alice@TEST.REALM differs from ours by -20m0s, and Kerberos allows 5m0s: set them right (NTP)"; about(err) != want {
		t.Errorf("the server says\n%v\nwant\n%s", err, want)
	}
	_, _, err = i.Step(reply)
	if want := "the server: our clock is 20m0s behind its clock, and Kerberos allows 5m0s: set them right (NTP)"; about(err) != want {
		t.Errorf("the client says\n%v\nwant\n%s", err, want)
	}
}
