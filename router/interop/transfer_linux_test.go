package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// A client that has said all still gets its answer, of which the server knows
// what it is only then.
func TestHalfCloseGetsItsAnswer(t *testing.T) {
	lab.Need(t, "nc", "netcat-openbsd")
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	ssh := "socks5h://" + startServer(t, l, servers.OpenSSH, servers.Options{})
	asEverybody(t, func(t *testing.T, u user) {
		for _, tt := range []struct {
			name    string
			proxies []string
		}{
			{"direct", nil},
			{"danted", []string{danted}},
			{"ssh -D", []string{ssh}},
			{"ssh -D, danted", []string{ssh, danted}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				sh := startShell(t, l.Host, u.exec(tt.proxies, "sh")...)
				for _, a := range []netip.Addr{lab.Target4(1), lab.Target6(1)} {
					// All that fits into one segment, and what does not.
					for _, size := range []int{12, 300_000} {
						out := sh.Must(t, "head -c %d /dev/zero | nc -N %s %d", size, a, lab.AnswerPort)
						if want := fmt.Sprintf("%d bytes\n", size); out != want {
							t.Errorf("%v: nc -N printed %q, want %q", a, out, want)
						}
					}
				}
			})
		}
	})
}

// transferSize is how much goes each way; through a server more than without.
func transferSize(proxies []string) int64 {
	switch {
	case light():
		return 16 << 20
	case len(proxies) == 0:
		return 128 << 20
	}
	return 1 << 30
}

// What arrives is what was sent, in both directions of a connection at once.
func TestStreamsArriveAsTheyWere(t *testing.T) {
	lab.Need(t, "nc", "netcat-openbsd")
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	seed := uint64(0)
	for _, tt := range []struct {
		name    string
		proxies []string
	}{
		{"direct", nil},
		{"danted", []string{danted}},
	} {
		size := transferSize(tt.proxies)
		for _, a := range []netip.Addr{lab.Target4(1), lab.Target6(1)} {
			t.Run(fmt.Sprintf("%s %v", tt.name, a), func(t *testing.T) {
				seed++
				want := sumsOf(seed, size)
				start := time.Now()
				out := must(t, l.Host, rootUser.exec(tt.proxies, "sh", "-c", stream(a, seed, size))...)
				took := time.Since(start)
				checkStream(t, l, seed, want, out)
				t.Logf("%d MiB each way in %v: %.0f MB/s each way at once", size>>20, took.Round(time.Millisecond), float64(size)/1e6/took.Seconds())
			})
		}
	}
}

// stream is a shell command that prints the sum of what comes back.
func stream(a netip.Addr, seed uint64, size int64) string {
	return fmt.Sprintf("%s generate %d %d | nc -N %s %d | sha256sum", lab.Self, seed, size, a, lab.StreamPort)
}

// The same with many connections at once, to all targets.
func TestManyStreamsArriveAsTheyWere(t *testing.T) {
	l := newLab(t)
	danted := "socks5h://" + startServer(t, l, servers.Dante, dante)
	const flows = 200
	for _, tt := range []struct {
		name    string
		proxies []string
	}{
		{"direct", nil},
		{"danted", []string{danted}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			size := transferSize(tt.proxies) / flows
			args := []string{lab.Self, "streams", fmt.Sprint(size)}
			want := make([]sums, flows)
			for seed := range want {
				want[seed] = sumsOf(uint64(seed), size)
				a := lab.Target4(1 + seed%lab.Targets)
				if seed/lab.Targets%2 == 1 {
					a = lab.Target6(1 + seed%lab.Targets)
				}
				args = append(args, a.String())
			}
			start := time.Now()
			out := must(t, l.Host, rootUser.exec(tt.proxies, args...)...)
			took := time.Since(start)
			got := strings.Split(strings.TrimSpace(out), "\n")
			if len(got) != flows {
				t.Fatalf("%d lines for %d flows:\n%s", len(got), flows, out)
			}
			for seed, sum := range got {
				checkStream(t, l, uint64(seed), want[seed], sum)
			}
			t.Logf("%d flows with %d KiB each way in %v", flows, size>>10, took.Round(time.Millisecond))
		})
	}
}

// sums are those of what a server sends and of what it gets.
type sums struct{ down, up string }

func sumsOf(seed uint64, size int64) sums {
	return sums{lab.Sum(seed, size), lab.Sum(seed+lab.UpSeed, size)}
}

// checkStream compares what both sides have got with what was sent.
func checkStream(t *testing.T, l *lab.Lab, seed uint64, want sums, printed string) {
	t.Helper()
	down, _, _ := strings.Cut(printed, " ") // sha256sum prints the file's name too
	if got := (sums{down, l.Servers.Received(seed)}); got != want {
		t.Errorf("stream %d: arrived %v, want %v", seed, got, want)
	}
}
