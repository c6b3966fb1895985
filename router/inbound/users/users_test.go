package users

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"tunroute/router/inbound"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func bcryptOf(t *testing.T, password string) string {
	t.Helper()
	b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFile: hashes of both kinds, and what a wrong password, no such user and a hash
// in the place of the password come to.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	// As `htpasswd -nbB bob secret` has it, with $2y$.
	bob := strings.Replace(bcryptOf(t, "secret"), "$2a$", "$2y$", 1)
	alice := Hash("hunter2")
	// The reference implementation's own vector: argon2 -id -k 65536 -t 2 -p 1,
	// "password" with the salt "somesalt".
	const vector = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	write(t, path, "# ours\n\nalice:"+alice+":staff,admin\nbob:"+bob+"\ncarol:"+vector+"\n")
	f, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		user, password string
		groups         []string
		ok             bool
	}{
		{"alice", "hunter2", []string{"staff", "admin"}, true},
		{"alice", "hunter3", nil, false},
		{"alice", "", nil, false},
		{"alice", alice, nil, false},
		{"bob", "secret", nil, true},
		{"bob", "Secret", nil, false},
		{"carol", "password", nil, true},
		{"dave", "secret", nil, false},
		{"", "", nil, false},
		{"# ours", "", nil, false},
	} {
		who, err := f.verify(t.Context(), tt.user, tt.password)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, inbound.ErrDenied) {
			t.Errorf("%s with %q: got %v, want %v", tt.user, tt.password, err, tt.ok)
		}
		if tt.ok && (who.User != tt.user || !slices.Equal(who.Groups, tt.groups)) {
			t.Errorf("%s is %+v, want the groups %q", tt.user, who, tt.groups)
		}
	}
}

// TestNobodyTakesAsLong: to refuse who does not exist is the work that it is to refuse
// most of those who do.
func TestNobodyTakesAsLong(t *testing.T) {
	cheap, dear := bcryptOf(t, "x"), Hash("x")
	for _, tt := range []struct {
		hashes []string
		want   string
	}{
		{nil, "$argon2id$v=19$m=19456,t=2,p=1$"},
		{[]string{dear}, "$argon2id$v=19$m=19456,t=2,p=1$"},
		{[]string{cheap, dear, cheap}, cheap[:7]},
		{[]string{cheap, dear, dear}, "$argon2id$v=19$m=19456,t=2,p=1$"},
		{[]string{"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"}, "$argon2id$v=19$m=65536,t=2,p=1$"},
	} {
		entries := make(map[string]entry)
		for i, h := range tt.hashes {
			entries[fmt.Sprint(i)] = entry{hash: h}
		}
		got := nobody(entries)
		if !strings.HasPrefix(got, tt.want) || checkHash(got) != nil || verify(got, "") || verify(got, "x") {
			t.Errorf("%q: %s, want one of %s that no password has", tt.hashes, got, tt.want)
		}
	}
	path := filepath.Join(t.TempDir(), "users")
	write(t, path, "alice:"+cheap+"\n")
	f, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := f.find("bob"); ok || kind(e.hash) != cheap[:7] {
		t.Errorf("bob has %+v, %v; want a hash of the kind of alice", e, ok)
	}
}

// TestBadFiles: a file with an error is refused with the line, and without the hash.
func TestBadFiles(t *testing.T) {
	hash := Hash("x")
	for name, text := range map[string]string{
		"1: not USER:HASH":                     "alice\n",
		"2: user \"alice\" is there twice":     "alice:" + hash + "\nalice:" + hash + "\n",
		"1: user \"alice\": neither":           "alice:secret\n",
		"1: user \"alice\": a bcrypt":          "alice:$2a$31$" + strings.Repeat("a", 53) + "\n",
		"1: user \"alice\": a hash that costs": "alice:$argon2id$v=19$m=4194304,t=1,p=1$AAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAA\n",
		"1: a name has":                        "a b:" + hash + "\n",
		"1: a group: a name has":               "alice:" + hash + ":staff,\n",
	} {
		path := filepath.Join(t.TempDir(), "users")
		write(t, path, text)
		_, err := Open(path, nil)
		if err == nil || !strings.HasPrefix(err.Error(), path+":"+name) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want %s", text, err, name)
		}
	}
}

// TestFileIsReadAgain: a change counts, also for who is remembered; a file with an
// error, or none, changes nothing.
func TestFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	write(t, path, "alice:"+bcryptOf(t, "old")+"\n")
	var log strings.Builder
	f, err := Open(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	g := NewGuard(f, nil)
	g.sleep = func(context.Context, time.Duration) error { return nil }
	check := func(password string, want bool) {
		t.Helper()
		f.mu.Lock()
		f.looked = time.Time{} // a second has passed
		f.mu.Unlock()
		if _, err := g.Check(t.Context(), netip.Addr{}, "alice", password); (err == nil) != want {
			t.Errorf("%q: got %v, want %v; log: %s", password, err, want, &log)
		}
	}
	check("old", true)
	write(t, path, "alice:"+bcryptOf(t, "new")+":x\n")
	check("old", false)
	check("new", true)
	write(t, path, "alice:nonsense\n")
	check("new", true)
	check("new", true)
	if n := strings.Count(log.String(), "stay as they were"); n != 1 {
		t.Errorf("told %d times of a broken file, want once: %s", n, &log)
	}
	os.Remove(path)
	check("new", true)
	check("new", true)
	if n := strings.Count(log.String(), "stay as they were"); n != 2 {
		t.Errorf("told %d times of a broken file and none, want twice: %s", n, &log)
	}
	write(t, path, "bob:"+bcryptOf(t, "new")+"\n")
	check("new", false)
}

// TestSetAndDelete: what is in a file otherwise stays.
func TestSetAndDelete(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	step := func(err error, want string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	h1, h2 := bcryptOf(t, "1"), bcryptOf(t, "2")
	step(Set(path, "alice", h1, []string{"a", "b"}), "alice:"+h1+":a,b\n")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	step(Set(path, "bob", h1, nil), "alice:"+h1+":a,b\nbob:"+h1+"\n")
	step(Set(path, "alice", h2, nil), "alice:"+h2+":a,b\nbob:"+h1+"\n")
	step(Set(path, "alice", h2, []string{}), "alice:"+h2+"\nbob:"+h1+"\n")
	os.Chmod(path, 0o640)
	step(Delete(path, "alice"), "bob:"+h1+"\n")
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, want that of before", info.Mode())
	}
	if err := Delete(path, "alice"); !errors.Is(err, ErrNoUser) {
		t.Errorf("got %v, want ErrNoUser", err)
	}
	step(nil, "bob:"+h1+"\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	step(Set(link, "bob", h2, nil), "bob:"+h2+"\n")
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is a file now: %v, %v", info, err)
	}
	typo := filepath.Join(t.TempDir(), "typo")
	if err := Delete(typo, "bob"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("from a file that is not there: %v", err)
	}
	if _, err := os.Stat(typo); err == nil {
		t.Error("there is a file now")
	}
	step(Delete(path, "bob"), "")
	for _, bad := range []string{"", "a:b", "a b", "#a", "a\n"} {
		if Set(path, bad, h1, nil) == nil || Set(path, "a", h1, []string{bad}) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("%d files are left, want the one", len(left))
	}
}

// TestCommand: the exit status decides, and the password goes by standard input only.
func TestCommand(t *testing.T) {
	script := filepath.Join(t.TempDir(), "check")
	write(t, script, `#!/bin/sh
read -r user && read -r password || exit 3
[ $# = 1 ] || exit 3
[ "$user" = alice ] && [ "$password" = "se cret" ] && exit 0
[ "$user" = broken ] && exit 2
exit 1
`)
	os.Chmod(script, 0o755)
	c := Command{Args: []string{script, "arg"}}
	for user, want := range map[string]struct{ denied, ok bool }{
		"alice": {ok: true}, "bob": {denied: true}, "broken": {}, "al\nice": {denied: true},
	} {
		_, err := c.verify(t.Context(), user, "se cret")
		if (err == nil) != want.ok || errors.Is(err, inbound.ErrDenied) != want.denied {
			t.Errorf("%q: got %v", user, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (Command{Args: []string{"sleep", "60"}}).verify(ctx, "a", "b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("whose own time is over: got %v", err)
	}
}

// TestProgramsWaitForOthers: more of them run than there are processors.
func TestProgramsWaitForOthers(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "check")
	// It says that it is there, and waits until all are.
	const all = 8
	write(t, script, fmt.Sprintf("#!/bin/sh\nread -r user\n: >%s/here.$user\nwhile [ $(ls %[1]s/here.* | wc -l) -lt %d ]; do sleep 0.02; done\n", dir, all))
	os.Chmod(script, 0o755)
	g := NewGuard(Command{Args: []string{script}}, nil)
	var work sync.WaitGroup
	for i := range all {
		work.Go(func() {
			if _, err := g.Check(t.Context(), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), fmt.Sprint(i), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
}

// TestFailuresAreToldOnce: that a program is missing is told of once a minute, however
// many ask, and that a client has gone is not.
func TestFailuresAreToldOnce(t *testing.T) {
	var log strings.Builder
	g := NewGuard(Command{Args: []string{"/does/not/exist"}}, slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Now()
	g.now = func() time.Time { return now }
	g.sleep = func(context.Context, time.Duration) error { return nil }
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := g.Check(gone, netip.Addr{}, "alice", "x"); err == nil || log.Len() > 0 {
		t.Errorf("who has gone: %v, %s", err, &log)
	}
	for range 2 {
		for range 5 {
			if _, err := g.Check(t.Context(), netip.Addr{}, "alice", "x"); !errors.Is(err, inbound.ErrDenied) {
				t.Errorf("got %v", err)
			}
		}
		now = now.Add(complainEvery)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 2 || !strings.Contains(log.String(), "times=5") {
		t.Errorf("told %d times in two minutes, want once in each:\n%s", n, &log)
	}
}

// counted counts what is asked of it.
type counted struct {
	mu           sync.Mutex
	now, most, n int
	hold         chan struct{}
}

func (c *counted) verify(_ context.Context, user, password string) (inbound.Identity, error) {
	c.mu.Lock()
	c.n++
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	if c.hold != nil {
		<-c.hold
	}
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	if password != "right" {
		return inbound.Identity{}, inbound.ErrDenied
	}
	return inbound.Identity{User: user}, nil
}

func (*counted) version(string) string { return "" }
func (*counted) atATime() int          { return 2 }

// TestGuesser: each wrong password waits longer than the one before, then none is
// looked at for a minute; other sources, and who was right before, are not held up.
func TestGuesser(t *testing.T) {
	c := &counted{}
	var log strings.Builder
	g := NewGuard(c, slog.New(slog.NewTextHandler(&log, nil)))
	now := time.Now()
	var waits []time.Duration
	g.now = func() time.Time { return now }
	g.sleep = func(_ context.Context, d time.Duration) error { waits = append(waits, d); return nil }
	guesser, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:0:1::1")
	check := func(from netip.Addr, user, password string) error {
		_, err := g.Check(t.Context(), from, user, password)
		return err
	}
	if err := check(guesser, "known", "right"); err != nil {
		t.Fatal(err)
	}
	for i := range maxFails {
		// Its whole network is one source.
		from := guesser.As16()
		from[15] = byte(i)
		if err := check(netip.AddrFrom16(from), "alice", fmt.Sprint(i)); !errors.Is(err, inbound.ErrDenied) {
			t.Fatal(err)
		}
	}
	if len(waits) != maxFails || waits[0] != firstDelay || !slices.IsSorted(waits) || waits[maxFails-1] != lastDelay {
		t.Errorf("waits %v", waits)
	}
	asked := c.n
	if err := check(guesser, "alice", "right"); !errors.Is(err, inbound.ErrDenied) || c.n != asked {
		t.Errorf("got %v, and %d were looked at, want none", err, c.n-asked)
	}
	if err := check(guesser, "known", "right"); err != nil {
		t.Errorf("who was right before: %v", err)
	}
	if err := check(other, "alice", "right"); err != nil {
		t.Errorf("another source: %v", err)
	}
	now = now.Add(lockTime + time.Second)
	if err := check(guesser, "bob", "right"); err != nil {
		t.Errorf("a minute later: %v", err)
	}
	if n := strings.Count(log.String(), "wrong user or password"); n < 3 || n > 6 || strings.Contains(log.String(), "alice") {
		t.Errorf("log:\n%s", &log)
	}
}

// TestRemembered: for a minute a password that was right is not verified again, a wrong
// one always is.
func TestRemembered(t *testing.T) {
	c := &counted{}
	g := NewGuard(c, nil)
	now := time.Now()
	g.now = func() time.Time { return now }
	g.sleep = func(context.Context, time.Duration) error { return nil }
	for range 5 {
		if _, err := g.Check(t.Context(), netip.Addr{}, "alice", "right"); err != nil {
			t.Fatal(err)
		}
	}
	if c.n != 1 {
		t.Errorf("verified %d times, want once", c.n)
	}
	if _, err := g.Check(t.Context(), netip.Addr{}, "alice", "wrong"); err == nil {
		t.Error("a wrong password passed")
	}
	now = now.Add(remembered + time.Second)
	g.Check(t.Context(), netip.Addr{}, "alice", "right")
	if c.n != 3 {
		t.Errorf("verified %d times, want 3", c.n)
	}
}

// slow takes the time of a hash.
type slow struct{ counted }

func (s *slow) verify(ctx context.Context, user, password string) (inbound.Identity, error) {
	time.Sleep(20 * time.Millisecond)
	return s.counted.verify(ctx, user, password)
}

// TestBurst: a source that sends all its guesses at once has no more of them looked at
// than one that sends them in a row, and others do not wait for it.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &slow{}
		g := NewGuard(v, nil)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var work sync.WaitGroup
		for i := range 2000 {
			work.Go(func() {
				if _, err := g.Check(ctx, netip.MustParseAddr("10.0.0.1"), "alice", fmt.Sprint(i)); err == nil {
					t.Error("a wrong password passed")
				}
			})
		}
		synctest.Wait()
		if _, err := g.Check(ctx, netip.MustParseAddr("10.0.0.2"), "bob", "right"); err != nil || time.Since(began) > time.Second {
			t.Errorf("another source: %v after %v", err, time.Since(began))
		}
		work.Wait()
		if v.n > 1+maxFails+turns-1 {
			t.Errorf("%d passwords were looked at, want %d of the guesser at most", v.n, maxFails+turns-1)
		}
		if len(g.sources) != 1 {
			t.Errorf("%d sources, want the guesser", len(g.sources))
		}
	})
}

// TestBrowser: of the many connections that a browser opens at once, those that waited for
// their turn have no password looked at when another was right.
func TestBrowser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &slow{}
		g := NewGuard(v, nil)
		var work sync.WaitGroup
		for range 30 {
			work.Go(func() {
				if _, err := g.Check(t.Context(), netip.MustParseAddr("10.0.0.1"), "alice", "right"); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		if v.n > turns {
			t.Errorf("%d passwords were looked at, want %d at most", v.n, turns)
		}
	})
}

// TestVerifiesFewAtATime: a burst of clients does not take the memory of as many
// hashes.
func TestVerifiesFewAtATime(t *testing.T) {
	c := &counted{hold: make(chan struct{})}
	g := NewGuard(c, nil)
	g.sleep = func(context.Context, time.Duration) error { return nil }
	var work sync.WaitGroup
	const clients = 40
	for i := range clients {
		work.Go(func() {
			g.Check(t.Context(), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), fmt.Sprint(i), "right")
		})
	}
	for range clients {
		c.hold <- struct{}{}
	}
	work.Wait()
	if c.most > c.atATime() {
		t.Errorf("%d at a time, want %d", c.most, c.atATime())
	}
}

// TestSourcesAreBounded: however many sources guess, their failures take so much room
// and no more.
func TestSourcesAreBounded(t *testing.T) {
	g := NewGuard(&counted{}, nil)
	for i := range 2 * maxSources {
		from := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		s := g.enter(from)
		g.blame(from, s)
		g.leave(from, s)
	}
	if n := len(g.sources); n > maxSources {
		t.Errorf("%d sources, want %d at most", n, maxSources)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("alice:" + Hash("x") + ":a,b\n#\n"))
	f.Add([]byte("bob:$2y$05$" + strings.Repeat("a", 53)))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parse(data)
		if err != nil {
			return
		}
		for user, e := range entries {
			if CheckUser(user) != nil || checkHash(e.hash) != nil {
				t.Fatalf("%q: %+v", user, e)
			}
		}
	})
}
