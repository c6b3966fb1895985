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

// TestErrorTables runs docs/errors.md: each line is a name to which the servers
// of this test do what the line says, and Linux tells a program in the namespace
// of exec what has come of it.
func TestErrorTables(t *testing.T) {
	if why := whyNoExec(); why != "" {
		missing(t, why)
	}
	scripts := map[string]enginetest.Script{
		"reply 0": {Serve: func(c net.Conn) { io.Copy(io.Discard, c) }},
		"hangs":   {EOF: true},
		"silent":  {Silent: true},
	}
	for code := socks.ReplyGeneral; code <= socks.ReplyAddressType; code++ {
		scripts[fmt.Sprintf("reply %d", code)] = enginetest.Script{Reply: code}
	}
	label := func(key string) string { return strings.ReplaceAll(key, " ", "-") + ".scripted.test" }
	scripted := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		if r.Command == socks.UDPAssociate {
			return enginetest.Script{Reply: socks.ReplyCommand}
		}
		for key, s := range scripts {
			if r.Addr.Name == label(key) {
				return s
			}
		}
		return enginetest.Script{Reply: socks.ReplyRefused} // another server, as a hop
	})
	refuse4 := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		socks.ReadVersion(c)
		socks.ReadRequest4(c)
		c.Write(socks.AppendReply4(nil, socks.Reply4Rejected, netip.AddrPort{}))
	})
	locked := outboundtest.StartServer(t, outboundtest.ServerOptions{User: "ann", Password: "opensesame"})
	stranger, _, _ := outboundtest.Certificate(t)
	proxy := outboundtest.Serve(t, enginetest.Loopback, func(c *net.TCPConn) {
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		status, _, _ := strings.Cut(q.URL.Hostname(), ".")
		cause := ""
		if status == "refused" {
			status, cause = "503", "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"
		}
		fmt.Fprintf(c, "HTTP/1.1 %s\r\n%s\r\n", status, cause)
	})
	secure := outboundtest.StartServer(t, outboundtest.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{stranger}}})
	closed := outboundtest.ClosedPort(t, enginetest.Loopback)
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"closed.direct.test": enginetest.Loopback})

	config := filepath.Join(t.TempDir(), "tunroute.yaml")
	text := fmt.Sprintf(`
upstreams:
  scripted: socks5h://%[1]s
  old:      socks4a://%[2]s
  locked:   {url: "socks5h://%[3]s", user: ann, password: opensesamf}
  closed:   socks5h://%[4]s
  behind:   {url: "socks5h://192.0.2.1", via: scripted}
  proxy:    http://%[6]s
  secure:   socks5h+tls://%[7]s
rules:
  - {to: .scripted.test, via: scripted}
  - {to: old.test, via: old}
  - {to: locked.test, via: locked}
  - {to: server.test, via: closed}
  - {to: behind.test, via: behind}
  - {to: .http.test, via: proxy}
  - {to: secure.test, via: secure}
  - {to: .direct.test, via: direct}
  - {to: rejected.test, via: reject}
timeouts: {request: 200ms}
dns: {resolvers: ["%[5]s"]}
`, scripted, refuse4, locked.Target(), closed, dns.Addr, proxy, secure.Target())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	closedPort := fmt.Sprint(closed.Port())

	// Where a line of the tables leads.
	tcp := map[string]string{
		"the server hangs up instead of a reply":                  label("hangs") + ":80",
		"the server does not reply within `timeouts.request`":     label("silent") + ":80",
		"SOCKS4 reply 91: rejected or failed":                     "old.test:80",
		"the server does not take the password":                   "locked.test:80",
		"an HTTP proxy says 403: forbidden":                       "403.http.test:80",
		"an HTTP proxy says 407: user and password":               "407.http.test:80",
		"an HTTP proxy says 500, 502, 503 or 504":                 "502.http.test:80",
		"an HTTP proxy says that the target refused":              "refused.http.test:80",
		"the server's certificate is not good":                    "secure.test:80",
		"the server itself refuses the connection":                "server.test:80",
		"a server in the middle of a chain cannot reach the next": "behind.test:80",
		"`direct`, and the target refuses":                        "closed.direct.test:" + closedPort,
		"`direct`, and the name does not exist":                   "unknown.direct.test:80",
		"a rule says `reject`":                                    "rejected.test:80",
		"no rule matches":                                         "other.test:80",
		"a fake address without a name":                           "orphan",
	}
	for _, r := range errorTable(t, "TCP") {
		if key, _, ok := strings.Cut(r.what, ":"); ok && strings.HasPrefix(key, "reply ") {
			tcp[r.what] = label(key) + ":80"
		}
	}
	udp := map[string]string{
		"the outbound carries no UDP, as with SOCKS4, HTTP, TLS and unix sockets": "old.test:443",
		"reply 7 to UDP ASSOCIATE":                 label("udp") + ":443",
		"the server itself refuses the connection": "server.test:443",
		"a rule says `reject`":                     "rejected.test:443",
		"no rule matches":                          "other.test:443",
		"a fake address without a name":            "orphan",
	}
	for heading, targets := range map[string]map[string]string{"TCP": tcp, "UDP": udp} {
		t.Run(heading, func(t *testing.T) {
			rows := errorTable(t, heading)
			if len(rows) != len(targets) {
				t.Errorf("the table has %d lines and the test knows %d", len(rows), len(targets))
			}
			network := strings.ToLower(heading)
			var args []string
			for _, r := range rows {
				target, ok := targets[r.what]
				if !ok {
					t.Fatalf("the test does not know what %q is", r.what)
				}
				for _, v := range []string{"4", "6"} {
					args = append(args, network+v, addressOf(target, v))
				}
			}
			results, log := runDial(t, config, args)
			for i, r := range rows {
				for j, want := range []string{r.v4, r.v6} {
					if got := results[2*i+j]; got != want {
						t.Errorf("%s, IPv%d: %s, want %s", r.what, 4+2*j, got, want)
					}
					target := args[4*i+2*j+1]
					if !strings.Contains(log, "net="+network) || !logged(log, target, r.end) {
						t.Errorf("%s: no line for %s with end=%s in\n%s", r.what, target, r.end, log)
					}
				}
			}
		})
	}
}

// addressOf returns where to connect for a target; an orphan has no name.
func addressOf(target, v string) string {
	switch {
	case target != "orphan":
		return target
	case v == "4":
		return "198.19.255.1:80"
	}
	return "[fd74:756e:726f::1:1]:80"
}

func logged(log, target, end string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, " dst="+target+" ") && strings.Contains(line, " end="+end) {
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
