package interop

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// udpResult is what the role "udp" prints.
type udpResult struct {
	From  []netip.AddrPort // who answered, for each datagram; the zero AddrPort if nobody
	Err   []string         // the errno of each datagram
	Took  []time.Duration  // to the answer or errno
	Wrong []string         // answers that differ from what was sent
	Lost  int              // how many had to be sent again
}

// udp runs the role in a shell: a datagram of each size to each target, from one
// socket.
func udp(t *testing.T, sh *lab.Shell, args ...string) udpResult {
	t.Helper()
	var r udpResult
	out := sh.Must(t, "%s udp %s", lab.Self, strings.Join(args, " "))
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	for _, wrong := range r.Wrong {
		t.Error(wrong)
	}
	if r.Lost > 0 {
		t.Logf("udp %s: %d datagrams were sent again", strings.Join(args, " "), r.Lost)
	}
	return r
}

func TestUDPEcho(t *testing.T) {
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range []struct {
			name    string
			proxies []string
			max     int // payload
		}{
			{"direct", nil, 65507},
			// A header of SOCKS before it: 10 bytes for IPv4, 22 for IPv6.
			{"danted", []string{danted}, 65507 - 22},
		} {
			t.Run(tt.name, func(t *testing.T) {
				sh := startShell(t, l.Host, u.exec(tt.proxies, "sh")...)
				for _, targets := range [][2]netip.Addr{
					{lab.Target4(1), lab.Target4(2)},
					{lab.Target6(1), lab.Target6(2)},
				} {
					a, b := netip.AddrPortFrom(targets[0], lab.EchoPort), netip.AddrPortFrom(targets[1], lab.EchoPort)
					t.Run(fmt.Sprintf("sizes %v", a.Addr()), func(t *testing.T) {
						for _, size := range []int{0, 1, 1200, 8 << 10, 60 << 10, tt.max} {
							r := udp(t, sh, fmt.Sprint(size), a.String())
							if r.From[0] != a {
								t.Errorf("%d bytes to %v: answered by %v, %s", size, a, r.From[0], r.Err[0])
							}
						}
					})
					t.Run(fmt.Sprintf("two targets, one socket %v", a.Addr()), func(t *testing.T) {
						r := udp(t, sh, "100", a.String(), b.String(), a.String(), b.String())
						if want := []netip.AddrPort{a, b, a, b}; !slices.Equal(r.From, want) {
							t.Errorf("answered by %v, %v, want %v", r.From, r.Err, want)
						}
					})
				}
				t.Run("name", func(t *testing.T) {
					for _, kind := range []string{"A", "AAAA"} {
						fake := parseAddr(t, sh.Must(t, "dig +short %s %s", lab.PublicName, kind))
						to := netip.AddrPortFrom(fake, lab.EchoPort)
						// The answer comes from the address that the
						// program has for the name.
						if r := udp(t, sh, "100", to.String()); r.From[0] != to {
							t.Errorf("%v: answered by %v, %s", to, r.From[0], r.Err[0])
						}
					}
				})
			})
		}
	})
}

// Datagrams in numbers, both ways, counted by iperf3.
func TestUDPOfIperf(t *testing.T) {
	lab.Need(t, "iperf3", "iperf3")
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	listens := startIperf(t, l, lab.Target4(1))
	for _, tt := range []struct {
		name    string
		proxies []string
	}{
		{"direct", nil},
		{"danted", []string{danted}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sh := startShell(t, l.Host, rootUser.exec(tt.proxies, "sh")...)
			for _, way := range []string{"", "--reverse"} {
				// Where the machine stands still, full buffers of sockets lose
				// datagrams; what a router loses it loses every time.
				sent, lost := iperfUDP(t, sh, listens, way)
				for try := 1; try < 8 && lost > sent/50; try++ {
					t.Logf("iperf3 %s: %d of %d datagrams lost", way, lost, sent)
					sent, lost = iperfUDP(t, sh, listens, way)
				}
				if lost > sent/50 {
					t.Errorf("iperf3 %s: %d of %d datagrams lost, and too many each time before", way, lost, sent)
				}
			}
		})
	}
}

// iperfUDP sends datagrams of 1400 bytes through a shell, or has them sent, and
// returns how many, and how many of them did not arrive.
func iperfUDP(t *testing.T, sh *lab.Shell, listens <-chan bool, way string) (sent, lost int) {
	t.Helper()
	if !<-listens {
		t.Fatal("iperf3 has ended")
	}
	const bytes = 1_000_000
	out := sh.Must(t, "iperf3 --client %s --udp --length 1400 --bitrate 10M --bytes %d --json %s", lab.Target4(1), bytes, way)
	var r struct {
		End struct {
			Sum struct {
				Packets int `json:"packets"`
				Lost    int `json:"lost_packets"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if r.End.Sum.Packets < bytes/1400 {
		t.Fatalf("iperf3 has counted %d datagrams:\n%s", r.End.Sum.Packets, out)
	}
	return r.End.Sum.Packets, r.End.Sum.Lost
}

// startIperf starts iperf3 as a server on srv. Before each run of a client the
// channel says that it listens: it closes its listener after each.
func startIperf(t *testing.T, l *lab.Lab, at netip.Addr) (listens <-chan bool) {
	t.Helper()
	cmd := l.Srv.Command("iperf3", "--server", "--forceflush", "--bind", at.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	each := make(chan bool, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(each)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "Server listening") {
				each <- true
			}
		}
	})
	t.Cleanup(func() {
		cmd.Process.Kill()
		for range each {
		}
		reading.Wait()
		cmd.Wait()
	})
	return each
}

// Where UDP is not carried the program hears of it with its first datagram, so
// that QUIC falls back to TCP without waiting for a timeout.
func TestUDPThatIsNotCarriedIsRefused(t *testing.T) {
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	micro := startServer(t, l, servers.Microsocks, servers.Options{})
	ssh := startServer(t, l, servers.OpenSSH, servers.Options{})
	reject := lab.File(t, "tunroute.yaml", "rules:\n  - {proto: udp, via: reject}\n  - {via: direct}\n")
	const quic = "1200" // bytes of a first flight (RFC 9000 §14.1)
	tests := []struct {
		name string
		args []string
	}{
		{"socks4", []string{"--proxy", "socks4://" + danted}},
		{"socks4a", []string{"--proxy", "socks4a://" + ssh}},
		{"ssh -D", []string{"--proxy", "socks5h://" + ssh}},
		{"microsocks", []string{"--proxy", "socks5h://" + micro}},
		{"danted, microsocks", []string{"--proxy", "socks5h://" + danted, "--proxy", "socks5h://" + micro}},
		{"rule", []string{"-c", reject}},
	}
	count := 20
	if light() {
		count = 3
	}
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				sh := startShell(t, l.Host, u.tunroute(append(append([]string{"exec"}, tt.args...), "--", "sh")...)...)
				var took []time.Duration
				for _, a := range []netip.Addr{lab.Target4(1), lab.Target6(1)} {
					to := netip.AddrPortFrom(a, 443).String()
					for range count {
						r := udp(t, sh, quic, "connect", to) // a new port each time
						if r.Err[0] != "connection refused" {
							t.Fatalf("%v: answered by %v, %q, want a refusal", to, r.From[0], r.Err[0])
						}
						took = append(took, r.Took[0])
					}
				}
				first := took[0]
				slices.Sort(took)
				t.Logf("refused after %v in the median, the first after %v", took[len(took)/2], first)
			})
		}
	})
}

func parseAddr(t *testing.T, s string) netip.Addr {
	t.Helper()
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return a
}
