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
	"strings"
	"sync"
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

// What the gateways to the Internet want.
const (
	user     = "office"
	password = "cedar-7-lantern"
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

// gateway is a host with a server.
type gateway struct {
	*lab.Node
	t               *testing.T // that it lives as long as
	inside, outside netip.Addr
	clients         netip.Prefix
	software        *software
	config          string
	passwords       string     // the file with those of its users, where it has any
	watch           *lab.Watch // of what comes from the company or, at p1, from the subsidiary
	server          *lab.Shell // the one that runs, or has run
}

// internet says that it is one to the Internet: int1, int2, ...
func (g *gateway) internet() bool { return strings.HasPrefix(g.Name, "int") }

// newNetwork makes the network with some gateways to the Internet, which lives until
// the test ends.
func newNetwork(t *testing.T, servers *software, gateways int) *network {
	t.Helper()
	if err := lookAtSources(); err != nil {
		t.Fatal(err)
	}
	lab.Need(t, servers.need[0], servers.need[1])
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
		node := node(fmt.Sprintf("int%d", i), netDNS, map[string][]string{"corp": {inside + "/8"}, "net": {outside.String() + "/24"}})
		n.int = append(n.int, n.gateway(t, servers, node, "corp", n.client, addr(inside), outside))
	}
	n.d1 = n.gateway(t, servers, node("d1", corpDNS, map[string][]string{"corp": {"10.0.4.1/8"}, "sub": {"192.168.100.1/24"}}),
		"corp", n.client, addr("10.0.4.1"), d1Addr)
	n.p1 = n.gateway(t, servers, node("p1", privDNS, map[string][]string{"sub": {"192.168.100.2/24"}, "priv": {"172.31.0.1/16"}}),
		"sub", n.d1.Node, addr("192.168.100.2"), p1Addr)
	return n
}

// gateway makes a gateway of a node, which serves until the test ends. Its clients come
// from a network, for example that node, to the address inside.
func (n *network) gateway(t *testing.T, servers *software, node *lab.Node, network string, client *lab.Node, inside, outside netip.Addr) *gateway {
	t.Helper()
	g := &gateway{
		Node:     node,
		t:        t,
		inside:   inside,
		outside:  outside,
		clients:  netip.MustParsePrefix("10.0.0.0/8"),
		software: servers,
		watch:    lab.NewWatch(t, node, network, client, netip.AddrPortFrom(inside, 9)),
	}
	if network == "sub" {
		g.clients = netip.MustParsePrefix("192.168.100.0/24")
	}
	servers.install(t, g)
	if g.internet() {
		g.password(t, password)
	}
	g.start()
	return g
}

// password gives the user of a gateway to the Internet a password. The server sees it
// within a second.
func (g *gateway) password(t *testing.T, p string) {
	t.Helper()
	if err := os.WriteFile(g.passwords, []byte(g.software.passwords(p)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// signal sends a signal to all processes of the server.
func (g *gateway) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(-g.server.Process().Pid, sig); err != nil {
		t.Fatalf("%s: %v to %s: %v", g.Name, sig, g.software.name, err)
	}
}

// kill ends the server.
func (g *gateway) kill(t *testing.T) {
	t.Helper()
	g.signal(t, unix.SIGKILL)
	g.server.Wait(t)
}

// connections returns how many connections have been opened to the server since the
// last call, whether it has taken them or not.
func (g *gateway) connections(t *testing.T) int {
	t.Helper()
	from := make(map[netip.AddrPort]bool) // a SYN may come more than once
	for _, p := range g.watch.Arrived(t, func(p lab.Packet) bool { return p.Opens && p.Dst.Port() == 1080 }) {
		from[p.Src] = true
	}
	return len(from)
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
	for name, secret := range map[string]string{"internet.user": user, "internet.secret": password, "wrong.secret": another} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}
