package interop

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tunroute/router/gssapi/krb5/kdctest"
	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// proxyName is the host that the Kerberos service of the servers is of.
const proxyName = "proxy.test"

// startKDC starts a KDC on srv, which knows alice and the service of proxyName.
func startKDC(t *testing.T, l *lab.Lab) *kdctest.KDC {
	t.Helper()
	kdc := kdctest.Start(t, kdctest.Options{
		Listen: netip.MustParseAddrPort("10.77.0.1:88"),
		Within: l.Srv.Within(),
	})
	kdc.Add(t, "alice", "rcmd/"+proxyName)
	for _, e := range kdc.Env() { // danted and tunroute have it from here
		name, value, _ := strings.Cut(e, "=")
		t.Setenv(name, value)
	}
	return kdc
}

// startGSSDante starts a danted that takes tickets, at one protection in its words.
func startGSSDante(t *testing.T, l *lab.Lab, keytab, enctype, more string) string {
	t.Helper()
	o := dante
	gssapi := fmt.Sprintf("log: error\ngssapi.servicename: rcmd/%s\ngssapi.keytab: FILE:%s\ngssapi.enctype: %s\n", proxyName, keytab, enctype)
	o.Config += fmt.Sprintf("\nsocksmethod: gssapi\nclient pass {\nfrom: 0/0 to: 0/0\n%s%s\n}\nsocks pass {\nfrom: 0/0 to: 0/0\n%s}\n", gssapi, more, gssapi)
	return startServer(t, l, servers.Dante, o)
}

// gssExec returns the command line of exec through one server with GSSAPI; more are
// keys of the upstream.
func gssExec(t *testing.T, kdc *kdctest.KDC, server, more string, command ...string) []string {
	t.Helper()
	config := lab.File(t, "tunroute.yaml", fmt.Sprintf(`
upstreams:
  p: {url: "socks5h://%s", auth: gssapi, service: rcmd/%s, %s}
rules: [{via: p}]
`, server, proxyName, more))
	args := append([]string{"env"}, kdc.Env()...)
	args = append(args, rootUser.tunroute("exec", "-c", config, "--")...)
	return append(args, command...)
}

// needGSSDante skips the test where danted is built without GSSAPI. It does not fail where
// CI=true: Debian's is, so that this is for who builds Dante; a server of our own on MIT's
// library stands in for it.
func needGSSDante(t *testing.T) {
	t.Helper()
	servers.Need(t, servers.Dante)
	conf := lab.File(t, "danted.conf", "logoutput: stderr\ninternal: 127.0.0.1 port = 1080\nexternal: 127.0.0.1\nclientmethod: none\nsocksmethod: gssapi\n")
	out, _ := exec.Command("env", "PATH="+os.Getenv("PATH")+":/usr/sbin", "danted", "-V", "-f", conf).CombinedOutput()
	if strings.Contains(string(out), "GSSAPI library") {
		t.Skip("danted is built without GSSAPI")
	}
}

func TestGSSAPIThroughDante(t *testing.T) {
	lab.Need(t, "curl", "curl")
	needGSSDante(t)
	l := newLab(t)
	kdc := startKDC(t, l)
	keytab, cache := kdc.Keytab(t, "rcmd/"+proxyName), kdc.Login(t, "alice")
	for _, level := range []struct{ ours, dante, more, danteMore string }{
		{"none", "clear", "", ""},
		{"integrity", "integrity", "", ""},
		{"confidentiality", "confidentiality", "", ""},
		{"confidentiality", "confidentiality", ", compatibility: necgssapi", "clientcompatibility: necgssapi"},
	} {
		t.Run(level.ours+level.more, func(t *testing.T) {
			danted := startGSSDante(t, l, keytab, level.dante, level.danteMore)
			page := must(t, l.Host, gssExec(t, kdc, danted, "protection: "+level.ours+", ccache: "+cache+level.more,
				"curl", "-sS", "http://"+lab.SecretName+"/")...)
			if want := lab.Page(lab.SecretName, lab.Proxy4.String()); page != want && !strings.HasPrefix(page, "the page of") {
				t.Errorf("%q, want %q", page, want)
			}
		})
	}
}
