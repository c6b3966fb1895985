package interop

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// What programs say where connect(2) has failed (strerror(3)).
const (
	refused     = "Connection refused"     // ECONNREFUSED
	unreachable = "No route to host"       // EHOSTUNREACH
	netDown     = "Network is unreachable" // ENETUNREACH
	prohibited  = "Permission denied"      // EACCES
)

// atOnce is how long a refusal may take, with the start of the program that asks:
// the answer of a server comes in a millisecond, and a program whose first SYN is
// not answered sends the next one after a second. A machine that stands still for
// a moment makes it more, but not each time.
const atOnce = 900 * time.Millisecond

// failure is a target that cannot be reached.
type failure struct {
	name      string
	target    [2]string // of IPv4 and of IPv6; a name is the same for both
	port      int
	want      [2]string // what connect(2) returns
	log       string    // is in the line of the log
	loggedEnd string    // its end=
	slow      bool      // it may take until the second SYN
}

func both(a, b netip.Addr) [2]string { return [2]string{a.String(), b.String()} }
func same(s string) [2]string        { return [2]string{s, s} }

// A connect that fails fails at once, with the errno that the answer of the
// last hop stands for, and the log says which hop has answered what.
func TestConnectFailsAsTheFarEndSaid(t *testing.T) {
	lab.Need(t, "bash", "bash")
	lab.Need(t, "nc", "netcat-openbsd")
	lab.Need(t, "dig", "bind9-dnsutils")
	l := newLab(t)
	target := both(lab.Target4(1), lab.Target6(1))
	forbidden := both(lab.Target4(3), lab.Target6(3))
	danted := startServer(t, l, servers.Dante, servers.Options{
		External: dante.External,
		Config:   fmt.Sprintf("socks block { from: 0/0 to: %s/32 }\nsocks block { from: 0/0 to: %s/128 }", forbidden[0], forbidden[1]),
	})
	micro := startServer(t, l, servers.Microsocks, servers.Options{})
	auth := startServer(t, l, servers.Microsocks, servers.Options{User: "ann", Password: "secret"})
	nobodyListens := netip.AddrPortFrom(lab.Proxy4, lab.ClosedPort).String()
	hostDown := netip.AddrPortFrom(lab.NoHost4, 1080).String()

	closed := failure{name: "closed port", target: target, port: lab.ClosedPort, want: same(refused), loggedEnd: "refused"}
	noHost := failure{name: "host that is down", target: both(lab.NoHost4, lab.NoHost6), port: lab.WebPort, want: same(unreachable), loggedEnd: "failed"}
	noNet := failure{name: "network without a route", target: both(lab.NoNet4, lab.NoNet6), port: lab.WebPort, want: same(netDown), loggedEnd: "failed"}
	noName := failure{name: "no such name", target: same(lab.NoName), port: lab.WebPort, want: same(unreachable), loggedEnd: "failed"}
	any := failure{name: "any target", target: target, port: lab.WebPort, want: same(unreachable), loggedEnd: "failed"}
	say := func(f failure, log string) failure { f.log = log; return f }
	as := func(f failure, v4, v6 string) failure { f.want = [2]string{v4, v6}; return f }
	// The router of this lab is so near that its ICMP arrives while connect(2)
	// of tunroute itself still holds the socket. The kernel then keeps the
	// error until it sends the next SYN (net/ipv6/tcp_ipv6.c, tcp_v6_err).
	slow := func(f failure) failure { f.slow = true; return f }

	tests := []struct {
		name     string
		proxies  []string
		config   string // instead of proxies
		failures []failure
	}{
		{"direct", nil, "", []failure{
			say(closed, "connection refused"),
			// Of IPv6, routers say the same of both.
			slow(as(say(noHost, "connect: "), unreachable, netDown)),
			slow(say(noNet, "network is unreachable")),
			say(noName, "no such host"),
		}},
		{"danted", []string{"socks5h://" + danted}, "", []failure{
			say(closed, "proxy: request: connection refused (reply 5)"),
			say(noHost, "proxy: request: host unreachable (reply 4)"),
			say(noNet, "proxy: request: network unreachable (reply 3)"),
			say(noName, "proxy: request: host unreachable (reply 4)"),
			{"forbidden by the server's rules", forbidden, lab.WebPort, [2]string{unreachable, prohibited}, "proxy: request: not allowed by the server's rules (reply 2)", "failed", false},
		}},
		{"danted socks5", []string{"socks5://" + danted}, "", []failure{
			say(closed, "proxy: request: connection refused (reply 5)"),
			say(noName, "no such host"), // it is looked up here
		}},
		{"microsocks", []string{"socks5h://" + micro}, "", []failure{
			say(closed, "proxy: request: connection refused (reply 5)"),
			// microsocks has no other answer for it.
			say(noName, "proxy: request: general failure (reply 1)"),
		}},
		{"danted, microsocks", []string{"socks5h://" + danted, "socks5h://" + micro}, "", []failure{
			say(closed, "hop 2 of 2 (proxy2): request: connection refused (reply 5)"),
			say(noNet, "hop 2 of 2 (proxy2): request: network unreachable (reply 3)"),
		}},
		{"second hop is closed", []string{"socks5h://" + danted, "socks5h://" + nobodyListens}, "", []failure{
			// The way is broken; of the target nothing is known.
			say(any, "hop 2 of 2 (proxy2): connect: connection refused (reply 5)"),
		}},
		{"second hop is down", []string{"socks5h://" + danted, "socks5h://" + hostDown}, "", []failure{
			say(any, "hop 2 of 2 (proxy2): connect: host unreachable (reply 4)"),
		}},
		{"second hop wants a password", []string{"socks5h://" + danted, "socks5h://" + auth}, "", []failure{
			say(any, "hop 2 of 2 (proxy2): authenticate: "),
		}},
		{"server is closed", []string{"socks5h://" + nobodyListens}, "", []failure{say(any, "proxy: connect: ")}},
		{"server is down", []string{"socks5h://" + hostDown}, "", []failure{slow(say(any, "proxy: connect: "))}},
		{"no password", []string{"socks5h://" + auth}, "", []failure{say(any, "proxy: authenticate: ")}},
		{"wrong password", []string{"socks5h://ann:wrong@" + auth}, "", []failure{say(any, "proxy: authenticate: ")}},
		{"socks4 has no IPv6", []string{"socks4://" + danted}, "", []failure{
			as(say(any, "IPv6"), "", netDown),
		}},
		{"rules", nil, fmt.Sprintf(`
rules:
  - {to: %s, port: 80, via: reject}
  - {to: %s, port: 80, via: reject}
  - {to: %s, via: reject}
  - {port: 81, via: direct}
`, target[0], target[1], lab.PublicName), []failure{
			{"rejected address", target, lab.WebPort, [2]string{unreachable, prohibited}, "rejected by rule", "rejected", false},
			{"rejected name", same(lab.PublicName), lab.WebPort, [2]string{unreachable, prohibited}, "rule=3 line=5", "rejected", false},
			{"no rule", target, 82, [2]string{unreachable, prohibited}, "rule=default", "rejected", false},
			{"direct, closed port", target, 81, same(refused), "rule=4 line=6", "refused", false},
		}},
	}
	var took []time.Duration
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				args := u.exec(tt.proxies, "sh")
				if tt.config != "" {
					args = u.tunroute("exec", "-c", lab.File(t, "tunroute.yaml", tt.config), "--", "sh")
				}
				sh := startShell(t, l.Host, args...)
				for _, f := range tt.failures {
					for i, family := range []string{"-4", "-6"} {
						if f.want[i] == "" {
							continue
						}
						t.Run(f.name+" "+family, func(t *testing.T) {
							addr := f.target[i]
							if _, err := netip.ParseAddr(addr); err != nil {
								addr = strings.TrimSpace(sh.Must(t, "dig +short %s %s", addr, []string{"A", "AAAA"}[i]))
							}
							logged := len(sh.Log())
							out, d := connect(t, sh, addr, f.port)
							for range 19 {
								if f.slow || d <= atOnce {
									break
								}
								t.Logf("it took %v", d)
								out, d = connect(t, sh, addr, f.port)
							}
							if !strings.Contains(out, "connect: "+f.want[i]+"\n") {
								t.Errorf("got %q, want %q", out, f.want[i])
							}
							if !f.slow {
								took = append(took, d)
								if d > atOnce {
									t.Errorf("it took %v, and no less each time before", d)
								}
							}
							if f.want[i] == refused {
								// This one without waiting in connect(2).
								out, status := sh.Run(t, "nc -zv %s %d", addr, f.port)
								if status != 1 || !strings.Contains(out, refused) {
									t.Errorf("nc: status %d, %q, want 1, %q", status, out, refused)
								}
							}
							line := sh.AwaitLog(t, logged, fmt.Sprintf("dst=%s ", join(f.target[i], f.port)))
							for _, want := range []string{f.log, " end=" + f.loggedEnd} {
								if !strings.Contains(line, want) {
									t.Errorf("the log has no %q: %s", want, line)
								}
							}
						})
					}
				}
			})
		}
	})
	if len(took) > 0 {
		slices.Sort(took)
		t.Logf("a refusal takes %v in the median and %v at most, with the start of bash", took[len(took)/2], took[len(took)-1])
	}
}

// connect opens a TCP connection from a shell and returns what is said about it,
// and how long that took.
//
// bash waits in connect(2), which returns the errno. Most programs wait in
// poll(2), where Linux since 6.0 has a race: an ICMP error for a SYN of IPv4 is
// put in the error queue, which wakes them, before it is made the SO_ERROR that
// they ask for then (net/ipv4/tcp_ipv4.c, tcp_v4_err). One time in a hundred
// they are told that they are connected.
func connect(t *testing.T, sh *lab.Shell, addr string, port int) (said string, took time.Duration) {
	t.Helper()
	start := time.Now()
	out, status := sh.Run(t, "bash -c 'exec 3<>/dev/tcp/%s/%d'", addr, port)
	if status == 0 {
		out = "connected"
	}
	return out, time.Since(start)
}

// join is host:port as the log has it.
func join(host string, port int) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a, uint16(port)).String()
	}
	return fmt.Sprintf("%s:%d", host, port)
}
