package interop

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// A program in exec is connected to from outside, and sees who it is.
func TestForwardToExec(t *testing.T) {
	lab.Need(t, "nc", "netcat-openbsd")
	l := newLab(t)
	here4, here6 := netip.AddrPortFrom(lab.Host4, 8080), netip.AddrPortFrom(lab.Host6, 8080)
	config := lab.File(t, "tunroute.yaml", fmt.Sprintf(`
rules: [{via: direct}]
forward:
  - {listen: "%s", to: 9000, keep-source: true}
  - {listen: "%s", to: 9000, keep-source: true}
`, here4, here6))
	sh := startShell(t, l.Host, rootUser.tunroute("exec", "-c", config, "--", "sh")...)
	outside := startShell(t, l.Srv, "sh")
	for _, tt := range []struct {
		name, family, from string
		to                 netip.AddrPort
	}{
		{"IPv4", "-4", "10.77.0.1", here4},
		{"IPv6", "-6", "fd77::1", here6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := map[string]string{"-4": "/proc/net/tcp", "-6": "/proc/net/tcp6"}[tt.family]
			sh.Must(t, "nc %s -v -n -N -l 9000 </dev/null >/tmp/heard.$$ 2>&1 & until grep -q ':2328 .* 0A ' %s; do sleep 0.02; done", tt.family, table)
			// The command of exec may be quicker than its listeners.
			outside.Must(t, "until echo hello | nc -N -s %s %s %d; do sleep 0.02; done", tt.from, tt.to.Addr(), tt.to.Port())
			heard := sh.Must(t, "wait; cat /tmp/heard.$$; rm /tmp/heard.$$")
			if !strings.Contains(heard, "Connection received on "+tt.from+" ") || !strings.HasSuffix(heard, "hello\n") {
				t.Errorf("the program heard %q, want hello from %s", heard, tt.from)
			}
		})
	}
}

// With run, a program beside it and one on a network behind it, at a port of the host and
// by danted's BIND.
func TestForwardToRun(t *testing.T) {
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	config := lab.File(t, "tunroute.yaml", fmt.Sprintf(`
upstreams: {d: socks5h://%[5]s}
rules: [{via: direct}]
forward:
  - {via: d, from: %[6]s, to: "%[2]s:9000"}
  - {listen: "%[1]s:8080", to: 9000}
  - {listen: "%[1]s:8081", to: "%[2]s:9000"}
  - {listen: "[%[3]s]:8081", to: "[%[4]s]:9000"}
`, lab.Host4, lab.Lan4, lab.Host6, lab.Lan6, danted, lab.Proxy4))
	d := startRun(t, l, config)
	// The server's own address: whoever is on srv connects to it from there.
	at := regexp.MustCompile(`msg=forward at=(\S+) `).FindStringSubmatch(d.AwaitLog(t, 0, "msg=forward at="))
	for _, tt := range []struct {
		name string
		at   *lab.Node
		addr netip.Addr
		to   netip.AddrPort
	}{
		{"sidecar", l.Host, netip.IPv4Unspecified(), netip.AddrPortFrom(lab.Host4, 8080)},
		{"gateway, IPv4", l.Lan, lab.Lan4, netip.AddrPortFrom(lab.Host4, 8081)},
		{"gateway, IPv6", l.Lan, lab.Lan6, netip.AddrPortFrom(lab.Host6, 8081)},
		{"gateway, danted", l.Lan, lab.Lan4, netip.MustParseAddrPort(at[1])},
	} {
		t.Run(tt.name, func(t *testing.T) {
			listener := tt.at.Listen(t, netip.AddrPortFrom(tt.addr, 9000))
			served := make(chan struct{})
			go func() {
				defer close(served)
				if c, err := listener.Accept(); err == nil {
					b, _ := io.ReadAll(c)
					fmt.Fprintf(c, "you said %s", b)
					c.Close()
				}
			}()
			defer func() { listener.Close(); <-served }()
			var got []byte
			err := l.Srv.Do(func() error {
				c, err := net.Dial("tcp", tt.to.String())
				if err != nil {
					return err
				}
				defer c.Close()
				io.WriteString(c, "hello")
				c.(*net.TCPConn).CloseWrite()
				got, err = io.ReadAll(c)
				return err
			})
			if string(got) != "you said hello" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	stopRun(t, d)
}
