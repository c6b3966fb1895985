package dnsfake

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// digVersion is that of the transcripts, Debian's.
const digVersion = "DiG 9.18."

var update = flag.Bool("update", false, "write the transcripts of dig anew")

// TestTranscripts has dig ask what testdata/dig says, and compares what it prints: the
// whole of it, but for ids and times. A file is a number of commands, each with its
// output; -update writes the outputs.
//
// Names of what names are: *.denied.test are rejected, *.local.test local,
// *.both.test local-then-remote; about *.secret.test nobody may be asked. All others are
// remote, and their resolver knows the records below.
func TestTranscripts(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("dig is missing: install the Debian package bind9-dnsutils")
	}
	if err != nil {
		t.Skip("dig is missing: install the Debian package bind9-dnsutils")
	}
	if version, _ := exec.Command(dig, "-v").CombinedOutput(); !strings.HasPrefix(string(version), digVersion) && os.Getenv("CI") != "true" {
		t.Skipf("another dig than %s, which may print otherwise: %s", digVersion, version)
	}
	var long []string
	for range 9 {
		long = append(long, `"`+strings.Repeat("x", 110)+`"`)
	}
	upstream := zone(t,
		`www.test. 300 IN TXT "hello"`,
		"www.test. 300 IN MX 10 mx.test.",
		`www.test. 300 IN CAA 0 issue "ca.test"`,
		"www.test. 300 IN SOA ns.test. admin.test. 7 3600 1200 604800 300",
		"www.test. 300 IN HTTPS 1 . alpn=h3,h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1 ech=AAAA",
		"_dns.www.test. 300 IN SVCB 1 . mandatory=alpn,ipv4hint alpn=dot ipv4hint=192.0.2.1",
		"_sip._tcp.www.test. 300 IN SRV 0 5 5060 sip.test.",
		`www.test. 300 IN NAPTR 100 10 "s" "SIP+D2T" "" _sip._tcp.www.test.`,
		"host.local.test. 300 IN A 192.0.2.7",
		"host.local.test. 300 IN AAAA 2001:db8::7",
		"long.test. 300 IN TXT "+strings.Join(long, " "),
	)
	s := newServer(t, Options{Policy: func(name string) Policy {
		p := Policy{Mode: bySuffix(name), Resolver: upstream, Services: true}
		switch {
		case under(name, "denied.test"):
			return Policy{Denied: true}
		case under(name, "secret.test"):
			p.Resolver = nil
		}
		return p
	}})
	pc, l := listenBoth(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, []net.PacketConn{pc}, []net.Listener{l}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	port := pc.LocalAddr().(*net.UDPAddr).Port
	labels := map[string]string{
		"LONGEST":  strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("a", 61), // 255 octets on the wire
		"FAKE4":    s.mustLease(t, "www.test", false),
		"FAKE6":    s.mustLease(t, "www.test", true),
		"NOLEASE4": "198.18.200.200",
	}
	files, err := filepath.Glob("testdata/dig/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for line := range strings.Lines(string(want)) {
				args, ok := strings.CutPrefix(line, "$ dig ")
				if !ok {
					if strings.HasPrefix(line, "# ") {
						got.WriteString(line)
					}
					continue
				}
				for label, value := range labels {
					args = strings.ReplaceAll(args, label, value)
				}
				out, err := exec.Command(dig, append([]string{"-r", "@127.0.0.1", "-p", fmt.Sprint(port), "+nocmd", "+nostats", "+tries=1", "+timeout=20"}, strings.Fields(args)...)...).CombinedOutput()
				var exit *exec.ExitError
				if err != nil && !errors.As(err, &exit) {
					t.Fatal(err)
				}
				text := string(out)
				for label, value := range labels {
					text = strings.ReplaceAll(text, value, label)
				}
				fmt.Fprintf(&got, "%s%s\n", line, masked(text))
				if err != nil {
					fmt.Fprintf(&got, "%v\n\n", err)
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("%s: dig prints\n%s\nwant\n%s", file, got.String(), want)
			}
		})
	}
}

var (
	digID     = regexp.MustCompile(`id: \d+`)
	digBlanks = regexp.MustCompile(`\n\n+`)
	digTabs   = regexp.MustCompile(`\t+`)
)

// masked takes out of dig's output what differs each time.
func masked(out string) string {
	out = digID.ReplaceAllString(out, "id: N")
	out = digTabs.ReplaceAllString(out, "\t")
	return strings.TrimPrefix(digBlanks.ReplaceAllString(out, "\n"), "\n")
}

// listenBoth opens a socket and a listener on one port.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 50 {
		var l net.Listener
		var pc net.PacketConn
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			continue
		}
		if pc, err = net.ListenPacket("udp", l.Addr().String()); err != nil {
			l.Close()
			continue
		}
		return pc, l
	}
	t.Fatal(err)
	return nil, nil
}

func (s *Server) mustLease(t *testing.T, name string, v6 bool) string {
	t.Helper()
	addr, err := s.pool.Lease(name, v6)
	if err != nil {
		t.Fatal(err)
	}
	return addr.String()
}
