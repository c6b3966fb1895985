package proc

import (
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestALineOfAProcess(t *testing.T) {
	line := "4711 (a) R (b)) S 12 4711 4711 0 -1 4194560 1 2 3 4 150 50 7 3 20 0 5 0 100 12345 25 18446744073709551615\n"
	p, err := parseStat(line)
	if err != nil {
		t.Fatal(err)
	}
	want := process{"a) R (b)", 4711, 12, Usage{2100 * time.Millisecond, 25 * int64(os.Getpagesize())}}
	if p != want {
		t.Errorf("got %+v, want %+v", p, want)
	}
	for _, line := range []string{"", "1 (sh)", "1 (sh) S 2 3", "x" + line} {
		if p, err := parseStat(line); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", line, p)
		}
	}
}

func TestBusyTimeOfTheMachine(t *testing.T) {
	got, err := parseMachine("cpu  100 1 20 5000 300 4 6 77 0 0\ncpu0 1 2\n")
	if want := 131 * tick; got != want || err != nil {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if got, err := parseMachine("intr 1 2 3"); err == nil {
		t.Errorf("got %v, want an error", got)
	}
}

func TestSegmentsSentAgain(t *testing.T) {
	const snmp = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm RetransSegs InErrs\nTcp: 1 42 0\n"
	if got, err := parseRetransmits(snmp); got != 42 || err != nil {
		t.Errorf("got %d, %v; want 42", got, err)
	}
	if got, err := parseRetransmits("Ip: Forwarding\nIp: 1\n"); err == nil {
		t.Errorf("got %d, want an error", got)
	}
	if _, err := Retransmits(os.Getpid()); err != nil {
		t.Error(err)
	}
}

// TestATree: this process, a shell, and cat, which that has started.
func TestATree(t *testing.T) {
	if n, err := Machine(); n == 0 || err != nil {
		t.Errorf("the machine has worked for %v, %v", n, err)
	}
	none, err := Tree(os.Getpid())
	if err != nil || none != (Usage{}) {
		t.Fatalf("without children: %+v, %v", none, err)
	}
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; cat; :")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil { // from cat
		t.Fatal(err)
	}
	one, err := Tree(os.Getpid())
	if err != nil || one.CPU == 0 || one.RSS == 0 {
		t.Errorf("with a shell that has worked: %+v, %v", one, err)
	}
	below, err := Tree(cmd.Process.Pid)
	if err != nil || below.RSS != one.RSS {
		t.Errorf("below the shell: %+v, %v; want the memory of cat, as in %+v", below, err, one)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
