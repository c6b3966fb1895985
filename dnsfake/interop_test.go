package dnsfake_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"tunroute/dnsfake"
	"tunroute/dnsfake/resolve"
)

// These tests talk to programs that this project did not write: dig is the client
// of the Server, dnsmasq the upstream of the Resolver, all on loopback.
//
//	dig ──► Server ──► Resolver ──► dnsmasq

// tool returns the path of a program, or skips the test; with CI=true it fails.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: install the Debian package %s", name, debian)
	}
	if err != nil {
		t.Skipf("%s is missing: install the Debian package %s", name, debian)
	}
	return path
}

// records is what dnsmasq knows; every other name under test does not exist.
var records = []string{
	"--local=/test/",
	"--host-record=www.local.test,192.0.2.1,2001:db8::1",
	"--host-record=v4.local.test,192.0.2.4",
	"--host-record=v4.both.test,192.0.2.5",
	"--cname=alias.local.test,www.local.test",
	"--txt-record=leased.test,hello",
	"--txt-record=big.test," + strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 200)+",", 10), ","),
	"--mx-host=leased.test,mail.test,10",
	"--address=/fake.local.test/198.18.7.7",
	"--ptr-record=1.2.0.192.in-addr.arpa,www.local.test",
}

// startDnsmasq starts dnsmasq with the records and returns where it listens.
func startDnsmasq(t *testing.T) netip.AddrPort {
	t.Helper()
	path := tool(t, "dnsmasq", "dnsmasq-base")
	var last string
	for range 5 { // somebody may take the port meanwhile
		addr := freePort(t)
		cmd := exec.Command(path, append([]string{
			"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-ping",
			"--pid-file", "--log-facility=-", "--bind-interfaces", "--listen-address=127.0.0.1",
			fmt.Sprintf("--port=%d", addr.Port()),
		}, records...)...)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if last = lines.Text(); strings.Contains(last, "started, version") {
				go func() { _, _ = io.Copy(io.Discard, stderr) }()
				t.Cleanup(func() {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				})
				return addr
			}
		}
		_ = cmd.Wait()
	}
	t.Fatalf("dnsmasq does not start: %s", last)
	return netip.AddrPort{}
}

// freePort returns a loopback port that is free for UDP and TCP.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		l.Close()
		if err == nil {
			pc.Close()
			return l.Addr().(*net.TCPAddr).AddrPort()
		}
	}
	t.Fatal("no port is free for UDP and TCP")
	return netip.AddrPort{}
}

// startServer serves on loopback, by UDP and TCP on the same port.
func startServer(t *testing.T, o dnsfake.Options) netip.AddrPort {
	t.Helper()
	s, err := dnsfake.New(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Serve(ctx, []net.PacketConn{pc}, []net.Listener{l}); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() {
			cancel()
			wg.Wait()
		})
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	t.Fatal("no port is free for UDP and TCP")
	return netip.AddrPort{}
}

func modes(name string) dnsfake.Mode {
	switch {
	case strings.HasSuffix(name, ".local.test"), strings.HasSuffix(name, ".in-addr.arpa"):
		return dnsfake.Local
	case strings.HasSuffix(name, ".both.test"):
		return dnsfake.LocalThenRemote
	}
	return dnsfake.Remote
}

func TestDig(t *testing.T) {
	dig := tool(t, "dig", "bind9-dnsutils")
	upstream := startDnsmasq(t)
	resolver, err := resolve.New(resolve.Options{Servers: []resolve.Server{resolve.Plain(upstream, nil)}})
	if err != nil {
		t.Fatal(err)
	}
	defer resolver.Close()
	pool, err := dnsfake.NewPool(dnsfake.PoolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addr := startServer(t, dnsfake.Options{Pool: pool, Policy: func(name string) dnsfake.Policy {
		return dnsfake.Policy{Mode: modes(name), Resolver: resolver}
	}})
	a4, err4 := pool.Lease("leased.test", false)
	a6, err6 := pool.Lease("leased.test", true)
	if err := errors.Join(err4, err6); err != nil {
		t.Fatal(err)
	}

	big := strings.Repeat("x", 200)
	for _, tt := range []struct {
		args string
		want []string // in dig's output, where white space counts as one space
		not  []string
	}{
		// dig sends EDNS with a cookie unless told not to.
		{"leased.test A", []string{"status: NOERROR", "leased.test. 1 IN A " + a4.String(), "; EDNS: version: 0, flags:; udp: 1232"}, []string{"COOKIE", " aa ", " ad "}},
		{"leased.test AAAA", []string{"leased.test. 1 IN AAAA " + a6.String()}, nil},
		{"+tcp leased.test A", []string{"leased.test. 1 IN A " + a4.String(), "(TCP)"}, nil},
		{"+tcp +keepopen leased.test A leased.test AAAA", []string{a4.String(), a6.String()}, nil},
		{"+noedns leased.test A", []string{a4.String()}, []string{"EDNS"}},
		{"+bufsize=512 leased.test A", []string{a4.String(), "EDNS: version: 0"}, nil},
		{"+dnssec leased.test A", []string{a4.String(), "EDNS: version: 0, flags: do;"}, nil},
		{"+nocookie +norec +cd leased.test A", []string{a4.String(), "flags: qr ra cd;"}, []string{" rd"}},
		{"lEaSeD.TeSt A", []string{";lEaSeD.TeSt. IN A", "lEaSeD.TeSt. 1 IN A " + a4.String()}, nil},
		{"-x " + a4.String(), []string{" 1 IN PTR leased.test."}, nil},
		{"-x " + a6.String(), []string{" 1 IN PTR leased.test."}, nil},
		{"-x 198.18.200.200", []string{"status: NXDOMAIN", ". 1 IN SOA . nobody.invalid. 1 3600 1200 604800 1"}, nil},
		{"-x 192.0.2.1", []string{"PTR www.local.test."}, nil},
		{"leased.test HTTPS", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "IN SOA"}, nil},
		{"_dns.leased.test SVCB", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1"}, nil},
		{"leased.test ANY", []string{`leased.test. 1 IN HINFO "RFC8482" ""`, "(TCP)"}, nil}, // dig's way for ANY
		{"+notcp leased.test ANY", []string{`leased.test. 1 IN HINFO "RFC8482" ""`, "(UDP)"}, nil},
		{"localhost AAAA", []string{"IN AAAA ::1"}, nil},
		{"use-application-dns.net A", []string{"status: NXDOMAIN"}, nil},
		{"_dns.resolver.arpa SVCB", []string{"status: NOERROR", "ANSWER: 0"}, nil},
		{"version.bind CH TXT", []string{"status: REFUSED"}, nil},
		{"+opcode=notify leased.test A", []string{"status: NOTIMP"}, nil},
		{"+opcode=15 leased.test A", []string{"status: NOTIMP"}, nil},
		{"+header-only leased.test A", []string{"status: FORMERR"}, nil},
		{"+edns=1 +noednsneg leased.test A", []string{"status: BADVERS"}, nil},
		{"+edns=1 leased.test A", []string{a4.String()}, nil}, // asks again with version 0
		{"+ednsopt=65001:abcd leased.test A", []string{a4.String()}, []string{"OPT=65001"}},
		{"+subnet=192.0.2.0/24 leased.test A", []string{a4.String()}, []string{"CLIENT-SUBNET"}},
		{"+noidnin +noidnout b\xfccher.test A", []string{"status: NOERROR", "ANSWER: 1"}, nil},
		{". NS", []string{"status: REFUSED"}, nil}, // what dnsmasq says without an upstream of its own

		// By way of dnsmasq.
		{"leased.test TXT", []string{`leased.test. 0 IN TXT "hello"`}, nil},
		{"lEaSeD.test MX", []string{";lEaSeD.test. IN MX", "MX 10 mail.test."}, nil},
		{"www.local.test A", []string{"www.local.test. 0 IN A 192.0.2.1"}, nil},
		{"+noedns wWw.local.test AAAA", []string{";wWw.local.test. IN AAAA", "IN AAAA 2001:db8::1"}, []string{"EDNS"}},
		{"+tcp alias.local.test A", []string{"alias.local.test. 0 IN CNAME www.local.test.", "IN A 192.0.2.1"}, nil},
		{"nx.local.test A", []string{"status: NXDOMAIN"}, nil},
		{"fake.local.test A", []string{"status: SERVFAIL"}, []string{"198.18.7.7"}},
		{"v4.both.test A", []string{"IN A 192.0.2.5"}, nil},
		{"v4.both.test AAAA", []string{"status: NOERROR", "ANSWER: 0"}, nil},
		{"nx.both.test A", []string{"status: NOERROR", "nx.both.test. 1 IN A 198.1"}, nil},
		{"+ignore big.test TXT", []string{" tc "}, []string{big}},
		{"+noedns +ignore big.test TXT", []string{" tc "}, []string{big}},
		{"+bufsize=4096 big.test TXT", []string{"Truncated, retrying in TCP mode", big}, nil},
		{"+tcp big.test TXT", []string{big}, []string{" tc "}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := append([]string{"-r", "@127.0.0.1", "-p", fmt.Sprint(addr.Port()), "+tries=1", "+timeout=10"}, strings.Fields(tt.args)...)
			out, err := exec.Command(dig, args...).CombinedOutput()
			got := strings.Join(strings.Fields(string(out)), " ")
			if err != nil {
				t.Errorf("dig: %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q", want)
				}
			}
			for _, not := range append(tt.not, "WARNING", "bad packet", "mismatch", "warning") {
				if strings.Contains(got, not) {
					t.Errorf("there is %q", not)
				}
			}
			if t.Failed() {
				t.Logf("dig %s\n%s", strings.Join(args, " "), out)
			}
		})
	}
}

func TestResolverAgainstDnsmasq(t *testing.T) {
	upstream := startDnsmasq(t)
	dead := freePort(t) // refuses at once
	r, err := resolve.New(resolve.Options{Servers: []resolve.Server{resolve.Plain(dead, nil), resolve.Plain(upstream, nil)}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := resolve.NewCache(resolve.CacheOptions{Choose: func(string) *resolve.Resolver { return r }})
	defer c.Close()
	for _, tt := range []struct {
		network, host, want string
		notFound            bool
	}{
		{"ip", "www.local.test", "[192.0.2.1 2001:db8::1]", false},
		{"ip4", "WWW.Local.Test.", "[192.0.2.1]", false},
		{"ip6", "www.local.test", "[2001:db8::1]", false},
		{"ip", "alias.local.test", "[192.0.2.1 2001:db8::1]", false},
		{"ip", "v4.local.test", "[192.0.2.4]", false},
		{"ip6", "v4.local.test", "", true},
		{"ip", "nx.test", "", true},
	} {
		addrs, err := c.LookupNetIP(t.Context(), tt.network, tt.host)
		if tt.notFound {
			var e *net.DNSError
			if !errors.As(err, &e) || !e.IsNotFound {
				t.Errorf("%s %s: %v, %v, want not found", tt.network, tt.host, addrs, err)
			}
			continue
		}
		if got := fmt.Sprint(addrs); err != nil || got != tt.want {
			t.Errorf("%s %s: %s, %v, want %s", tt.network, tt.host, got, err, tt.want)
		}
	}
}
