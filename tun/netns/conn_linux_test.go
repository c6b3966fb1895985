package netns

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func connPair(t *testing.T) (a, b *Conn) {
	t.Helper()
	fa, fb, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = NewConn(fa); err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fb); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestFilesAreHandedOver(t *testing.T) {
	a, b := connPair(t)
	f := stringFile(t, "through the file")
	if err := a.SendFD(f, 9000); err != nil {
		t.Fatal(err)
	}
	f.Close() // the other end has its own
	fd, mtu, err := b.RecvFD()
	if err != nil || mtu != 9000 {
		t.Fatalf("RecvFD = %d, mtu %d, %v", fd, mtu, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the file has the flags %#x, %v, want it closed on exec", flags, err)
	}
	got := os.NewFile(uintptr(fd), "received")
	defer got.Close()
	if content, err := io.ReadAll(got); string(content) != "through the file" {
		t.Errorf("the file has %q, %v", content, err)
	}
}

func TestReadyTellsWhyNot(t *testing.T) {
	a, b := connPair(t)
	for _, want := range []error{nil, errors.New("no way to 192.0.2.1"), errors.New(strings.Repeat("x", 2*maxMessage))} {
		if err := a.SendReady(want); err != nil {
			t.Fatal(err)
		}
		switch got := b.AwaitReady(); {
		case want == nil && got != nil:
			t.Errorf("AwaitReady = %v, want nil", got)
		case want != nil && (got == nil || !strings.HasPrefix(want.Error(), got.Error())):
			t.Errorf("AwaitReady = %v, want %v", got, want)
		}
	}
}

func TestGoneEndIsSeen(t *testing.T) {
	a, b := connPair(t)
	a.Close()
	if _, _, err := b.RecvFD(); !errors.Is(err, io.EOF) {
		t.Errorf("RecvFD = %v, want %v", err, io.EOF)
	}
	if err := b.AwaitReady(); !errors.Is(err, io.EOF) {
		t.Errorf("AwaitReady = %v, want %v", err, io.EOF)
	}
	b.Done() // returns
	if err := b.SendReady(nil); !errors.Is(err, unix.EPIPE) {
		t.Errorf("SendReady = %v, want %v", err, unix.EPIPE)
	}
}

// What was sent before the end arrives, also if the other end had not read all.
func TestLastWordArrives(t *testing.T) {
	a, b := connPair(t)
	if err := a.SendReady(nil); err != nil { // never read
		t.Fatal(err)
	}
	if err := b.SendReady(errors.New("the last word")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := a.AwaitReady(); err == nil || err.Error() != "the last word" {
		t.Errorf("AwaitReady = %v, want the last word", err)
	}
	if err := a.AwaitReady(); !errors.Is(err, io.EOF) {
		t.Errorf("and then %v, want %v", err, io.EOF)
	}
}

// Nothing that the other end may send does harm or leaves a file open.
func TestWrongMessagesAreRefused(t *testing.T) {
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		message string
		files   int
	}{
		"no file":           {"t\x00\x00\x05\x78", 0},
		"two files":         {"t\x00\x00\x05\x78", 2},
		"short":             {"t\x00", 1},
		"long":              {"t\x00\x00\x05\x78\x00", 1},
		"another kind":      {"x\x00\x00\x05\x78", 1},
		"more than we take": {"t\x00\x00\x05\x78", 20},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := connPair(t)
			defer a.Close()
			defer b.Close()
			var oob []byte
			if tt.files > 0 {
				fds := make([]int, tt.files) // standard input, again and again
				oob = unix.UnixRights(fds...)
			}
			if _, _, err := a.c.WriteMsgUnix([]byte(tt.message), oob, nil); err != nil {
				t.Fatal(err)
			}
			if fd, mtu, err := b.RecvFD(); err == nil {
				t.Errorf("RecvFD = %d, mtu %d", fd, mtu)
			}
		})
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(after) != len(before) {
		t.Errorf("%d files are open, %d before", len(after), len(before))
	}
}

func TestEnterWantsStart(t *testing.T) {
	if _, err := Enter(); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("Enter without Start = %v", err)
	}
	t.Setenv(inheritEnv, "998")
	if c, err := Enter(); err == nil {
		t.Errorf("Enter with a file that is not open = %v", c)
	}
}
