package company

import (
	"net/netip"
	"slices"
	"testing"

	"tunroute/router/interop/lab"
)

// If all gateways are lost, and if tunroute is killed in the middle of a transfer,
// nothing takes another way.
func TestNothingTakesAnotherWay(t *testing.T) {
	lab.Need(t, "dig", "bind9-dnsutils")
	n := newNetwork(t, danted, 2)
	for i, node := range []*lab.Node{n.client, n.second} { // the first is not what it was when run has been killed
		k := kinds[i]
		t.Run(k.name, func(t *testing.T) {
			sent := lab.NewWatch(t, n.sw.Node, node.Name+"-corp", node, netip.AddrPortFrom(corpDNS, 9))
			c := k.start(t, node, config(t, patient...))
			// transfer leaves a transfer running that has no end.
			transfer := func(fd int) {
				t.Helper()
				out := c.sh.Must(t, "exec %d<>/dev/tcp/%s/80; printf 'GET /endless HTTP/1.0\\r\\n\\r\\n' >&%[1]d; head -c 1000000 <&%[1]d | wc -c", fd, webAddr)
				if out != "1000000\n" {
					t.Fatalf("of a transfer comes %q", out)
				}
			}
			// closed tests that nothing new comes about.
			closed := func(when, label string, errors ...string) {
				t.Helper()
				if why := c.connect(t, webAddr, 80); !slices.Contains(errors, why) {
					t.Errorf("%s: connect says %q, want one of %q", when, why, errors)
				}
				for _, name := range []string{label + ".example.com", label + ".private-net.org"} {
					if out, status := c.sh.Run(t, "curl -sS -m 5 http://%s/", name); status == 0 {
						t.Errorf("%s: %s answers %s", when, name, out)
					}
				}
				asked := append(n.corp.Asked(t, label+"."), n.net.Asked(t, label+".")...)
				if len(asked) > 0 {
					t.Errorf("%s: the DNS was asked %v", when, asked)
				}
			}

			transfer(3)
			n.int[0].kill(t)
			n.int[1].kill(t)
			n.d1.kill(t)
			closed("without gateways", k.name+"-1", unreachable)
			for _, g := range []*gateway{n.int[0], n.int[1], n.d1} {
				g.start()
			}
			// Bad gateways are better than none: nobody has to wait for a probe.
			if got := c.get(t, "http://"+webAddr.String()+"/"); !slices.Contains(n.pages(webAddr.String()), got) {
				t.Errorf("with gateways again: %q", got)
			}

			transfer(4)
			kill(t, c)
			closed("with tunroute killed", k.name+"-2", unreachable, netUnreachable)
			c.sh.Run(t, "printf more >&4") // on the way that it had

			corp := netip.MustParsePrefix("10.0.0.0/8")
			all := sent.Arrived(t, func(lab.Packet) bool { return true })
			for _, p := range all {
				if !p.Dst.Addr().IsMulticast() && !(corp.Contains(p.Src.Addr()) && corp.Contains(p.Dst.Addr())) {
					t.Errorf("out came %v", p)
				}
			}
			if len(all) == 0 {
				t.Error("nothing was seen at all")
			}
			t.Logf("all of %d packets from %s were from and to %v", len(all), node.Name, corp)
		})
	}
}

// kill kills tunroute, in exec the process that was called, and returns when it has
// no way to serve anybody any more.
func kill(t *testing.T, c *client) {
	t.Helper()
	if c.within == nil {
		c.tunroute.Process().Kill()
		c.tunroute.Wait(t)
		return
	}
	router := lab.Child(t, c.tunroute.Process(), "exec-router")
	c.tunroute.Process().Kill()
	router.Wait(t)
}
