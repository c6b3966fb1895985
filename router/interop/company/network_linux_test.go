package company

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tunroute/router/interop/lab"
)

// Addresses of the network.
var (
	clientAddr = addr("10.0.0.10")
	lanAddr    = addr("10.0.0.20")
	subAddr    = addr("192.168.100.10")
	noSubAddr  = addr("192.168.100.77") // of nobody
	privAddr   = addr("172.31.0.10")
	webAddr    = addr("203.0.113.80")
	closedAddr = addr("203.0.113.81") // of a host without a web server

	corpDNS = addr("10.0.0.53")
	netDNS  = addr("203.0.113.53")
	privDNS = addr("172.31.0.53")

	d1Addr = addr("192.168.100.1") // as the subsidiary sees it
	p1Addr = addr("172.31.0.1")    // as the private network sees it
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// gatewayAddr is where the gateway int1, int2, ... comes from on the Internet.
func gatewayAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }

// What the gateways to the Internet want. The hashes are what "openssl passwd -6
// -salt company" makes of the password, and of another one.
const (
	user        = "office"
	password    = "cedar-7-lantern"
	hash        = "$6$company$zDf4UyWgE/.D9FIATio/ZS84w3235FWv/fDGaKdYjrphRS3tophtLsUbCrz6F/QQuz84bRncTUjAiZmkdDVy20"
	anotherHash = "$6$company$jLZE99tLqKTbpDLIkwsoL6rUXJ/SKjcpVJ8.AE52PYFrCHTptJIZQvxzB0KYBusCg5G8os1F6lZUNcsTr4Oln1"
)

// network is the company's, and what is around it.
type network struct {
	sw             lab.Switch
	client, second *lab.Node // who uses tunroute
	lan, inet      *lab.Node
	corp, net      *lab.DNS
	priv           *lab.DNS
	int            []*gateway // int1 is int[0]
	d1, p1         *gateway

	serving sync.WaitGroup
}

// gateway is a host with a danted.
type gateway struct {
	*lab.Node
	t      *testing.T // that it lives as long as
	config string
	shadow string     // the file with the passwords of its users, where it has any
	watch  *lab.Watch // of what comes from the company or, at p1, from the subsidiary
	danted *lab.Shell // the one that runs, or has run
}

// newNetwork makes the network with some gateways to the Internet, which lives until
// the test ends.
func newNetwork(t *testing.T, gateways int) *network {
	t.Helper()
	if err := lookAtSources(); err != nil {
		t.Fatal(err)
	}
	lab.Need(t, "danted", "dante-server")
	lab.Need(t, "dnsmasq", "dnsmasq-base")
	lab.Need(t, "curl", "curl")
	lab.Need(t, "bash", "bash")
	n := &network{sw: lab.NewSwitch(t, "corp", "sub", "priv", "net")}
	node := func(name string, resolver netip.Addr, addrs map[string][]string) *lab.Node {
		node := lab.NewNode(t, name, resolver)
		for network, list := range addrs {
			var prefixes []netip.Prefix
			for _, a := range list {
				prefixes = append(prefixes, netip.MustParsePrefix(a))
			}
			n.sw.Attach(t, node, network, prefixes...)
		}
		return node
	}
	// Their own resolver is the company's, whom tunroute has to keep them from
	// asking.
	n.client = node("client", corpDNS, map[string][]string{"corp": {"10.0.0.10/8"}})
	n.second = node("second", corpDNS, map[string][]string{"corp": {"10.0.0.11/8"}})
	n.lan = node("lan", corpDNS, map[string][]string{"corp": {"10.0.0.20/8", "10.0.0.53/8"}})
	subh := node("subh", corpDNS, map[string][]string{"sub": {"192.168.100.10/24"}})
	privh := node("privh", privDNS, map[string][]string{"priv": {"172.31.0.10/16", "172.31.0.53/16"}})
	n.inet = node("inet", netDNS, map[string][]string{"net": {"203.0.113.80/24", "203.0.113.81/24", "203.0.113.53/24"}})

	n.corp = lab.NewDNS(t, n.lan, []netip.Addr{corpDNS}, map[string][]netip.Addr{"lan.corp.example": {lanAddr}})
	n.net = lab.NewDNS(t, n.inet, []netip.Addr{netDNS}, map[string][]netip.Addr{"www.example.com": {webAddr}})
	n.priv = lab.NewDNS(t, privh, []netip.Addr{privDNS}, map[string][]netip.Addr{"private-net.org": {privAddr}})

	t.Cleanup(n.serving.Wait)
	n.web(t, n.lan, lanAddr, 80)
	n.web(t, subh, subAddr, 80, 2222)
	n.web(t, privh, privAddr, 80)
	n.web(t, n.inet, webAddr, 80, 8080)
	n.echo(t, n.inet, webAddr, 7000)

	for i := 1; i <= gateways; i++ {
		inside, outside := fmt.Sprintf("10.0.3.%d", i), gatewayAddr(i)
		g := n.gateway(t, node(fmt.Sprintf("int%d", i), netDNS, map[string][]string{"corp": {inside + "/8"}, "net": {outside.String() + "/24"}}),
			"corp", n.client, addr(inside), fmt.Sprintf(`
internal: %[1]s port = 1080
external: %[2]s
clientmethod: none
socksmethod: username none
client pass { from: 10.0.0.0/8 to: %[1]s/32 log: connect error }
client block { from: 0/0 to: 0/0 log: connect error }
socks pass { from: 10.0.0.0/8 to: 0.0.0.0/0 port = http
 socksmethod: username
 log: connect error disconnect
}
socks block { from: 0/0 to: 0/0 log: connect error }
`, inside, outside))
		g.Cover(t, "/etc/passwd", fmt.Sprintf("root:x:0:0::/:/bin/sh\n%s:x:65000:65000::/:/bin/false\n", user))
		g.shadow = g.Cover(t, "/etc/shadow", shadow(hash))
		g.start()
		n.int = append(n.int, g)
	}
	n.d1 = n.gateway(t, node("d1", corpDNS, map[string][]string{"corp": {"10.0.4.1/8"}, "sub": {"192.168.100.1/24"}}),
		"corp", n.client, addr("10.0.4.1"), `
internal: 10.0.4.1 port = 1080
external: 192.168.100.1
clientmethod: none
socksmethod: none
client pass { from: 10.0.0.0/8 to: 10.0.4.1/32 log: connect error }
client block { from: 0/0 to: 0/0 log: connect error }
socks pass { from: 10.0.0.0/8 to: 192.168.100.0/24 log: connect error disconnect }
socks block { from: 0/0 to: 0/0 log: connect error }
`)
	n.p1 = n.gateway(t, node("p1", privDNS, map[string][]string{"sub": {"192.168.100.2/24"}, "priv": {"172.31.0.1/16"}}),
		"sub", n.d1.Node, addr("192.168.100.2"), `
internal: 192.168.100.2 port = 1080
external: 172.31.0.1
clientmethod: none
socksmethod: none
client pass { from: 192.168.100.0/24 to: 192.168.100.2/32 log: connect error }
client block { from: 0/0 to: 0/0 log: connect error }
socks pass { from: 192.168.100.0/24 to: .private-net.org log: connect error disconnect }
socks block { from: 0/0 to: 0/0 log: connect error }
`)
	n.d1.start()
	n.p1.start()
	return n
}

// gateway makes a gateway of a node, without starting its danted. Its clients come
// from a network, for example that node, to that address.
func (n *network) gateway(t *testing.T, node *lab.Node, network string, client *lab.Node, at netip.Addr, config string) *gateway {
	return &gateway{
		Node:   node,
		t:      t,
		config: lab.File(t, "danted.conf", "logoutput: stderr\nuser.privileged: root\nuser.unprivileged: root\n"+config),
		watch:  lab.NewWatch(t, node, network, client, netip.AddrPortFrom(at, 9)),
	}
}

// shadow is a shadow(5) with the password of user.
func shadow(hash string) string {
	return fmt.Sprintf("root:*:19000:0:99999:7:::\n%s:%s:19000:0:99999:7:::\n", user, hash)
}

// start starts the danted, and returns when it listens.
func (g *gateway) start() {
	g.t.Helper()
	dir := lab.Dir(g.t)
	cmd := g.Command("env", "TMPDIR="+dir, "danted", "-f", g.config, "-p", filepath.Join(dir, "pid"))
	// Its dozens of processes are signalled as one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	danted := lab.NewShell(g.t, cmd)
	g.t.Cleanup(func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }) // NewShell ends the first of them
	danted.AwaitLog(g.t, 0, " running")
	g.danted = danted
}

// signal sends a signal to all processes of the danted.
func (g *gateway) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(-g.danted.Process().Pid, sig); err != nil {
		t.Fatalf("%s: %v to danted: %v", g.Name, sig, err)
	}
}

// kill ends the danted.
func (g *gateway) kill(t *testing.T) {
	t.Helper()
	g.signal(t, unix.SIGKILL)
	g.danted.Wait(t)
}

// connections returns how many connections have been opened to the danted since the
// last call, whether it has taken them or not.
func (g *gateway) connections(t *testing.T) int {
	t.Helper()
	from := make(map[netip.AddrPort]bool) // a SYN may come more than once
	for _, p := range g.watch.Arrived(t, func(p lab.Packet) bool { return p.Opens && p.Dst.Port() == 1080 }) {
		from[p.Src] = true
	}
	return len(from)
}

// targets returns what the danted says on its log behind the first skip bytes where it
// has connected to, each target once and sorted.
func (g *gateway) targets(skip int) []string {
	var list []string
	for line := range strings.Lines(g.danted.Log()[skip:]) {
		if _, way, ok := strings.Cut(line, "tcp/connect [: "); ok {
			f := strings.Fields(way)
			list = append(list, f[len(f)-1])
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// page is what a web server answers.
func page(server string, peer netip.Addr, host string) string {
	return fmt.Sprintf("srv=%s peer=%s Host=%s\n", server, peer, host)
}

// web starts web servers on a node, which say who they are and who asks. The path
// /endless has no end.
func (n *network) web(t *testing.T, on *lab.Node, at netip.Addr, ports ...uint16) {
	for _, port := range ports {
		l := on.Listen(t, netip.AddrPortFrom(at, port))
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			peer := netip.MustParseAddrPort(r.RemoteAddr).Addr()
			io.WriteString(w, page(on.Name, peer, r.Host))
			for r.URL.Path == "/endless" {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		})}
		n.serving.Go(func() { server.Serve(l) })
		t.Cleanup(func() { server.Close() })
	}
}

// echo starts a server which says the same when its client has said all.
func (n *network) echo(t *testing.T, on *lab.Node, at netip.Addr, port uint16) {
	l := on.Listen(t, netip.AddrPortFrom(at, port))
	n.serving.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // nobody should get here, so one after the other will do
				all, _ := io.ReadAll(c)
				c.Write(all)
				c.Close()
			}
		}
	})
}

// change replaces a part of the example; it has to be there.
type change struct{ old, new string }

// config writes cmd/tunroute/examples/company.yaml with changes, and its secrets.
func config(t *testing.T, changes ...change) string {
	t.Helper()
	const example = "../../../cmd/tunroute/examples/company.yaml"
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, c := range changes {
		if !strings.Contains(text, c.old) {
			t.Fatalf("%s has no %q", example, c.old)
		}
		text = strings.ReplaceAll(text, c.old, c.new)
	}
	file := lab.File(t, "tunroute.yaml", text)
	for name, secret := range map[string]string{"internet.user": user, "internet.secret": password, "wrong.secret": "birch-2-candle"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}
