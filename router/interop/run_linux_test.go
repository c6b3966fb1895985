package interop

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// Targets of the rules of runConfig.
const (
	viaServer   = 1 + iota // and everything that no rule names
	viaDirect              // from host itself
	viaNobody              // rejected
	viaServerTo            // as viaServer; reloading changes it
)

// runConfig is a config for run, and exec would take it too.
func runConfig(server string, more ...string) string {
	return fmt.Sprintf(`
upstreams:
  danted: socks5h://%s
rules:
  - {to: [%s, %s], via: direct}
  - {to: [%s, %s], via: reject}
`, server, lab.Target4(viaDirect), lab.Target6(viaDirect), lab.Target4(viaNobody), lab.Target6(viaNobody)) +
		strings.Join(more, "") + "  - {via: danted}\n"
}

// startRun starts tunroute run on host and waits until it is ready.
func startRun(t *testing.T, l *lab.Lab, config string) *lab.Shell {
	t.Helper()
	d := startShell(t, l.Host, rootUser.tunroute("run", "-c", config)...)
	d.AwaitLog(t, 0, "msg=ready")
	return d
}

// stopRun ends it in order.
func stopRun(t *testing.T, d *lab.Shell) {
	t.Helper()
	if err := d.Process().Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := d.Wait(t); status != 0 {
		t.Errorf("status %d after SIGTERM, want 0", status)
	}
}

// routed tests what a client gets that is routed by runConfig.
func routed(t *testing.T, l *lab.Lab, client *lab.Node) {
	sh := startShell(t, client, "sh")
	targets := func(i int) []netip.Addr { return []netip.Addr{lab.Target4(i), lab.Target6(i)} }
	page := func(family, host string) string { return sh.Must(t, "curl -s %s http://%s/", family, host) }
	literal := func(a netip.Addr) string { return strings.TrimSuffix(netip.AddrPortFrom(a, 1).String(), ":1") }

	t.Run("name that only the server knows", func(t *testing.T) {
		for _, family := range []string{"-4", "-6"} {
			got := page(family, lab.SecretName)
			if !slices.Contains([]string{lab.Page(lab.SecretName, lab.Proxy4.String()), lab.Page(lab.SecretName, lab.Proxy6.String())}, got) {
				t.Errorf("curl %s: %q", family, got)
			}
		}
		if n := l.DNS.Queries(t, lab.SecretName); n != 0 {
			t.Errorf("the DNS of the machine was asked %d times", n)
		}
	})
	t.Run("address through the server", func(t *testing.T) {
		for i, from := range []netip.Addr{lab.Proxy4, lab.Proxy6} {
			a := literal(targets(viaServer)[i])
			if got, want := page("", a), lab.Page(a, from.String()); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
	t.Run("address directly", func(t *testing.T) {
		for i, from := range []netip.Addr{lab.Host4, lab.Host6} {
			a := literal(targets(viaDirect)[i])
			if got, want := page("", a), lab.Page(a, from.String()); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
	t.Run("refusals", func(t *testing.T) {
		for i, rejected := range []string{unreachable, prohibited} {
			for _, tt := range []struct {
				target netip.Addr
				port   int
				want   string
			}{
				{targets(viaServer)[i], lab.ClosedPort, refused},
				{targets(viaDirect)[i], lab.ClosedPort, refused},
				{targets(viaNobody)[i], lab.WebPort, rejected},
			} {
				said, took := connect(t, sh, tt.target.String(), tt.port)
				if !strings.Contains(said, "connect: "+tt.want+"\n") {
					t.Errorf("%v port %d: %q after %v, want %q", tt.target, tt.port, said, took, tt.want)
				}
			}
		}
	})
	t.Run("half-close", func(t *testing.T) {
		for _, a := range slices.Concat(targets(viaServer), targets(viaDirect)) {
			if out := sh.Must(t, "printf 'twelve bytes' | nc -N %s %d", a, lab.AnswerPort); out != "12 bytes\n" {
				t.Errorf("%v: nc -N printed %q", a, out)
			}
		}
	})
	t.Run("streams", func(t *testing.T) {
		const size = 4 << 20
		want := sumsOf(1, size)
		for _, a := range slices.Concat(targets(viaServer), targets(viaDirect)) {
			checkStream(t, l, 1, want, sh.Must(t, "%s", stream(a, 1, size)))
		}
	})
	t.Run("UDP", func(t *testing.T) {
		for _, a := range slices.Concat(targets(viaServer), targets(viaDirect)) {
			to := netip.AddrPortFrom(a, lab.EchoPort)
			for _, size := range []string{"1", "1400", "8192"} { // the last in fragments
				if r := udp(t, sh, size, to.String()); r.From[0] != to {
					t.Errorf("%s bytes to %v: answered by %v, %s", size, to, r.From[0], r.Err[0])
				}
			}
		}
	})
	t.Run("DNS and ping", func(t *testing.T) {
		for _, server := range []string{"", "@" + lab.Target4(5).String(), "@" + lab.Target6(5).String()} {
			for _, transport := range []string{"+notcp", "+tcp"} {
				out := sh.Must(t, "dig +short %s %s %s", transport, server, lab.SecretName)
				if a := parseAddr(t, out); !fake4.Contains(a) {
					t.Errorf("dig %s %s: %s", transport, server, out)
				}
			}
		}
		sh.Must(t, "ping -c 1 -W 60 %s", lab.SecretName)
		for _, a := range targets(viaDirect) {
			sh.Must(t, "ping -c 1 -W 60 %s", a)
		}
		for _, a := range targets(viaServer) {
			if out, status := sh.Run(t, "ping -c 1 -W 5 %s", a); status != 1 {
				t.Errorf("ping %v: status %d, want 1: %s", a, status, out)
			}
		}
	})
}

// leaks are packets which run should have taken: all but its own to the server,
// the direct target and the DNS.
func leaks(t *testing.T, w *lab.Watch) []lab.Packet {
	t.Helper()
	return w.Arrived(t, func(p lab.Packet) bool {
		switch {
		case p.Src.Addr() == lab.Lan4 || p.Src.Addr() == lab.Lan6:
			return true
		case p.Dst.Addr() == lab.Target4(viaDirect), p.Dst.Addr() == lab.Target6(viaDirect), p.Dst.Port() == 53:
			return false
		}
		return isTarget(p.Dst.Addr())
	})
}

// needClients is what routed needs.
func needClients(t *testing.T) {
	t.Helper()
	lab.Need(t, "bash", "bash")
	lab.Need(t, "curl", "curl")
	lab.Need(t, "dig", "bind9-dnsutils")
	lab.Need(t, "nc", "netcat-openbsd")
	lab.Need(t, "ping", "iputils-ping")
}

// A host is routed, alone as a container beside others, or a network behind it,
// and afterwards the host is as it was.
func TestRun(t *testing.T) {
	needClients(t)
	l := newLab(t)
	w := l.Watch(t)
	before := l.Host.State(t)
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict %v", strict), func(t *testing.T) {
			danted := startServer(t, l, servers.Dante, dante)
			config := lab.File(t, "tunroute.yaml", runConfig(danted)+fmt.Sprintf("tun: {strict: %v}\n", strict))
			d := startRun(t, l, config)
			t.Run("sidecar", func(t *testing.T) { routed(t, l, l.Host) })
			t.Run("gateway", func(t *testing.T) { routed(t, l, l.Lan) })
			for _, p := range leaks(t, w) {
				t.Errorf("past tunroute went %v", p)
			}
			stopRun(t, d)
			if after := l.Host.State(t); after != before {
				t.Errorf("after run:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// While a server's name has no address run waits for one, and lets nothing past: after a
// boot, or at a gateway whose line is down.
func TestRunWaitsForNames(t *testing.T) {
	lab.Need(t, "curl", "curl")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	resolver := lab.Target4(7) // where there is none yet
	const name = "proxy.test"
	text := runConfig(strings.Replace(danted, lab.Proxy4.String(), name, 1), "") + fmt.Sprintf("dns: {resolvers: [%s]}\n", resolver)
	config := lab.File(t, "tunroute.yaml", text)
	before := l.Host.State(t)
	w := l.Watch(t)
	start := func() *lab.Shell {
		d := startShell(t, l.Host, rootUser.tunroute("run", "-c", config)...)
		d.AwaitLog(t, 0, "a server has no address yet")
		return d
	}

	d := start()
	for _, n := range []*lab.Node{l.Host, l.Lan} {
		for _, to := range []netip.Addr{lab.Target4(viaServer), lab.Target4(viaDirect)} {
			if r := run(t, n, "curl", "-s", "-m", "1", "http://"+to.String()+"/"); r.Status == 0 {
				t.Errorf("%s gets to %v: %s", n.Name, to, r.Stdout)
			}
		}
	}
	for _, p := range w.Arrived(t, func(p lab.Packet) bool { return isTarget(p.Dst.Addr()) && p.Dst.Port() != 53 }) {
		t.Errorf("past tunroute went %v", p)
	}
	stopRun(t, d)
	if after := l.Host.State(t); after != before {
		t.Errorf("after run:\n%s\nbefore:\n%s", after, before)
	}

	d = start()
	lab.NewDNS(t, l.Srv, []netip.Addr{resolver}, map[string][]netip.Addr{name: {lab.Proxy4}})
	d.AwaitLog(t, 0, "msg=ready")
	to := lab.Target4(viaServer).String()
	if got, want := must(t, l.Lan, "curl", "-s", "http://"+to+"/"), lab.Page(to, lab.Proxy4.String()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	stopRun(t, d)
}

// Beside a resolver on this host that is the stub of systemd-resolved, those that it asks
// are asked: its own questions come here.
func TestRunBesideResolved(t *testing.T) {
	needClients(t)
	lab.Need(t, "dnsmasq", "dnsmasq-base")
	l := newLab(t)
	conf := must(t, l.Host, "cat", "/etc/resolv.conf")
	servers := strings.TrimSpace(strings.TrimPrefix(conf, "nameserver "))
	stub := startShell(t, l.Host, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--group=",
		"--no-hosts", "--no-resolv", "--bind-interfaces", "--log-facility=-", "--cache-size=0", "--listen-address=127.0.0.53", "--server="+servers)
	stub.AwaitLog(t, 0, "started, ")
	l.Host.Cover(t, "/etc/resolv.conf", "nameserver 127.0.0.53\n")
	if err := os.MkdirAll("/run/systemd/resolve", 0o755); err != nil { // the lab's own /run
		t.Fatal(err)
	}
	if err := os.WriteFile("/run/systemd/resolve/resolv.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll("/run/systemd") })
	d := startRun(t, l, lab.File(t, "tunroute.yaml", "rules: [{via: direct}]\nnames: {local: "+lab.PublicName+"}\n"))
	defer stopRun(t, d)
	if out := must(t, l.Host, "dig", "+short", "+tries=1", lab.PublicName); out != lab.Target4(1).String()+"\n" {
		t.Errorf("by way of the stub: %q, want the true address", out)
	}
	if out := must(t, l.Host, "curl", "-s", "-m", "60", "http://"+lab.PublicName+"/"); !strings.Contains(out, "the page of "+lab.PublicName) {
		t.Errorf("the page is %q", out)
	}
}

// Killed, it leaves nothing that would let packets out, and starting it again
// cleans up.
func TestRunIsKilled(t *testing.T) {
	needClients(t)
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	config := lab.File(t, "tunroute.yaml", runConfig(danted))
	before := l.Host.State(t)
	d := startRun(t, l, config)
	state := func() string {
		var b strings.Builder
		for _, family := range []string{"-4", "-6"} {
			// Not the addresses and the table "local": the interface is a new
			// one each time, and IPv6 gives it an address by chance.
			for _, what := range []string{"rule", "route", "route show table 1080"} {
				b.WriteString(strings.ReplaceAll(l.Host.IP(t, "-j "+family+" "+what), "},{", "},\n{"))
			}
		}
		return b.String()
	}
	running := state()

	clients := []*lab.Node{l.Host, l.Lan}
	var shells []*lab.Shell
	for _, n := range clients {
		sh := startShell(t, n, "bash")
		sh.Must(t, "exec 3<>/dev/tcp/%s/%d; echo before >&3; read -t 10 said <&3", lab.Target4(viaServer), lab.EchoPort)
		shells = append(shells, sh)
	}
	d.Process().Kill()
	d.Wait(t)

	w := l.Watch(t)
	for i, sh := range shells {
		for _, try := range []string{
			"echo after >&3 && read -t 1 said <&3",
			fmt.Sprintf("timeout 1 bash -c 'exec 4<>/dev/tcp/%s/%d'", lab.Target4(viaServer), lab.WebPort),
			fmt.Sprintf("timeout 1 bash -c 'exec 4<>/dev/tcp/%s/%d'", lab.Target6(viaServer), lab.WebPort),
			fmt.Sprintf("timeout 1 bash -c 'exec 4<>/dev/tcp/%s/%d'", lab.Target4(viaDirect), lab.WebPort),
			fmt.Sprintf("curl -s -m 1 http://%s/", lab.PublicName),
			fmt.Sprintf("dig +tries=1 +time=1 %s", lab.PublicName),
			fmt.Sprintf("dig +tries=1 +time=1 @%s %s", lab.Target6(viaServer), lab.PublicName),
			fmt.Sprintf("ping -c 1 -W 1 %s", lab.Target4(viaDirect)),
			fmt.Sprintf("ping -c 1 -W 1 %s", lab.Target6(viaDirect)),
		} {
			if out, status := sh.Run(t, "%s", try); status == 0 {
				t.Errorf("%s: %s succeeds: %s", clients[i].Name, try, out)
			}
		}
	}
	for _, p := range w.Arrived(t, func(p lab.Packet) bool {
		return isTarget(p.Dst.Addr()) || p.Src.Addr() == lab.Lan4 || p.Src.Addr() == lab.Lan6
	}) {
		t.Errorf("out came %v", p)
	}

	d = startRun(t, l, config)
	if again := state(); again != running {
		t.Errorf("after another start:\n%s\nafter the first:\n%s", again, running)
	}
	t.Run("started again", func(t *testing.T) {
		t.Run("sidecar", func(t *testing.T) { routed(t, l, l.Host) })
		t.Run("gateway", func(t *testing.T) { routed(t, l, l.Lan) })
	})
	t.Run("a second one is refused", func(t *testing.T) {
		r := run(t, l.Host, rootUser.tunroute("run", "-c", config)...)
		if r.Status != 1 || !strings.Contains(r.Stderr, "tunroute0") || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("status %d, %q", r.Status, r.Stderr)
		}
		if now := state(); now != running {
			t.Errorf("it has changed:\n%s\nfrom\n%s", now, running)
		}
		must(t, l.Lan, "curl", "-s", "http://"+lab.SecretName+"/")
	})
	stopRun(t, d)
	if after := l.Host.State(t); after != before {
		t.Errorf("at the end:\n%s\nbefore:\n%s", after, before)
	}
}

// SIGHUP makes a new config decide new flows. An old flow goes on, and a config
// with an error changes nothing.
func TestReload(t *testing.T) {
	lab.Need(t, "bash", "bash")
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	config := lab.File(t, "tunroute.yaml", runConfig(danted))
	d := startRun(t, l, config)
	sh := startShell(t, l.Lan, "bash")
	sh.Must(t, "exec 3<>/dev/tcp/%s/%d", lab.Target4(viaServerTo), lab.EchoPort)
	echo := func(word string) {
		t.Helper()
		if out := sh.Must(t, "echo %s >&3; read -t 10 said <&3; echo $said", word); out != word+"\n" {
			t.Errorf("the flow from before says %q, want %q", out, word)
		}
	}
	echo("before")
	for _, tt := range []struct {
		name, config, logged string
		want                 string
	}{
		{"rejected", runConfig(danted, fmt.Sprintf("  - {to: %s, via: reject}\n", lab.Target4(viaServerTo))), "msg=reloaded", "connect: " + unreachable},
		{"error", "rules:\n  - {via: nowhere}\n", `msg="the config stays as it was"`, "connect: " + unreachable},
		{"other interface", runConfig(danted) + "tun: {mtu: 1400}\n", `msg="the config stays as it was"`, "connect: " + unreachable},
		{"as at first", runConfig(danted), "msg=reloaded", "connected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(config, []byte(tt.config), 0o644); err != nil {
				t.Fatal(err)
			}
			logged := len(d.Log())
			if err := d.Process().Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			d.AwaitLog(t, logged, tt.logged)
			if said, _ := connect(t, sh, lab.Target4(viaServerTo).String(), lab.EchoPort); !strings.Contains(said, tt.want) {
				t.Errorf("a new flow: %q, want %q", said, tt.want)
			}
			echo("still")
		})
	}
	stopRun(t, d)
}

// Where its own packets would come back to it, it says so and does not start.
func TestRunRefusesLoops(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name   string
		rules  []string // of the host, by others
		server string
		want   string
	}{
		{"server with a fake address", nil, "198.18.0.9:1080", "range of fake addresses"},
		{"server with a fake IPv6 address", nil, "[fd74:756e:726f::9]:1080", "range of fake addresses"},
		// They jump over the rule about our mark.
		{"rule that ignores the mark", []string{"rule add priority 100 goto 7401"}, lab.Proxy4.String() + ":1080", "loop: "},
		{"rule that ignores it for IPv6", []string{"-6 rule add priority 100 goto 7401"}, "[" + lab.Proxy6.String() + "]:1080", "loop: "},
		{"rule that looks up our table", []string{"rule add priority 100 lookup 1080"}, lab.Proxy4.String() + ":1080", "table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, line := range tt.rules {
				l.Host.IP(t, line)
				t.Cleanup(func() { l.Host.IP(t, strings.Replace(line, "add", "del", 1)) })
			}
			before := l.Host.State(t)
			r := run(t, l.Host, rootUser.tunroute("run", "-c", lab.File(t, "tunroute.yaml", runConfig(tt.server)))...)
			if r.Status != 1 || !strings.Contains(r.Stderr, tt.want) {
				t.Errorf("status %d, want 1 and %q:\n%s", r.Status, tt.want, r.Stderr)
			}
			t.Log(strings.TrimSpace(r.Stderr))
			if after := l.Host.State(t); after != before {
				t.Errorf("after it:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}
