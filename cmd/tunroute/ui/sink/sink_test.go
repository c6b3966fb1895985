package sink

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write what the tests got as what they want")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience ends a test that has failed; no test that passes waits for it.
const patience = 30 * time.Second

// listen returns a socket that datagrams are sent to, and its path.
func listen(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	return listenAt(t, path), path
}

func listenAt(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// read returns the next datagram.
func read(t *testing.T, c net.Conn) string {
	t.Helper()
	b := make([]byte, 64<<10)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// start runs a sender until the test ends.
func start(t *testing.T, s *Sender) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { s.Run(ctx); close(ran) }()
	stop = func() { cancel(); <-ran }
	t.Cleanup(stop)
	return stop
}

// records are what a log has of every kind, all of one moment.
func records() []slog.Record {
	at := time.Date(2026, 11, 8, 9, 5, 3, 42_000_000, time.FixedZone("CET", 3600))
	record := func(l slog.Level, msg string, args ...any) slog.Record {
		r := slog.NewRecord(at, l, msg, 0)
		r.Add(args...)
		return r
	}
	return []slog.Record{
		record(slog.LevelInfo, "flow", "net", "tcp", "dst", "www.example.org:443", "up", 4100, "took", 2300*time.Millisecond, "end", "eof"),
		record(slog.LevelInfo, "flow", "hops", "d1 > p1", "end", "failed", "err", "hop 2 of 2 (p1): said \"no\"\nand more"),
		record(slog.LevelWarn, "a server cannot be reached now", "server", "upstream p1"),
		record(slog.LevelError, "the config\nstays as it was", slog.Group("at", "file-name", "tunroute.yaml", "time", 3)),
		record(slog.LevelDebug, "Grüße"),
	}
}

// TestMessages compares the messages of all formats with testdata/messages.golden, octet
// by octet.
func TestMessages(t *testing.T) {
	udp := netip.MustParseAddrPort("192.0.2.1:514")
	var b strings.Builder
	for _, c := range []struct {
		name string
		o    SyslogOptions
	}{
		{"rfc 5424", SyslogOptions{Socket: "/dev/log", Facility: 3}},
		{"rfc 5424, json", SyslogOptions{Server: udp, Facility: 16, JSON: true}},
		{"rfc 3164 by a socket", SyslogOptions{Socket: "/dev/log", Facility: 3, Old: true}},
		{"rfc 3164 by udp", SyslogOptions{Server: udp, Facility: 3, Old: true}},
	} {
		c.o.Level = slog.LevelDebug
		s := NewSyslog(c.o)
		s.head = c.o.header(42, "gw.example")
		b.WriteString("== " + c.name + "\n")
		for _, r := range records() {
			m, err := s.message(t.Context(), r, s.inner)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString(strconv.Quote(string(m)) + "\n")
		}
	}
	for _, json := range []bool{false, true} {
		b.WriteString("== journal, json " + strconv.FormatBool(json) + "\n")
		j := NewJournal(JournalOptions{JSON: json, Level: slog.LevelDebug})
		derived := j.WithAttrs([]slog.Attr{slog.String("who", "me")}).WithGroup("more")
		for i, r := range records() {
			h := slog.Handler(j)
			if i == 1 {
				h = derived
			}
			if err := h.Handle(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			b.WriteString(strconv.Quote(string(j.next())) + "\n")
			j.done(true)
		}
	}
	const golden = "testdata/messages.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

// TestSyslogArrives by a unix socket and by UDP, as one datagram each.
func TestSyslogArrives(t *testing.T) {
	unix, path := listen(t)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, c := range []struct {
		o    SyslogOptions
		from net.Conn
	}{
		{SyslogOptions{Socket: path, Facility: 3}, unix},
		{SyslogOptions{Server: udp.LocalAddr().(*net.UDPAddr).AddrPort(), Facility: 3}, udp},
	} {
		s := NewSyslog(c.o)
		start(t, s.Sender)
		slog.New(s).With("with", 1).WithGroup("g").Info("flow", "dst", "a.test:80")
		slog.New(s).Debug("below the level")
		slog.New(s).Warn("second")
		got := read(t, c.from)
		if !strings.HasPrefix(got, "<30>1 ") || !strings.HasSuffix(got, " tunroute "+strconv.Itoa(os.Getpid())+" flow - flow with=1 g.dst=a.test:80") {
			t.Errorf("received %q", got)
		}
		if got := read(t, c.from); !strings.HasPrefix(got, "<28>1 ") || !strings.HasSuffix(got, " second - second") {
			t.Errorf("received %q", got)
		}
	}
}

// TestSlowReceiverHoldsNobodyUp: who logs never waits; what was lost is counted, and told
// when there is room again, behind all that waited.
func TestSlowReceiverHoldsNobodyUp(t *testing.T) {
	from, path := listen(t) // which does not read
	told := make(chan error, 1000)
	s := NewSyslog(SyslogOptions{Socket: path, Complain: func(err error) { told <- err }})
	start(t, s.Sender)
	log := slog.New(s)
	long := strings.Repeat("x", 7000)
	n := 0
	for ; s.Lost() < 10; n++ {
		if n > 10000 {
			t.Fatal("nothing is lost: the queue has no bound")
		}
		log.Info("flow", "n", n, "long", long)
	}
	if err := <-told; !strings.Contains(err.Error(), path+": messages are lost") {
		t.Errorf("told of %v", err)
	}
	if len(told) > 0 {
		t.Errorf("told again within a minute: %v", <-told)
	}
	arrived, lost := 0, -1
	for arrived+10 < n || lost < 0 {
		got := read(t, from)
		if _, count, ok := strings.Cut(got, "log messages were lost messages="); ok {
			lost, _ = strconv.Atoi(count)
			continue
		}
		if !strings.Contains(got, " n="+strconv.Itoa(arrived)+" ") {
			t.Fatalf("message %d is %.100q", arrived, got)
		}
		arrived++
	}
	if arrived != n-10 || lost != 10 || s.Lost() != 10 {
		t.Errorf("of %d messages %d arrived, %d are told as lost and %d counted", n, arrived, lost, s.Lost())
	}
}

// TestReceiverThatWasGone gets what was logged meanwhile.
func TestReceiverThatWasGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	told := make(chan error, 1)
	s := NewSyslog(SyslogOptions{Socket: path, Complain: func(err error) { told <- err }})
	start(t, s.Sender)
	log := slog.New(s)
	log.Info("first")
	if err := <-told; !strings.Contains(err.Error(), "no such file") {
		t.Errorf("told of %v", err)
	}
	from := listenAt(t, path)
	if got := read(t, from); !strings.HasSuffix(got, " first") {
		t.Errorf("received %q", got)
	}
	from.Close() // as a restart does
	os.Remove(path)
	log.Info("second")
	from = listenAt(t, path)
	if got := read(t, from); !strings.HasSuffix(got, " second") {
		t.Errorf("received %q after a restart", got)
	}
	if s.Lost() != 0 {
		t.Errorf("%d messages lost", s.Lost())
	}
}

// TestLastWords: what waits when Run is to end is sent, unless there is nobody.
func TestLastWords(t *testing.T) {
	from, path := listen(t)
	s := NewSyslog(SyslogOptions{Socket: path})
	for range 5 {
		slog.New(s).Info("stopped")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ended)
	for range 5 {
		read(t, from)
	}
	synctest.Test(t, func(t *testing.T) {
		s := NewSyslog(SyslogOptions{Socket: filepath.Join(path, "nobody")})
		slog.New(s).Info("stopped")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		begun := time.Now()
		s.Run(ctx)
		if took := time.Since(begun); took != time.Minute+lastWords {
			t.Errorf("Run ended after %v, want a minute and %v", took, lastWords)
		}
	})
}

// TestTooLong: what is longer than a datagram can be does not keep back what follows.
func TestTooLong(t *testing.T) {
	from, path := listen(t)
	s := NewJournal(JournalOptions{Socket: path})
	start(t, s.Sender)
	// Each attribute is cut, but so many are too long for any datagram.
	many := make([]slog.Attr, 100)
	for i := range many {
		many[i] = slog.String("k"+strconv.Itoa(i), strings.Repeat("ü", 8000))
	}
	slog.New(s).LogAttrs(t.Context(), slog.LevelInfo, "long", many...)
	slog.New(s).Info("short")
	if got := read(t, from); !strings.HasPrefix(got, "MESSAGE=log messages were lost messages=1\n") {
		t.Errorf("received %.200q", got)
	}
	if got := read(t, from); !strings.HasPrefix(got, "MESSAGE=short\n") {
		t.Errorf("received %.200q", got)
	}
	cutText := read1(t, SyslogOptions{}, strings.Repeat("ü", 8000))
	if len(cutText) > maxMessage || len(cutText) < maxMessage-3 || strings.ToValidUTF8(cutText, "") != cutText {
		t.Errorf("a long message is %d bytes, ends in %q", len(cutText), cutText[len(cutText)-5:])
	}
}

// read1 returns the message of a text.
func read1(t *testing.T, o SyslogOptions, text string) string {
	s := NewSyslog(o)
	m, err := s.message(t.Context(), slog.NewRecord(time.Now(), slog.LevelInfo, text, 0), s.inner)
	if err != nil {
		t.Fatal(err)
	}
	return string(m)
}

// TestFileThatIsMoved is written anew, at once after Reopen, and soon without it.
func TestFileThatIsMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path, old := filepath.Join(dir, "log"), filepath.Join(dir, "log.1")
		f, err := NewFile(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		write := func(line string) {
			t.Helper()
			if _, err := f.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
		has := func(path, want string) {
			t.Helper()
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s has %q, %v; want %q", filepath.Base(path), got, err, want)
			}
		}
		move := func() {
			t.Helper()
			if err := os.Rename(path, old); err != nil {
				t.Fatal(err)
			}
		}
		write("1\n")
		move()
		write("2\n")
		has(old, "1\n2\n")
		if err := f.Reopen(); err != nil {
			t.Fatal(err)
		}
		write("3\n")
		has(old, "1\n2\n")
		has(path, "3\n")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
			t.Errorf("%v, %v: others may read it", info.Mode(), err)
		}

		move()
		time.Sleep(lookEvery)
		write("4\n")
		has(old, "3\n")
		has(path, "4\n")
		os.Remove(path)
		time.Sleep(lookEvery)
		write("5\n")
		has(path, "5\n")
		if err := os.Truncate(path, 0); err != nil { // copytruncate
			t.Fatal(err)
		}
		write("6\n")
		has(path, "6\n")

		// Nothing is lost if it cannot be opened anew.
		move()
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := f.Reopen(); err == nil {
			t.Error("a directory was opened")
		}
		time.Sleep(lookEvery)
		write("7\n")
		has(old, "6\n7\n")
	})
}

// TestFullDisk is told of once, with the number of lines when there is room again.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const full = "/dev/full"
		if _, err := os.Stat(full); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		path := filepath.Join(t.TempDir(), "log")
		if err := os.Symlink(full, path); err != nil {
			t.Fatal(err)
		}
		var told []string
		f, err := NewFile(path, func(err error) { told = append(told, err.Error()) })
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 3 {
			if _, err := f.Write([]byte("x\n")); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("Write = %v", err)
			}
		}
		os.Remove(path)
		time.Sleep(time.Minute)
		if _, err := f.Write([]byte("x\n")); err != nil {
			t.Error(err)
		}
		if len(told) != 2 || !strings.Contains(told[0], "no space left") || !strings.HasSuffix(told[1], "3 lines were lost") {
			t.Errorf("told of %q", told)
		}
	})
}
