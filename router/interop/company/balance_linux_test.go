package company

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
)

// patient keeps a machine that stands still for a moment from being taken for a
// gateway that does, where requests are counted.
var patient = []change{{"hedge: 1s", "hedge: 5s"}, {"{connect: 3s, negotiate: 3s}", "{connect: 10s, negotiate: 10s}"}}

const requests = 200

// A group shares requests out among real gateways as its policy says.
func TestBalance(t *testing.T) {
	n := newNetwork(t, danted, 2)
	split := func(t *testing.T, policy string) [2]int {
		var by [2]int
		c := startRun(t, n.client, config(t, append(patient, change{"policy: random", "policy: " + policy})...))
		for line := range strings.Lines(c.sh.Must(t, "%s fetch %d http://%s/", lab.Self, requests, webAddr)) {
			by[slices.Index(n.pages(webAddr.String()), line)]++
		}
		c.stop(t)
		return by
	}
	t.Run("round-robin", func(t *testing.T) {
		by := split(t, "round-robin")
		if by != [2]int{requests / 2, requests / 2} {
			t.Errorf("of %d requests %v came through int1, int2", requests, by)
		}
		t.Logf("web server: %d with peer=%v, %d with peer=%v", by[0], gatewayAddr(1), by[1], gatewayAddr(2))
	})
	t.Run("random", func(t *testing.T) {
		sigma := math.Sqrt(requests * 0.5 * 0.5)
		// One of 370 fair draws is farther away than that; three in a row are
		// one of fifty million.
		for try := 1; ; try++ {
			by := split(t, "random")
			off := math.Abs(float64(by[0])-requests/2) / sigma
			t.Logf("web server: %d with peer=%v, %d with peer=%v: %.1fσ", by[0], gatewayAddr(1), by[1], gatewayAddr(2), off)
			if off <= 3 {
				break
			}
			if try == 3 {
				t.Fatalf("of %d requests %v came through int1, int2: more than 3σ off, three times", requests, by)
			}
		}
	})
}

// With the policy hash a client keeps its gateway. A gateway that is lost moves its own
// clients only, and gets them back.
func TestHash(t *testing.T) {
	const sources, each = 30, 3
	n := newNetwork(t, danted, 3)
	var from []string
	for i := range sources {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)})
		n.client.IP(t, fmt.Sprintf("addr add %v/8 dev corp", a))
		from = append(from, a.String())
	}
	c := startRun(t, n.client, config(t, append(patient,
		change{"policy: random", "policy: hash"},
		change{"[int1, int2]", "[int1, int2, int3]"},
		change{"  internet:", "  int3: {url: socks5h://10.0.3.3, user: {file: internet.user}, password: {file: internet.secret}}\n  internet:"},
		change{"badexpire: 10s", "badexpire: 1s"},
		change{"rules: ", "tun: {strict: true}\nrules: "}, // these are addresses of this machine
	)...))
	// ask returns the gateway of each source, and that it is always the same.
	ask := func() map[string]int {
		gateway := make(map[string]int)
		pages := n.pages(webAddr.String())
		for line := range strings.Lines(c.sh.Must(t, "%s fetch %d http://%s/ %s", lab.Self, each, webAddr, strings.Join(from, " "))) {
			source, page, _ := strings.Cut(line, " ")
			i := slices.Index(pages, page) + 1
			if before, ok := gateway[source]; i == 0 || ok && before != i {
				t.Errorf("%s: int%d before, and now %q", source, before, page)
			}
			gateway[source] = i
		}
		return gateway
	}
	count := func(by map[string]int) (n [3]int) {
		for _, i := range by {
			n[i-1]++
		}
		return n
	}
	before := ask()
	if n := count(before); slices.Contains(n[:], 0) {
		t.Fatalf("of %d sources %v have int1, int2, int3", sources, n)
	}
	n.int[1].kill(t)
	during := ask()
	moved := 0
	for source, i := range before {
		switch now := during[source]; {
		case now == 2:
			t.Errorf("%s: through int2, which is dead", source)
		case i == 2:
			moved++
		case now != i:
			t.Errorf("%s: moved from int%d to int%d, and int%d lives", source, i, now, i)
		}
	}
	said := len(c.tunroute.Log())
	n.int[1].start()
	c.tunroute.AwaitLog(t, said, `msg="member of a group is good again" group=internet member=int2`)
	if after := ask(); !maps.Equal(after, before) {
		t.Errorf("with int2 back: %v, before it was lost: %v", after, before)
	}
	c.stop(t)
	t.Logf("of %d sources have int1, int2, int3: %v; without int2 %d have moved: %v", sources, count(before), moved, count(during))
}
