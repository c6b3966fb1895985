package dnsfake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// openPool returns a pool that keeps its leases in a file. Nothing writes it: the
// test runs the pool, or does in its place what run does.
func openPool(t testing.TB, path string, o PoolOptions) *Pool {
	t.Helper()
	p := newPool(t, o)
	if err := p.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.store.file != nil {
			p.store.file.Close()
		}
	})
	return p
}

// runPool runs a pool, and returns what ends that.
func runPool(t testing.TB, p *Pool) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

// kill leaves the file as it is when the process is killed.
func kill(p *Pool) { p.store.file.Close() }

// leasesOf returns the places of all names.
func leasesOf(p *Pool) map[string]netip.Addr {
	all := make(map[string]netip.Addr)
	for l := range p.Leases() {
		if !l.Dropped {
			all[l.Name] = l.V4
		}
	}
	return all
}

func sameLeases(t *testing.T, got, want map[string]netip.Addr) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("leases %v, want %v", got, want)
	}
}

func TestLeasesOutliveThePool(t *testing.T) {
	path := filepath.Join(t.TempDir(), "not", "there", "leases")
	for round, end := range []string{"in order", "killed", "killed"} {
		p := openPool(t, path, PoolOptions{})
		stop := runPool(t, p)
		if n := p.Stats().Leases; n != 10*round {
			t.Errorf("round %d begins with %d leases", round, n)
		}
		want := leasesOf(p)
		for i := range 10 {
			name := fmt.Sprintf("n%d-%d.example", round, i)
			want[name] = mustLease(t, p, name, false)
		}
		sameLeases(t, leasesOf(p), want)
		if end == "killed" {
			copyFile(t, path, path+".copy")
			stop()
			if err := os.Rename(path+".copy", path); err != nil {
				t.Fatal(err)
			}
		} else {
			stop()
		}
		p = openPool(t, path, PoolOptions{})
		sameLeases(t, leasesOf(p), want)
		for name, a := range want {
			if got := mustLease(t, p, name, false); got != a {
				t.Errorf("%s was at %v, is at %v", name, a, got)
			}
			if got, ok := p.Name(a); !ok || got != name {
				t.Errorf("%v was %s, is %s", a, name, got)
			}
		}
		kill(p)
	}
	for _, file := range []string{path + ".bad", path + ".new"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is there", file)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others can read which names were asked for", info.Mode(), err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileHasOneDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	p := openPool(t, path, PoolOptions{})
	for range 2 {
		second := newPool(t, PoolOptions{})
		if err := second.Open(path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
			t.Errorf("second one: %v", err)
		}
		p.store.rewriteNow() // another file by that name
	}
	kill(p)
	openPool(t, path, PoolOptions{})
}

// An answer leaves when its lease is in the file, or after a while.
func TestAnswerWaitsForTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		path := filepath.Join(t.TempDir(), "leases")
		p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		start := time.Now()
		for range 2 { // the second one finds a lease that is not in the file either
			mustLease(t, p, "a.example", false)
		}
		if took := time.Since(start); took != 2*saveWait {
			t.Errorf("two answers took %v while nothing writes", took)
		}
		if s := p.Stats(); s.Unsaved != 2 || s.Failing {
			t.Errorf("stats %+v", s)
		}
		if n := strings.Count(log.String(), "the disk is slow"); n != 1 {
			t.Errorf("%d warnings: %s", n, log.String())
		}
		if _, done := newServer(t, Options{Pool: p}).AnswerNow(question(t, "a.example.", 1)); done {
			t.Error("AnswerNow answers what is not in the file")
		}
		stop := runPool(t, p)
		start = time.Now()
		mustLease(t, p, "a.example", false)
		mustLease(t, p, "b.example", false)
		if took := time.Since(start); took != 0 {
			t.Errorf("with a file that is written: %v", took)
		}
		if s := p.Stats(); s.Unsaved != 2 {
			t.Errorf("stats %+v", s)
		}
		if _, done := newServer(t, Options{Pool: p}).AnswerNow(question(t, "b.example.", 1)); !done {
			t.Error("AnswerNow does not answer what is in the file")
		}
		stop()
		openPool(t, path, PoolOptions{})
	})
}

// Where the file cannot be written names have addresses all the same, and as soon
// as it can, the file has them.
func TestFileIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		dir := t.TempDir()
		path := filepath.Join(dir, "dir", "leases")
		if err := os.WriteFile(filepath.Join(dir, "dir"), nil, 0o600); err != nil { // in the way
			t.Fatal(err)
		}
		p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		stop := runPool(t, p)
		want := map[string]netip.Addr{}
		lease := func(n int) {
			for i := range n {
				name := fmt.Sprintf("n%d-%d.example", n, i)
				want[name] = mustLease(t, p, name, i%2 == 0)
				want[name] = mustLease(t, p, name, false)
			}
		}
		lease(10)
		time.Sleep(5*retryDelay + 1)
		if s := p.Stats(); !s.Failing || s.Leases != 10 {
			t.Errorf("stats %+v", s)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors in the log: %s", n, log.String())
		}
		lease(20)
		if err := os.Remove(filepath.Join(dir, "dir")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryDelay)
		synctest.Wait()
		if s := p.Stats(); s.Failing || s.Unsaved != 0 || s.Leases != 30 {
			t.Errorf("stats %+v: %s", s, log.String())
		}
		if !strings.Contains(log.String(), "leases are kept again") {
			t.Errorf("log %s", log.String())
		}
		lease(5)
		copyFile(t, path, path+".copy")
		stop()
		sameLeases(t, leasesOf(openPool(t, path+".copy", PoolOptions{})), want)
		sameLeases(t, leasesOf(openPool(t, path, PoolOptions{})), want)
	})
}

// fileOf returns a file with some leases, and them.
func fileOf(t testing.TB, n int) ([]byte, map[string]netip.Addr) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "leases")
	p := openPool(t, path, PoolOptions{})
	for i := range n {
		if _, _, err := p.grant(fmt.Sprintf("n%d.example", i)); err != nil {
			t.Fatal(err)
		}
	}
	p.store.flush()
	kill(p)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b, leasesOf(p)
}

// A file may end anywhere: what is whole is kept, and more is added behind it.
func TestFileIsCutOff(t *testing.T) {
	whole, all := fileOf(t, 5)
	for n := range len(whole) + 1 {
		path := filepath.Join(t.TempDir(), "leases")
		// What a disk may have instead of the rest.
		for _, rest := range [][]byte{nil, make([]byte, 3000)} {
			if err := os.WriteFile(path, append(whole[:n:n], rest...), 0o600); err != nil {
				t.Fatal(err)
			}
			p := openPool(t, path, PoolOptions{})
			got := leasesOf(p)
			if len(got) > 5 || n == len(whole) && len(got) != 5 {
				t.Errorf("%d of %d octets: %v", n, len(whole), got)
			}
			for name, a := range got {
				if all[name] != a {
					t.Errorf("%d of %d octets: %s is at %v, was at %v", n, len(whole), name, a, all[name])
				}
			}
			got["more.example"] = p.addr(p.mustGrant(t, "more.example").slot, false)
			p.store.flush()
			kill(p)
			p = openPool(t, path, PoolOptions{})
			sameLeases(t, leasesOf(p), got)
			kill(p)
			_, err := os.Stat(path + ".bad")
			if foreign := n < headerLen && n+len(rest) > 0; foreign != (err == nil) {
				t.Errorf("%d of %d octets: set aside: %v", n, len(whole), err == nil)
			}
			os.Remove(path + ".bad")
		}
	}
}

func (p *Pool) mustGrant(t testing.TB, name string) *lease {
	t.Helper()
	l, _, err := p.grant(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Where octets of a file are others, no lease is read wrongly, and those before
// and behind them are kept.
func TestFileIsDamaged(t *testing.T) {
	whole, all := fileOf(t, 5)
	last := len(whole) - entryLen - len("n4.example")
	for at := range whole {
		path := filepath.Join(t.TempDir(), "leases")
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		got := leasesOf(p)
		for name, a := range got {
			if all[name] != a {
				t.Errorf("octet %d: %s is at %v, was at %v", at, name, a, all[name])
			}
		}
		want := 4
		switch {
		case at < headerLen:
			want = 0
		case at < headerLen+entryLen: // the clock
			want = 5
		}
		if len(got) != want {
			t.Errorf("octet %d: %d leases, want %d", at, len(got), want)
		}
		told := strings.Contains(log.String(), "level=ERROR")
		aside, err := os.ReadFile(path + ".bad")
		if at < last && (err != nil || !bytes.Equal(aside, damaged) || !told) {
			t.Errorf("octet %d: set aside: %v; told: %s", at, err, log.String())
		}
		if at >= last && (err == nil || told) {
			t.Errorf("octet %d: an end that is not whole is set aside: %s", at, log.String())
		}
		kill(p)
		p = openPool(t, path, PoolOptions{})
		sameLeases(t, leasesOf(p), got)
		kill(p)
	}
}

func TestForeignFileIsSetAside(t *testing.T) {
	header := appendHeader(nil, newPool(t, PoolOptions{}).ranges)
	for name, content := range map[string][]byte{
		"text":            []byte("# this is somebody's config\nrules: []\n"),
		"zeros":           make([]byte, 1<<20),
		"later version":   append([]byte(journalMagic+"\x02"), header[17:]...),
		"magic only":      []byte(journalMagic),
		"megabytes after": append(bytes.Clone(header), make([]byte, 3<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases")
			for range 2 { // what was set aside before gives way
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
				var log bytes.Buffer
				p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
				p.mustGrant(t, "a.example")
				p.store.flush()
				kill(p)
				if aside, err := os.ReadFile(path + ".bad"); err != nil || !bytes.Equal(aside, content) {
					t.Errorf("set aside: %v", err)
				}
				if !strings.Contains(log.String(), path+".bad") {
					t.Errorf("log: %s", log.String())
				}
				p = openPool(t, path, PoolOptions{})
				sameLeases(t, leasesOf(p), map[string]netip.Addr{"a.example": p.addr(p.mustGrant(t, "a.example").slot, false)})
				kill(p)
			}
		})
	}
	t.Run("directory", func(t *testing.T) {
		path := t.TempDir()
		var log bytes.Buffer
		p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if s := p.Stats(); !s.Failing || !strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("stats %+v, log %s", s, log.String())
		}
		mustLease(t, p, "a.example", false)
	})
}

// A range that has changed keeps what it can of addresses, and no address becomes
// another name's within the quarantine.
func TestRangesChange(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tt := range []struct {
		name     string
		was, is  PoolOptions
		v4, v6   int // of 40 names, how many have the same address
		leases   int // names and places that nobody gets
		orphans4 bool
	}{
		{"nothing", PoolOptions{}, PoolOptions{}, 40, 40, 40, false},
		{"other v4", PoolOptions{}, PoolOptions{V4: prefix("10.0.0.0/15")}, 0, 40, 40, true},
		{"other v6", PoolOptions{}, PoolOptions{V6: prefix("fd00:1::/64")}, 40, 0, 40, false},
		{"longer v4", PoolOptions{V4: prefix("10.0.0.0/16")}, PoolOptions{V4: prefix("10.0.0.0/12")}, 40, 40, 40, false},
		{"shorter v4", PoolOptions{V4: prefix("10.0.0.0/16")}, PoolOptions{V4: prefix("10.0.0.0/17")}, -1, -1, 40, true},
		{"much shorter v4", PoolOptions{V4: prefix("10.0.0.0/16")}, PoolOptions{V4: prefix("10.0.0.0/26")}, 0, 0, 40, true},
		{"too short v4", PoolOptions{V4: prefix("10.0.0.0/16")}, PoolOptions{V4: prefix("10.0.0.0/27")}, 0, 0, 28, true},
		{"v4 that begins before", PoolOptions{V4: prefix("10.1.0.0/16")}, PoolOptions{V4: prefix("10.0.0.0/15")}, 0, 40, 80, false},
		{"v4 that begins before and is full", PoolOptions{V4: prefix("10.0.0.64/26")}, PoolOptions{V4: prefix("10.0.0.0/25")}, -1, -1, -1, false},
		{"v4 that begins later", PoolOptions{V4: prefix("10.0.0.0/25")}, PoolOptions{V4: prefix("10.0.0.64/26")}, -1, -1, -1, true},
		{"more reserved", PoolOptions{V4: prefix("10.0.0.0/24")}, PoolOptions{V4: prefix("10.0.0.0/24"), Reserved: 100}, -1, -1, 40, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c clock
			path := filepath.Join(t.TempDir(), "leases")
			tt.was.Now, tt.is.Now = c.now, c.now
			p := openPool(t, path, tt.was)
			for i := range 40 {
				p.mustGrant(t, fmt.Sprintf("n%d.example", i))
			}
			p.store.flush()
			before := map[string]Lease{}
			owner := map[netip.Addr]string{}
			for l := range p.Leases() {
				before[l.Name] = l
				owner[l.V4], owner[l.V6] = l.Name, l.Name
			}
			kill(p)

			p = openPool(t, path, tt.is)
			check := func(when string) (v4, v6 int) {
				t.Helper()
				for l := range p.Leases() {
					for _, a := range []netip.Addr{l.V4, l.V6} {
						if was := owner[a]; was != "" && was != l.Name {
							t.Errorf("%s %v is %s, was %s", when, a, l.Name, was)
						}
					}
					if l.V4 == before[l.Name].V4 {
						v4++
					}
					if l.V6 == before[l.Name].V6 {
						v6++
					}
				}
				return v4, v6
			}
			v4, v6 := check("at first")
			t.Logf("%d and %d of 40 addresses are as before, %+v", v4, v6, p.Stats())
			if tt.v4 >= 0 && v4 != tt.v4 || tt.v6 >= 0 && v6 != tt.v6 {
				t.Errorf("%d and %d addresses are as before, want %d and %d", v4, v6, tt.v4, tt.v6)
			}
			if n := p.Stats().Leases; tt.leases >= 0 && n != tt.leases {
				t.Errorf("%d leases, want %d", n, tt.leases)
			}
			orphan := false
			for _, l := range before {
				orphan = orphan || !p.Owns(l.V4)
			}
			if orphan != tt.orphans4 && tt.v4 >= 0 {
				t.Errorf("v4 addresses out of the range: %v, want %v", orphan, tt.orphans4)
			}
			for i := range 200 {
				if _, _, err := p.grant(fmt.Sprintf("other%d.example", i)); errors.Is(err, ErrExhausted) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			check("with other names")
			all := leasesOf(p)
			p.store.flush()
			kill(p)
			p = openPool(t, path, tt.is)
			sameLeases(t, leasesOf(p), all)
			check("started again")
			// The places that nobody gets are for names again later.
			c.advance(2 * time.Hour)
			for i := range p.max {
				p.mustGrant(t, fmt.Sprintf("later%d.example", i))
				if i == 1000 {
					break
				}
			}
		})
	}
}

func TestDroppedLease(t *testing.T) {
	var c clock
	path := filepath.Join(t.TempDir(), "leases")
	o := PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/29"), Reserved: 6, Quarantine: time.Minute, Now: c.now}
	p := openPool(t, path, o)
	stop := runPool(t, p)
	a := mustLease(t, p, "a.example", false)
	_, release, _ := p.Acquire(a)
	c.advance(time.Hour)
	if !p.Drop("A.example.") || p.Drop("a.example") || p.Drop("b.example") || p.Drop("..") {
		t.Error("Drop is wrong about what there is")
	}
	check := func(p *Pool) {
		t.Helper()
		if name, ok := p.Name(a); ok {
			t.Errorf("%v leads to %s", a, name)
		}
		if name, _, ok := p.Acquire(a); ok {
			t.Errorf("%v is acquired for %s", a, name)
		}
		if b, err := p.Lease("b.example", false); !errors.Is(err, ErrExhausted) {
			t.Errorf("another name: %v, %v", b, err)
		}
		if l, ok := p.FindName("a.example"); !ok || !l.Dropped || l.V4 != a {
			t.Errorf("found %+v, %v", l, ok)
		}
	}
	check(p)
	c.advance(time.Hour)
	check(p) // there is a flow
	if l, _ := p.FindAddr(a); l.Flows != 1 || l.Unused != 0 {
		t.Errorf("found %+v", l)
	}
	release()
	stop()
	p = openPool(t, path, o)
	check(p)
	stop = runPool(t, p)
	if again := mustLease(t, p, "a.example", false); again != a {
		t.Errorf("asked for again it is at %v, was at %v", again, a)
	}
	if name, _ := p.Name(a); name != "a.example" {
		t.Errorf("%v leads to %q", a, name)
	}
	stop()
	p = openPool(t, path, o)
	if name, _ := p.Name(a); name != "a.example" {
		t.Errorf("started again, %v leads to %q", a, name)
	}
	p.Drop("a.example")
	c.advance(time.Minute)
	if p.mustGrant(t, "b.example"); len(leasesOf(p)) != 1 {
		t.Errorf("leases %v", leasesOf(p))
	}
}

func TestLeasesAreFound(t *testing.T) {
	var c clock
	p := newPool(t, PoolOptions{Now: c.now})
	a4, a6 := mustLease(t, p, "a.example", false), mustLease(t, p, "a.example", true)
	c.advance(time.Minute)
	want := Lease{Name: "a.example", V4: a4, V6: a6, Unused: time.Minute}
	mustLease(t, p, "b.example", false)
	for what, find := range map[string]func() (Lease, bool){
		"name":       func() (Lease, bool) { return p.FindName("A.Example.") },
		"v4":         func() (Lease, bool) { return p.FindAddr(a4) },
		"v6":         func() (Lease, bool) { return p.FindAddr(a6) },
		"mapped v4":  func() (Lease, bool) { return p.FindAddr(netip.AddrFrom16(a4.As16())) },
		"among them": func() (Lease, bool) { return slices.Collect(p.Leases())[0], true },
	} {
		if got, ok := find(); !ok || got != want {
			t.Errorf("by %s: %+v, %v, want %+v", what, got, ok, want)
		}
	}
	if l, ok := p.FindName("c.example"); ok {
		t.Errorf("found %+v", l)
	}
	if l, ok := p.FindName("not a name"); ok {
		t.Errorf("found %+v", l)
	}
	if l, ok := p.FindAddr(p.Resolver4()); ok {
		t.Errorf("found %+v", l)
	}
	n := 0
	for range p.Leases() {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d leases after a break", n)
	}
}

// A file that has grown is written anew while leases come and go and answers are
// given, and has all of them in the end.
func TestFileIsWrittenAnew(t *testing.T) {
	var c clock
	path := filepath.Join(t.TempDir(), "leases")
	o := PoolOptions{Max: 300, Quarantine: time.Second, Now: c.now}
	p := openPool(t, path, o)
	s := p.store
	rnd := rand.New(rand.NewPCG(1, 2))
	grow := func(n int) {
		for range n {
			c.advance(time.Duration(rnd.IntN(int(20 * time.Millisecond))))
			_, _, _ = p.grant(fmt.Sprintf("n%d.example", rnd.IntN(600)))
			if rnd.IntN(10) == 0 {
				p.Drop(fmt.Sprintf("n%d.example", rnd.IntN(600)))
			}
			if rnd.IntN(3) == 0 {
				if err := s.flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		grow(5000)
		r := s.begin()
		grow(500)
		r = s.rewrite(r)
		grow(5000)
		for {
			more, ok := s.more(r)
			if !ok {
				break
			}
			r = s.rewrite(more)
			grow(500)
		}
		long := s.size
		if err := s.finish(r); err != nil {
			t.Fatal(err)
		}
		if s.size > long*2/3 {
			t.Errorf("the file has %d octets, had %d", s.size, long)
		}
		grow(100)
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
		copyFile(t, path, path+".copy")
		again := openPool(t, path+".copy", o)
		sameLeases(t, leasesOf(again), leasesOf(p))
		kill(again)
		if info, _ := os.Stat(path); info.Size() != s.size {
			t.Errorf("the file has %d octets, not %d", info.Size(), s.size)
		}
	}
	if n := p.Stats().Evicted; n < 500*uint64(rounds) {
		t.Errorf("%d evicted: not much has come and gone", n)
	}
}

// The same by Run, with answers that wait all the while.
func TestRunWritesTheFileAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "leases")
		p := openPool(t, path, PoolOptions{})
		stop := runPool(t, p)
		var asking sync.WaitGroup
		const names = 200
		for g := range 4 {
			asking.Go(func() {
				for round := range 200 {
					for i := range names {
						mustLease(t, p, fmt.Sprintf("n%d-%d.example", g, i), false)
					}
					time.Sleep(maxUseAge + time.Duration(round+1)*time.Second) // so that each use is written
				}
			})
		}
		asking.Wait()
		if s := p.Stats(); s.Unsaved != 0 || s.Failing || s.Leases != 4*names {
			t.Errorf("stats %+v", s)
		}
		if size, most := p.store.size, p.store.worth()*2+2*compactFrom; size > most || size < 10_000 {
			t.Errorf("the file has %d octets, want %d at most", size, most)
		}
		all := leasesOf(p)
		stop()
		sameLeases(t, leasesOf(openPool(t, path, PoolOptions{})), all)
	})
}

func BenchmarkPoolLeaseKept(b *testing.B) {
	p := openPool(b, filepath.Join(b.TempDir(), "leases"), PoolOptions{V4: netip.MustParsePrefix("10.0.0.0/8")})
	runPool(b, p)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Lease(fmt.Sprintf("n%d.example", n.Add(1)%(1<<20)), false); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(p.Stats().Unsaved), "unsaved")
}

// While a write hangs, what waits to be written is bounded; then the file has all.
func TestDiskHangs(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 60)+".", 3)
	for _, tt := range []struct {
		name string
		fill func(t *testing.T, p *Pool, i int)
	}{
		{"new names", func(t *testing.T, p *Pool, i int) { p.mustGrant(t, fmt.Sprintf("n%d.%sexample", i, long)) }},
		{"uses", func(t *testing.T, p *Pool, i int) { p.mustGrant(t, "old.example") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				path := filepath.Join(t.TempDir(), "leases")
				p := openPool(t, path, PoolOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))})
				p.store.most = 1 << 16
				p.mustGrant(t, "old.example")
				if err := p.store.flush(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				for i := 0; !p.store.failing.Load(); i++ {
					tt.fill(t, p, i) // and nobody writes
				}
				if n := len(p.store.pending.entries); n > p.store.most+entryLen+maxName {
					t.Errorf("%d octets wait", n)
				}
				p.mustGrant(t, "new.example")
				stop := runPool(t, p)
				synctest.Wait()
				if s := p.Stats(); !s.Failing {
					t.Errorf("stats %+v", s)
				}
				time.Sleep(retryDelay)
				synctest.Wait()
				if s := p.Stats(); s.Failing {
					t.Errorf("stats %+v", s)
				}
				want := leasesOf(p)
				copyFile(t, path, path+".copy")
				stop()
				if !strings.Contains(log.String(), errBehind.Error()) || !strings.Contains(log.String(), "kept again") {
					t.Errorf("log %s", log.String())
				}
				sameLeases(t, leasesOf(openPool(t, path+".copy", PoolOptions{})), want)
			})
		})
	}
}

// A new file that is so slow that not all can follow it takes nobody's place.
func TestNewFileHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	p := openPool(t, path, PoolOptions{})
	s := p.store
	s.most = 1 << 16
	r := s.rewrite(s.begin())
	long := strings.Repeat(strings.Repeat("x", 60)+".", 3)
	for i := 0; s.side != nil; i++ {
		p.mustGrant(t, fmt.Sprintf("n%d.%sexample", i, long))
		if i%100 == 0 {
			if err := s.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.finish(r); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(); err != nil || s.failing.Load() {
		t.Errorf("the old file is written no more: %v", err)
	}
	want := leasesOf(p)
	for _, file := range []string{".copy", ".anew"} {
		copyFile(t, path, path+file)
		sameLeases(t, leasesOf(openPool(t, path+file, PoolOptions{})), want)
		s.rewriteNow()
	}
}

// What has come while a file was written anew is synced before that takes the place of
// the old one, in which it was; but for what comes in the last moment.
func TestNewFileIsSyncedBeforeItCounts(t *testing.T) {
	p := openPool(t, filepath.Join(t.TempDir(), "leases"), PoolOptions{})
	s := p.store
	n := 0
	come := func(names int) {
		t.Helper()
		for range names {
			n++
			p.mustGrant(t, fmt.Sprintf("n%d.example", n))
		}
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
	}
	r := s.rewrite(s.begin())
	for i, round := range []struct {
		come int
		more bool
	}{
		{5000, true}, {5000, true}, {1, true}, {5000, true}, {1, true}, {1, false},
	} {
		come(round.come)
		var more bool
		if r, more = s.more(r); more != round.more {
			t.Fatalf("round %d: %v", i, more)
		}
		if more {
			r = s.rewrite(r)
		}
	}
	if err := s.finish(r); err != nil {
		t.Fatal(err)
	}
	r = s.rewrite(s.begin())
	if _, more := s.more(r); more {
		t.Error("nothing has come")
	}
	if err := s.finish(r); err != nil {
		t.Fatal(err)
	}
}

// A new file that another daemon has is left alone, and what a crash has left of one
// gives way.
func TestNewFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	p := openPool(t, path, PoolOptions{})
	p.mustGrant(t, "a.example")
	if err := p.store.flush(); err != nil {
		t.Fatal(err)
	}
	const theirs = "what another daemon is writing"
	if err := os.WriteFile(path+".new", []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := lock(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	p.store.rewriteNow()
	if got, err := os.ReadFile(path + ".new"); err != nil || string(got) != theirs {
		t.Errorf("%q, %v", got, err)
	}
	if s := p.Stats(); s.Failing {
		t.Errorf("stats %+v", s)
	}
	other.Close()
	p.store.rewriteNow()
	if _, err := os.Stat(path + ".new"); err == nil {
		t.Error("the new file is still there")
	}
	copyFile(t, path, path+".copy")
	sameLeases(t, leasesOf(openPool(t, path+".copy", PoolOptions{})), leasesOf(p))
}

// That a file cannot be made shorter is told once in a while, and is no reason to say
// later that leases are kept again.
func TestFileIsNotMadeShorter(t *testing.T) {
	var c clock
	var log bytes.Buffer
	path := filepath.Join(t.TempDir(), "leases")
	p := openPool(t, path, PoolOptions{Now: c.now, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err := os.Mkdir(path+".new", 0o700); err != nil { // in the way
		t.Fatal(err)
	}
	for range 10 {
		p.store.rewriteNow()
		c.advance(time.Minute)
	}
	if n := strings.Count(log.String(), "not made shorter"); n != 1 {
		t.Errorf("%d warnings: %s", n, log.String())
	}
	c.advance(repeatEvery)
	p.store.rewriteNow()
	if n := strings.Count(log.String(), "not made shorter"); n != 2 {
		t.Errorf("%d warnings: %s", n, log.String())
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	p.store.rewriteNow()
	if strings.Contains(log.String(), "kept again") {
		t.Errorf("log %s", log.String())
	}
}
