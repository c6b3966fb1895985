package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
)

// runServer runs `tunroute run` with a config, in which SELF is where it listens, until
// the test ends, and returns that.
func runServer(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	at := outboundtest.ClosedPort(t, enginetest.Loopback)
	config := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(text, "SELF", at.String())), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "run", "-c", config)
	cmd.Args[0] = "tunroute"
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(log)
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		rest, _ := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil {
			t.Errorf("run: %v\n%s", err, rest)
		}
	})
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("run ended before it was ready: %v %s", err, line)
		}
		if strings.Contains(line, "msg=ready") {
			return at
		}
	}
}

// TestExecThroughChain: a program behind exec hears what has become of its connect at
// the last of two, and of three, tunroutes: the first of them is exec's own.
func TestExecThroughChain(t *testing.T) {
	if why := whyNoExec(); why != "" {
		missing(t, why)
	}
	dns := enginetest.StartDNS(t, map[string]netip.Addr{"here.test": enginetest.Loopback, "closed.test": enginetest.Loopback})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	last := runServer(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
admin: {socket: off}
dns: {resolvers: ["%s"]}
rules: [{to: forbidden.test, via: reject}, {via: direct}]
`, dns.Addr))
	middle := runServer(t, fmt.Sprintf(`
tun: off
listen: {socks: SELF}
admin: {socket: off}
upstreams: {last: "socks5h://%s"}
rules: [{via: last}]
`, last))
	closed := outboundtest.ClosedPort(t, enginetest.Loopback).Port()
	open := listener.Addr().(*net.TCPAddr).Port
	for hops, first := range map[string]netip.AddrPort{"two": last, "three": middle} {
		t.Run(hops, func(t *testing.T) {
			config := filepath.Join(t.TempDir(), "exec.yaml")
			text := fmt.Sprintf("upstreams: {first: \"socks5h://%s\"}\nrules: [{via: first}]\n", first)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			wants := [][2]string{
				{fmt.Sprintf("here.test:%d", open), "connected"},
				{fmt.Sprintf("closed.test:%d", closed), "ECONNREFUSED"},
				{"nx.test:80", "EHOSTUNREACH"},
				{"forbidden.test:80", "EHOSTUNREACH"}, // what Linux makes of "prohibited"
			}
			var args []string
			for _, w := range wants {
				args = append(args, "tcp4", w[0])
			}
			results, log := runDial(t, config, args)
			for i, w := range wants {
				if results[i] != w[1] {
					t.Errorf("%s: %s, want %s\n%s", w[0], results[i], w[1], log)
				}
			}
		})
	}
}
