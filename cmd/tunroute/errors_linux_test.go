package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// row is a line of a table in docs/errors.md.
type row struct{ what, v4, v6, end string }

// errorTable returns the rows of the table below a heading of docs/errors.md.
func errorTable(t *testing.T, heading string) []row {
	t.Helper()
	text, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("docs/errors.md has no section %s", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []row
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != 4 {
			t.Fatalf("docs/errors.md: %q has %d columns, want 4", line, len(cells))
		}
		if cells[0] != "what happened" {
			rows = append(rows, row{cells[0], cells[1], cells[2], cells[3]})
		}
	}
	return rows
}

// outcome is a line of a table in docs/errors.md, and what leads there: a name, and
// an address of each family that the same rule has.
type outcome struct {
	what, name, via string // via is "" where there is no rule
	forms           forms  // in which it is asked for
}

// forms are those of a target: a name behind a fake address, an address.
type forms int

const (
	byName forms = 1 << iota
	by4
	by6
	all = byName | by4 | by6
)

// TestErrorTables runs docs/errors.md: each line is a target with which the servers
// of this test do what the line says, by name and by address, and Linux tells a
// program in the namespace of exec what has come of it.
func TestErrorTables(t *testing.T) {
	if why := whyNoExec(); why != "" {
		missing(t, why)
	}
	tables := []struct {
		heading, network string
		outcomes         []outcome
	}{
		{"TCP", "tcp", []outcome{
			{"reply 0: connected", "reply-0.test", "scripted", all},
			{"reply 1: general failure", "reply-1.test", "scripted", all},
			{"reply 2: not allowed by ruleset", "reply-2.test", "scripted", all},
			{"reply 3: network unreachable", "reply-3.test", "scripted", all},
			{"reply 4: host unreachable, or no such name", "reply-4.test", "scripted", all},
			{"reply 5: connection refused", "reply-5.test", "scripted", all},
			{"reply 6: TTL expired", "reply-6.test", "scripted", all},
			{"reply 7: command not supported", "reply-7.test", "scripted", all},
			{"reply 8: address type not supported", "reply-8.test", "scripted", all},
			{"SOCKS4 reply 91: rejected or failed", "reply-91.test", "old", byName | by4},
			{"SOCKS4 reply 92: the server reaches no identd here", "reply-92.test", "old", byName | by4},
			{"SOCKS4 reply 93: identd names another user", "reply-93.test", "old", byName | by4},
			{"a SOCKS4 server, which is not asked for an IPv6 address", "six.test", "old", by6},
			{"the server hangs up instead of a reply", "hangs.test", "scripted", all},
			{"the server does not reply within `timeouts.request`", "silent.test", "scripted", all},
			{"the server does not take the password", "locked.test", "locked", all},
			{"an HTTP proxy says 403: forbidden", "status-403.test", "proxy", all},
			{"an HTTP proxy says 407: user and password", "status-407.test", "proxy", all},
			{"an HTTP proxy says 500, 502, 503 or 504", "status-502.test", "proxy", all},
			{"an HTTP proxy says that the target refused", "status-refused.test", "proxy", all},
			{"the server's certificate is not good", "secure.test", "secure", all},
			{"the server itself refuses the connection", "server.test", "closed", all},
			{"a server in the middle of a chain cannot reach the next", "behind.test", "behind", all},
			{"`direct`, and the target refuses", "closed.test", "direct", byName},
			{"`direct`, and the name does not exist", "unknown.test", "direct", byName},
			{"a rule says `reject`", "rejected.test", "reject", all},
			{"no rule matches", "other.test", "", all},
			{"a fake address without a name", "orphan", "", byName},
		}},
		{"After the connect", "tcp+read", []outcome{
			{"the target closes", "talks.test", "scripted", all},
			{"reply 0, and then nothing but the end", "ends.test", "scripted", all},
			{"the same, from a server with `early-reply`", "early.test", "early", all},
			{"the target resets the connection", "resets.test", "scripted", all},
		}},
		{"UDP", "udp", []outcome{
			{"the outbound carries no UDP, as with SOCKS4, HTTP, TLS and unix sockets", "reply-91.test", "old", all},
			{"reply 7 to UDP ASSOCIATE, or the server hangs up instead and has never given an association", "reply-0.test", "scripted", all},
			{"the server itself refuses the connection", "server.test", "closed", all},
			{"a rule says `reject`", "rejected.test", "reject", all},
			{"no rule matches", "other.test", "", all},
			{"a fake address without a name", "orphan", "", byName},
		}},
	}

	// A name's addresses end in its number.
	var names []string
	var rules strings.Builder
	for _, table := range tables {
		for _, o := range table.outcomes {
			if slices.Contains(names, o.name) {
				continue
			}
			names = append(names, o.name)
			if o.via != "" {
				fmt.Fprintf(&rules, "  - {to: [%s, %s, %s], via: %s}\n", o.name, target4(len(names)), target6(len(names)), o.via)
			}
		}
	}
	nameOf := func(host string) string {
		if a, err := netip.ParseAddr(host); err == nil {
			b := a.AsSlice()
			if n := int(b[len(b)-1]); target4(n) == a || target6(n) == a {
				return names[n-1]
			}
		}
		return host
	}

	hostOf := func(r socks.Request) string {
		if r.Addr.Name != "" {
			return r.Addr.Name
		}
		return nameOf(r.Addr.IP.String())
	}

	say := func(what string) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, what) }
	}
	scripts := map[string]enginetest.Script{
		"hangs.test":  {EOF: true},
		"silent.test": {Silent: true},
		"talks.test":  {Serve: say("welcome")},
		"ends.test":   {},
		"early.test":  {},
		"resets.test": {Serve: func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }},
		"reply-0.test": {Serve: func(c net.Conn) {
			io.Copy(io.Discard, c)
		}},
	}
	for code := socks.ReplyGeneral; code <= socks.ReplyAddressType; code++ {
		scripts[fmt.Sprintf("reply-%d.test", code)] = enginetest.Script{Reply: code}
	}
	scripted := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		if r.Command == socks.UDPAssociate {
			return enginetest.Script{Reply: socks.ReplyCommand}
		}
		if s, ok := scripts[hostOf(r)]; ok {
			return s
		}
		return enginetest.Script{Reply: socks.ReplyRefused} // another server, as a hop
	})
	old := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		socks.ReadVersion(c)
		r, err := socks.ReadRequest4(c)
		if err != nil {
			return
		}
		code := socks.Reply4Granted
		fmt.Sscanf(hostOf(r), "reply-%d.test", &code)
		c.Write(socks.AppendReply4(nil, code, netip.AddrPort{}))
	})
	locked := outboundtest.StartServer(t, outboundtest.ServerOptions{User: "ann", Password: "opensesame"})
	stranger, _, _ := outboundtest.Certificate(t)
	proxy := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		status := strings.TrimSuffix(strings.TrimPrefix(nameOf(q.URL.Hostname()), "status-"), ".test")
		cause := ""
		if status == "refused" {
			status, cause = "503", "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"
		}
		fmt.Fprintf(c, "HTTP/1.1 %s\r\n%s\r\n", status, cause)
	})
	secure := outboundtest.StartServer(t, outboundtest.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{stranger}}})
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"closed.test": enginetest.Loopback})

	config := filepath.Join(t.TempDir(), "tunroute.yaml")
	text := fmt.Sprintf(`
upstreams:
  scripted: socks5h://%[1]s
  early:    {url: "socks5h://%[1]s", early-reply: true}
  old:      socks4a://%[2]s
  locked:   {url: "socks5h://%[3]s", user: ann, password: opensesamf}
  closed:   socks5h://%[4]s
  behind:   {url: "socks5h://203.0.113.1", via: scripted}
  proxy:    http://%[6]s
  secure:   socks5h+tls://%[7]s
rules:
%[8]s
timeouts: {request: 20s} # what is silent takes as long, all at once
dns: {resolvers: ["%[5]s"]}
`, scripted, old, locked.Target(), closed, dns.Addr, proxy, secure.Target(), rules.String())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, table := range tables {
		t.Run(table.heading, func(t *testing.T) {
			rows := errorTable(t, table.heading)
			network, read, _ := strings.Cut(table.network, "+")
			var args []string
			type check struct {
				row
				want string
			}
			var checks []check
			for _, r := range rows {
				i := slices.IndexFunc(table.outcomes, func(o outcome) bool { return o.what == r.what })
				if i < 0 {
					t.Fatalf("the test does not know what %q is", r.what)
				}
				o := table.outcomes[i]
				port := uint16(80)
				if o.name == "closed.test" {
					port = closed.Port()
				}
				dial := func(family, host, want string) {
					how := network + family
					if read != "" {
						how += "+" + read
					}
					args = append(args, how, net.JoinHostPort(host, fmt.Sprint(port)))
					checks = append(checks, check{r, want})
				}
				n := slices.Index(names, o.name) + 1
				if o.forms&byName != 0 {
					name4, name6 := o.name, o.name
					if o.name == "orphan" {
						name4, name6 = "198.19.255.1", "fd74:756e:726f::1:1"
					}
					dial("4", name4, r.v4)
					dial("6", name6, r.v6)
				}
				if o.forms&by4 != 0 {
					dial("4", target4(n).String(), r.v4)
				}
				if o.forms&by6 != 0 {
					dial("6", target6(n).String(), r.v6)
				}
			}
			if len(rows) != len(table.outcomes) {
				t.Errorf("the table has %d lines and the test knows %d", len(rows), len(table.outcomes))
			}
			results, log := runDial(t, config, args)
			for i, c := range checks {
				how, target := args[2*i], args[2*i+1]
				if got := results[i]; got != c.want {
					t.Errorf("%s, %s %s: %s, want %s", c.what, how, target, got, c.want)
				}
				if !logged(log, network, target, c.end) {
					t.Errorf("%s: no line for %s %s with end=%s in\n%s", c.what, network, target, c.end, log)
				}
			}
		})
	}
}

// target4 and target6 return the addresses of a number from 1 to 255.
func target4(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) }

func target6(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(n)})
}

func logged(log, network, target, end string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, " net="+network+" ") && strings.Contains(line, " dst="+target+" ") && strings.Contains(line, " end="+end) {
			return true
		}
	}
	return false
}

// runDial runs dial in exec and returns its results, and the log.
func runDial(t *testing.T, config string, args []string) (results []string, log string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"exec", "-v", "-c", config, "--", "dial"}, args...)...)
	cmd.Args[0] = "tunroute"
	// dial is the test binary under that name.
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "dial")); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	for line := range strings.Lines(stdout.String()) {
		fields := strings.Fields(line)
		results = append(results, fields[len(fields)-1])
	}
	if len(results) != len(args)/2 {
		t.Fatalf("%d results for %d connects:\n%s", len(results), len(args)/2, &stdout)
	}
	return results, stderr.String()
}
