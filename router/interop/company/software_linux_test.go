package company

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"tunroute/router/inbound"
	"tunroute/router/inbound/users"
	"tunroute/router/interop/lab"
)

// software is what makes a gateway of a host.
type software struct {
	name string
	need [2]string // a program, and the Debian package that has it
	// install writes what a gateway has in its files.
	install func(t *testing.T, g *gateway)
	// command serves.
	command func(g *gateway) []string
	serving string // is logged when it does
	// passwords is what the file with the passwords of gateways to the Internet has
	// in it, where user has one of these: password or another.
	passwords func(password string) string

	// target finds in a line of the log where a connection was made to, host and
	// port; spell is how such a line has it.
	target *regexp.Regexp
	spell  func(target string) string
	// What is logged of connections. Each is texts of one line.
	byRule, byTarget    func(target netip.AddrPort) []string // refused
	none, wrong, passed []string                             // passwords
	// private is how P1 names a target in the private network.
	private func(name string) string
}

// another is a password that user does not have, but in one test.
const another = "birch-2-candle"

// softwares serve the company.
var softwares = []*software{danted, tunrouted}

// danted is Dante's server. The hashes are what "openssl passwd -6 -salt company" makes.
var danted = &software{
	name: "danted",
	need: [2]string{"danted", "dante-server"},
	install: func(t *testing.T, g *gateway) {
		rules := map[string]string{
			"d1": "socks pass { from: 10.0.0.0/8 to: 192.168.100.0/24 log: connect error disconnect }",
			"p1": "socks pass { from: 192.168.100.0/24 to: .private-net.org log: connect error disconnect }",
		}[g.Name]
		methods := "none"
		if g.internet() {
			rules = "socks pass { from: 10.0.0.0/8 to: 0.0.0.0/0 port = http\n socksmethod: username\n log: connect error disconnect\n}"
			methods = "username none"
			g.Cover(t, "/etc/passwd", fmt.Sprintf("root:x:0:0::/:/bin/sh\n%s:x:65000:65000::/:/bin/false\n", user))
			g.passwords = g.Cover(t, "/etc/shadow", "")
		}
		g.config = dantedConfig(t, fmt.Sprintf(`
internal: %[1]v port = 1080
external: %[2]v
clientmethod: none
socksmethod: %[3]s
client pass { from: %[4]v to: %[1]v/32 log: connect error }
client block { from: 0/0 to: 0/0 log: connect error }
%[5]s
socks block { from: 0/0 to: 0/0 log: connect error }
`, g.inside, g.outside, methods, g.clients, rules))
	},
	command: func(g *gateway) []string {
		dir := lab.Dir(g.t)
		return []string{"env", "TMPDIR=" + dir, "danted", "-f", g.config, "-p", filepath.Join(dir, "pid")}
	},
	serving: " running",
	passwords: func(p string) string {
		hash := map[string]string{
			password: "$6$company$zDf4UyWgE/.D9FIATio/ZS84w3235FWv/fDGaKdYjrphRS3tophtLsUbCrz6F/QQuz84bRncTUjAiZmkdDVy20",
			another:  "$6$company$jLZE99tLqKTbpDLIkwsoL6rUXJ/SKjcpVJ8.AE52PYFrCHTptJIZQvxzB0KYBusCg5G8os1F6lZUNcsTr4Oln1",
		}[p]
		return fmt.Sprintf("root:*:19000:0:99999:7:::\n%s:%s:19000:0:99999:7:::\n", user, hash)
	},
	target: regexp.MustCompile(`tcp/connect \[: .* (\S+)\.(\d+)$`),
	spell:  dotted,
	byRule: func(target netip.AddrPort) []string {
		return []string{"block(2): tcp/connect", fmt.Sprintf("username%%%s@", user), dotted(target.String())}
	},
	byTarget: func(target netip.AddrPort) []string { return []string{dotted(target.String()), "refused"} },
	none:     []string{"block(2): tcp/connect"},
	wrong:    []string{fmt.Sprintf("system password authentication failed for user %q", user)},
	passed:   []string{fmt.Sprintf("pass(1): tcp/connect [: username%%%s@%v", user, clientAddr)},
	private:  func(string) string { return netip.AddrPortFrom(privAddr, 80).String() },
}

// dotted is a target as danted logs it.
func dotted(target string) string { return strings.Replace(target, ":", ".", 1) }

// dantedConfig writes a config of danted.
func dantedConfig(t *testing.T, text string) string {
	t.Helper()
	return lab.File(t, "danted.conf", "logoutput: stderr\nuser.privileged: root\nuser.unprivileged: root\n"+text)
}

// tunrouted is tunroute as a server. The configs are those of the examples.
var tunrouted = &software{
	name: "tunroute",
	need: [2]string{"bash", "bash"},
	install: func(t *testing.T, g *gateway) {
		example := g.Name
		if g.internet() {
			example = "int1"
		}
		b, err := os.ReadFile("../../../cmd/tunroute/examples/company-" + example + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		// Who may not come in is no flow, and told of to who looks.
		text := strings.ReplaceAll(string(b), "10.0.3.1", g.inside.String()) + "\nlog: {level: debug}\nadmin: {socket: off}\n"
		g.config = lab.File(t, "tunroute.yaml", text)
		g.passwords = filepath.Join(filepath.Dir(g.config), "internet.users")
	},
	command:   func(g *gateway) []string { return []string{lab.Bin + "/tunroute", "run", "-c", g.config} },
	serving:   "msg=ready",
	passwords: func(p string) string { return user + ":" + users.Hash(p) + "\n" },
	target:    regexp.MustCompile(` dst=(\S+):(\d+) `),
	spell:     func(target string) string { return "dst=" + target + " " },
	byRule: func(target netip.AddrPort) []string {
		return []string{"dst=" + target.String(), "user=" + user, "end=rejected"}
	},
	byTarget: func(target netip.AddrPort) []string { return []string{"dst=" + target.String(), "end=refused"} },
	none:     []string{"client without a request", "src=" + clientAddr.String()},
	wrong:    []string{"client without a request", "src=" + clientAddr.String(), inbound.ErrDenied.Error()},
	passed:   []string{"msg=flow net=tcp src=" + clientAddr.String(), "user=" + user},
	private:  func(name string) string { return name + ":80" },
}

// targets returns where a gateway says on its log behind the first skip bytes that it
// has connected to, each once.
func (g *gateway) targets(skip int) []string {
	var list []string
	seen := make(map[string]bool)
	for line := range strings.Lines(g.server.Log()[skip:]) {
		m := g.software.target.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if to := m[1] + ":" + m[2]; !seen[to] {
			seen[to] = true
			list = append(list, to)
		}
	}
	return list
}

// await waits until the log of a gateway has a line with the texts behind the first skip
// bytes: the first is waited for, the others have to be there. It returns the line.
func (g *gateway) await(t *testing.T, skip int, texts ...string) string {
	t.Helper()
	line := g.server.AwaitLog(t, skip, texts[0])
	for _, text := range texts[1:] {
		if !strings.Contains(strings.ToLower(line), strings.ToLower(text)) {
			t.Errorf("%s says %swant %q in it", g.Name, line, text)
		}
	}
	return line
}

// awaitTarget waits until a gateway has logged a connection to a target behind the first
// skip bytes.
func (g *gateway) awaitTarget(t *testing.T, skip int, target string) {
	t.Helper()
	g.server.AwaitLog(t, skip, g.software.spell(target))
}

// start starts the software, and returns when it serves.
func (g *gateway) start() {
	g.t.Helper()
	cmd := g.Command(g.software.command(g)...)
	// The dozens of processes of danted are signalled as one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	server := startShell(g.t, cmd)
	g.t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // NewShell ends the first of them
	server.AwaitLog(g.t, 0, g.software.serving)
	g.server = server
}
