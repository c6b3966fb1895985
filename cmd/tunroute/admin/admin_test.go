package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"tunroute/cmd/tunroute/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a daemon with what it is given.
type fake struct {
	status  Status
	flows   []Flow
	stats   engine.Stats
	answer  Answer
	leases  []Lease
	refusal error
	reloads int
}

func (f *fake) Status() Status      { return f.status }
func (f *fake) Flows() []Flow       { return f.flows }
func (f *fake) Stats() engine.Stats { return f.stats }
func (f *fake) Leases() []Lease     { return f.leases }
func (f *fake) FindLease(of string) (Lease, error) {
	i := slices.IndexFunc(f.leases, func(l Lease) bool { return l.Name == of })
	if i < 0 {
		return Lease{}, errors.New(of + " has no lease")
	}
	return f.leases[i], nil
}
func (f *fake) DropLease(of string) (Lease, error) {
	l, err := f.FindLease(of)
	f.leases = slices.DeleteFunc(f.leases, func(l Lease) bool { return l.Name == of })
	return l, err
}
func (f *fake) Ask(_ context.Context, name, qtype string) (Answer, error) {
	f.answer.Name, f.answer.Type = name, qtype
	return f.answer, f.refusal
}
func (f *fake) Reload() error { f.reloads++; return f.refusal }

// serve has d answer at a socket until the test ends.
func serve(t *testing.T, d Daemon) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "tun.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, NewHandler(d, "/etc/t.yaml")) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return path
}

// TestAnswersArriveAsTheyWere: what the daemon says is what the command gets.
func TestAnswersArriveAsTheyWere(t *testing.T) {
	now := time.Now().Round(time.Second).UTC()
	d := &fake{
		status: Status{Version: "v1", PID: 7, Config: "t.yaml", Started: now, Device: "tun9", Flows: 2, Up: 1 << 40, Groups: []Group{
			{"g", []Member{{Name: "a", Network: "tcp", Bad: true, Cause: "no answer", Err: "a: negotiate: time-out", Since: now}, {Name: "b", Network: "tcp", Took: time.Millisecond}}},
		}},
		flows: []Flow{{Source: netip.MustParseAddrPort("10.0.0.1:5"), Target: "example.org:443", Inbound: "tun", Rule: 3, Line: 8, Out: "g", Start: now, Up: 1, Down: 2}},
	}
	path := serve(t, d)
	c := Dial(path, "")
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.status, status); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	flows, err := c.Flows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.flows, flows, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	d.answer = Answer{Rcode: "NOERROR", Records: []string{"a b"}, Mode: "remote", Source: "lease", Rules: []Rule{{3, 8, "g"}}}
	answer, err := c.Ask(t.Context(), "a&b.test", "MX")
	if diff := cmp.Diff(d.answer, answer); err != nil || answer.Name != "a&b.test" || diff != "" {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
	d.leases = []Lease{
		{"a.test", netip.MustParseAddr("198.18.0.9"), netip.MustParseAddr("fd00::9"), time.Second, 0, false},
		{"b.test", netip.MustParseAddr("198.18.0.8"), netip.MustParseAddr("fd00::8"), 0, 2, true},
	}
	addrs := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	for of, want := range map[string][]Lease{"": d.leases, "b.test": d.leases[1:]} {
		leases, err := c.Leases(t.Context(), of)
		if diff := cmp.Diff(want, leases, addrs); err != nil || diff != "" {
			t.Errorf("leases of %q: %v, -want +got\n%s", of, err, diff)
		}
	}
	if l, err := c.DropLease(t.Context(), "a.test"); err != nil || l.Name != "a.test" || len(d.leases) != 1 {
		t.Errorf("drop: %+v, %v", l, err)
	}
	if _, err := c.DropLease(t.Context(), "a.test"); err == nil || err.Error() != "a.test has no lease" {
		t.Errorf("drop again: %v", err)
	}
	if err := c.Reload(t.Context()); err != nil || d.reloads != 1 {
		t.Errorf("reload: %v, %d times", err, d.reloads)
	}
	d.refusal = errors.New("t.yaml:3:1: the config has no key \"x\"\n    3 | x: y")
	if err := c.Reload(t.Context()); err == nil || err.Error() != d.refusal.Error() {
		t.Errorf("reload with a bad config: %v", err)
	}
	d.refusal = nil
	if err := Dial(path, "/etc/t.yaml").Reload(t.Context()); err != nil || d.reloads != 3 {
		t.Errorf("reload by the name of its config: %v, %d times", err, d.reloads)
	}
	if err := Dial(path, "/etc/two.yaml").Reload(t.Context()); err == nil || d.reloads != 3 ||
		!strings.Contains(err.Error(), "runs with /etc/t.yaml and not with /etc/two.yaml: ") {
		t.Errorf("reload of a daemon with another config: %v, %d times", err, d.reloads)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != socketMode {
		t.Errorf("the socket has the mode %o, want %o", got, socketMode)
	}
}

// TestSocketsOfOthers: a socket that was left behind is replaced; one that somebody
// answers at, and what is no socket, is not; and a daemon removes its own only.
func TestSocketsOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()

	first, err := Listen(path)
	if err != nil {
		t.Fatalf("beside a socket that was left behind: %v", err)
	}
	if _, err := Listen(path); !errors.Is(err, engine.ErrInUse) {
		t.Errorf("beside a daemon that answers: %v, want ErrInUse", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the end of one daemon took the socket of another: %v", err)
	} else {
		c.Close()
	}
	second.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

// TestNobodyAnswers: the error says where, and what to do.
func TestNobodyAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	want := "no daemon answers at " + path + ": is `tunroute run` running"
	if err := Dial(path, "").Reload(t.Context()); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestMetricsPage: docs/admin.md has the metrics that there are, and each has its
// figure.
func TestMetricsPage(t *testing.T) {
	d := &fake{status: Status{Started: time.Now(), Groups: []Group{{"g", []Member{{Name: "a", Network: "udp", Bad: true, Took: time.Second}}}}}}
	d.stats.Router.TCP, d.stats.Pool.Leases = 17, 4
	w := httptest.NewRecorder()
	NewMetrics(d).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text := w.Body.String()
	for _, want := range []string{
		"\ntunroute_router_tcp_flows_total 17\n",
		"\ntunroute_dns_leases 4\n",
		"\ntunroute_group_member_bad{group=\"g\",member=\"a\",net=\"udp\"} 1\n",
		"\ntunroute_group_member_probe_seconds{group=\"g\",member=\"a\",net=\"udp\"} 1\n",
		"\ngo_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	var have []string
	for _, m := range regexp.MustCompile(`(?m)^# HELP (tunroute_\S+) (.*)$`).FindAllStringSubmatch(text, -1) {
		have = append(have, fmt.Sprintf("| `%s` | %s |", m[1], m[2]))
	}
	slices.Sort(have)
	page, err := os.ReadFile("../docs/admin.md")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile("(?m)^\\| `tunroute_.*$").FindAllString(string(page), -1)
	slices.Sort(said)
	if diff := cmp.Diff(have, said); diff != "" {
		t.Errorf("docs/admin.md: -metrics +page\n%s", diff)
	}
}
