package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// A running daemon is asked by commands and by curl, tells what it has open, and by
// whom it may be asked; at its end nobody answers.
func TestAdmin(t *testing.T) {
	lab.Need(t, "bash", "bash")
	lab.Need(t, "curl", "curl")
	lab.Need(t, "dig", "bind9-dnsutils")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	nobody.need(t)
	socket := filepath.Join(lab.Dir(t), "run", "t.sock")
	text := runConfig(danted) + fmt.Sprintf("admin: {socket: %s, metrics: [127.0.0.1:9108]}\n", socket)
	config := lab.File(t, "tunroute.yaml", text)
	d := startRun(t, l, config)
	ask := func(u user, args ...string) lab.Result {
		t.Helper()
		return run(t, l.Host, u.tunroute(args...)...)
	}

	sh := startShell(t, l.Lan, "bash")
	sh.Must(t, "exec 3<>/dev/tcp/%s/%d; echo hello >&3; read -t 10 said <&3", lab.Target4(viaServer), lab.EchoPort)
	sh.Must(t, "exec 4<>/dev/udp/%s/%d; echo hi >&4; timeout 10 head -c 3 <&4", lab.Target4(viaServer), lab.EchoPort)
	r := ask(rootUser, "flows", "--json", "-c", config)
	type flow struct {
		Net, Src, Dst, Out string
		Rule, Up, Down     int
	}
	var flows []flow
	if err := json.Unmarshal([]byte(r.Stdout), &flows); err != nil {
		t.Fatalf("status %d, %v: %s%s", r.Status, err, r.Stdout, r.Stderr)
	}
	target := fmt.Sprintf("%s:%d", lab.Target4(viaServer), lab.EchoPort)
	for _, want := range []flow{{"tcp", lab.Lan4.String(), target, "danted", 3, 6, 6}, {"udp", lab.Lan4.String(), target, "danted", 3, 3, 3}} {
		if !slices.ContainsFunc(flows, func(f flow) bool {
			f.Src, _, _ = strings.Cut(f.Src, ":")
			return f == want
		}) {
			t.Errorf("no flow as %+v in %s", want, r.Stdout)
		}
	}
	r = ask(rootUser, "status", "--socket", socket)
	for _, want := range []string{"\nconfig", config + "\n", "\nopen     1 tcp, ", "\ndevice   tunroute0\n"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("status has no %q:\n%s%s", want, r.Stdout, r.Stderr)
		}
	}
	fake := strings.Fields(must(t, l.Host, "dig", "+short", lab.SecretName))[0]
	if out := ask(rootUser, "dns", "-c", config, lab.SecretName).Stdout; !strings.Contains(out, " A "+fake+"\n") ||
		!strings.Contains(out, "a fake address of the name's own\n") || !strings.Contains(out, "rule 3 (line 7): via danted\n") {
		t.Errorf("of a name whose address is %s tunroute dns says:\n%s", fake, out)
	}
	for _, of := range []string{fake, lab.SecretName} {
		if out := ask(rootUser, "leases", "-c", config, of).Stdout; !strings.Contains(out, "\n"+lab.SecretName+" ") || !strings.Contains(out, " "+fake+" ") {
			t.Errorf("of %s tunroute leases says:\n%s", of, out)
		}
	}
	if r := ask(rootUser, "leases", "-c", config, "--drop", fake); r.Stdout != "dropped "+lab.SecretName+"\n" {
		t.Errorf("leases --drop: status %d, %s%s", r.Status, r.Stdout, r.Stderr)
	}
	if said, _ := connect(t, sh, fake, lab.WebPort); !strings.Contains(said, "connect: "+unreachable) {
		t.Errorf("to the address of a lease that was dropped: %s", said)
	}
	if again := strings.Fields(must(t, l.Host, "dig", "+short", lab.SecretName)); !slices.Equal(again, []string{fake}) {
		t.Errorf("asked for again, the name has %s, want %s", again, fake)
	}
	if out := must(t, l.Host, "curl", "-s", "--unix-socket", socket, "http://tunroute/v1/status"); !strings.Contains(out, `"flows":1,`) {
		t.Errorf("curl gets %s", out)
	}
	for _, curl := range [][]string{{"http://127.0.0.1:9108/metrics"}, {"--unix-socket", socket, "http://tunroute/metrics"}} {
		if out := must(t, l.Host, append([]string{"curl", "-s"}, curl...)...); !strings.Contains(out, "\ntunroute_router_flows 1\n") {
			t.Errorf("curl %v gets %s", curl, out)
		}
	}
	if out := must(t, l.Host, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9108/v1/status"); out != "404" {
		t.Errorf("the port of the metrics answers %s to others than Prometheus", out)
	}

	logged := len(d.Log())
	if r := ask(rootUser, "reload", "-c", config); r.Status != 0 {
		t.Errorf("reload: status %d, %s", r.Status, r.Stderr)
	}
	d.AwaitLog(t, logged, "msg=reloaded")
	if err := os.WriteFile(config, []byte(text+"tun: {mtu: 1400}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := ask(rootUser, "reload", "-c", config); r.Status != 1 || !strings.Contains(r.Stderr, "the config stays as it was: tun.mtu has changed") {
		t.Errorf("reload of what takes a start: status %d, %s", r.Status, r.Stderr)
	}
	if r := ask(nobody, "status", "--socket", socket); r.Status != 1 || !strings.Contains(r.Stderr, "is for the user that the daemon runs as, and for root") {
		t.Errorf("another user is told: status %d, %s%s", r.Status, r.Stdout, r.Stderr)
	}
	stopRun(t, d)
	if r := ask(rootUser, "status", "--socket", socket); r.Status != 1 || !strings.Contains(r.Stderr, "no daemon answers at "+socket) {
		t.Errorf("after the end: status %d, %s", r.Status, r.Stderr)
	}
}
