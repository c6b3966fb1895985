package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/bench/mmsg"
	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
)

// perfNames is how many names dnsperf asks for, over and over.
const perfNames = 10_000

// BenchmarkDNSPerf has dnsperf ask for the addresses of names that have leases, of
// tunroute's listener (dns.listen) and, in turns, of a server that sends each question
// back as it came: by many datagrams at once, as tunroute's listener does, and one by
// one. All are on one processor of Go's, and dnsperf on another if there is one.
//
// An iteration is a second of each; the figures are medians over them. cpu-µs is what
// an answer costs this process, which other work on the machine changes least; p99 is
// at half of the rate that tunroute reached. The allocations are those of the process,
// and dnsperf's own start is some of them.
func BenchmarkDNSPerf(b *testing.B) {
	dnsperf, err := exec.LookPath("dnsperf")
	if err != nil && os.Getenv("CI") == "true" {
		b.Fatal("dnsperf is missing: install the Debian package dnsperf")
	}
	if err != nil {
		b.Skip("dnsperf is missing: install the Debian package dnsperf")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	listener := outboundtest.ClosedPort(b, enginetest.Loopback)
	l := enginetest.Start(b, "rules: [{via: reject}]\ndns: {listen: ['%s']}\nlog: {level: error}\n", listener)
	l.Lookup("ip4", "ready.test")

	var questions strings.Builder
	for i := range perfNames {
		fmt.Fprintf(&questions, "host%d.example.test A\n", i)
	}
	file := filepath.Join(b.TempDir(), "questions")
	if err := os.WriteFile(file, []byte(questions.String()), 0o644); err != nil {
		b.Fatal(err)
	}
	ways := []*perfWay{
		{name: "tunroute", at: listener},
		{name: "echo", at: echoMany(b)},
		{name: "echo-single", at: echoOne(b)},
	}
	var before, after runtime.MemStats
	perf := func(w *perfWay, args ...string) (string, time.Duration) {
		args = append([]string{"-s", w.at.Addr().String(), "-p", strconv.Itoa(int(w.at.Port())), "-d", file, "-c", "4", "-q", "400"}, args...)
		start := cpuTime(b)
		out, err := exec.Command(dnsperf, args...).CombinedOutput()
		if err != nil {
			b.Fatalf("dnsperf %q: %v\n%s", args, err, out)
		}
		return string(out), cpuTime(b) - start
	}
	perf(ways[0], "-n", "1") // so that all names have leases
	for b.Loop() {
		for _, w := range ways {
			runtime.ReadMemStats(&before)
			out, cpu := perf(w, "-l", "1")
			runtime.ReadMemStats(&after)
			n := perfFigure(b, out, `Queries completed:\s+(\d+)`)
			w.allocs = append(w.allocs, float64(after.Mallocs-before.Mallocs)/n)
			w.rate = append(w.rate, perfFigure(b, out, `Queries per second:\s+([\d.]+)`))
			w.cpu = append(w.cpu, float64(cpu.Microseconds())/n)
			w.lost = append(w.lost, perfFigure(b, out, `Queries lost:\s+(\d+)`))
		}
		for _, w := range ways {
			half := strconv.Itoa(int(ways[0].rate[len(ways[0].rate)-1] / 2))
			out, _ := perf(w, "-l", "1", "-Q", half, "-v")
			w.p99 = append(w.p99, 1e6*perfPercentile(b, out, 99))
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, w := range ways {
		b.ReportMetric(median(w.rate), w.name+"-answers/s")
		b.ReportMetric(median(w.cpu), w.name+"-cpu-µs")
		b.ReportMetric(median(w.p99), w.name+"-p99-µs")
		b.ReportMetric(median(w.lost), w.name+"-lost")
		b.ReportMetric(median(w.allocs), w.name+"-allocs")
	}
	if a := median(ways[0].allocs); a > 0.1 {
		b.Errorf("%.2f allocations for an answer, want none", a)
	}
}

// perfWay is a server and what was seen of it.
type perfWay struct {
	name string
	at   netip.AddrPort

	rate, cpu, p99, lost, allocs []float64
}

// perfFigure returns what dnsperf says.
func perfFigure(b *testing.B, out, pattern string) float64 {
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		b.Fatalf("dnsperf says nothing of %s:\n%s", pattern, out)
	}
	f, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// perfPercentile returns a percentile of the latencies, in seconds, that dnsperf -v
// writes: "> NOERROR host1.example.test A 0.000123".
func perfPercentile(b *testing.B, out string, percent float64) float64 {
	var all []float64
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 5 && f[0] == ">" {
			if s, err := strconv.ParseFloat(f[4], 64); err == nil {
				all = append(all, s)
			}
		}
	}
	if len(all) == 0 {
		b.Fatalf("dnsperf -v says nothing:\n%.1000s", out)
	}
	slices.Sort(all)
	return all[int(math.Ceil(float64(len(all))*percent/100))-1]
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// echoOne starts a server that sends datagrams back one by one.
func echoOne(b *testing.B) netip.AddrPort {
	return outboundtest.ServeUDP(b, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, p []byte) {
		p[2] |= 0x80 // an answer
		c.WriteToUDPAddrPort(p, from)
	})
}

// echoMany starts a server that sends datagrams back as many at a time as tunroute
// does.
func echoMany(b *testing.B) netip.AddrPort {
	c, err := mmsg.Listen(netip.AddrPortFrom(enginetest.Loopback, 0))
	if err != nil {
		b.Fatal(err)
	}
	const batch = 32
	r, err := mmsg.NewReader(c, batch, 4096, false)
	if err != nil {
		b.Fatal(err)
	}
	w, err := mmsg.NewWriter(c, batch, false)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	b.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		for {
			n, err := r.Read()
			if err != nil {
				return
			}
			for i := range n {
				p := r.Message(i)
				p[2] |= 0x80
				w.Add(p, r.From(i))
			}
			if w.Flush() != nil {
				return
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}
