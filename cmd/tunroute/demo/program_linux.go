package demo

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"tunroute/tun/netns/hosts"
)

// tunroute is a host with a tunroute, as a process of its own.
type tunroute struct {
	*hosts.Host
	dir, config string // the config's file is in dir

	cmd    *exec.Cmd
	copied chan struct{} // closed when all that cmd has said is in lines

	mu    sync.Mutex // guards what follows
	lines []string   // its log, of all that have been started here
	ended bool       // none runs
	more  sync.Cond  // on mu
}

// newTunroute makes what is started by start.
func newTunroute(h *hosts.Host, dir, config string) *tunroute {
	t := &tunroute{Host: h, dir: dir, config: config, ended: true}
	t.more.L = &t.mu
	return t
}

// start runs tunroute on the host, and returns when it serves.
func (t *tunroute) start() error {
	log, err := os.OpenFile(filepath.Join(t.dir, t.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	skip := t.logged()
	cmd := exec.Command("/proc/self/exe", "run", "-c", t.config)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), runtimeDir)
	// What a terminal sends is not for a daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StderrPipe()
	if err == nil {
		err = t.Start(cmd)
	}
	if err != nil {
		log.Close()
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	copied := make(chan struct{})
	t.cmd, t.copied = cmd, copied
	t.mu.Lock()
	t.ended = false
	t.mu.Unlock()
	go func() {
		defer close(copied)
		defer log.Close()
		for in := bufio.NewReader(out); ; {
			line, err := in.ReadString('\n')
			io.WriteString(log, line)
			t.mu.Lock()
			if t.ended = err != nil; !t.ended {
				t.lines = append(t.lines, strings.TrimSuffix(line, "\n"))
			}
			t.mu.Unlock()
			t.more.Broadcast()
			if err != nil {
				return
			}
		}
	}()
	if _, err := t.await(skip, 1, "msg=ready"); err != nil {
		t.kill() // and all that it has said is there
		return fmt.Errorf("tunroute on %s does not start: %s", t.Name, strings.Join(t.lines[skip:], "\n"))
	}
	return nil
}

// kill ends it as SIGKILL does, and returns whether it was running.
func (t *tunroute) kill() bool {
	if t.cmd == nil {
		return false
	}
	t.cmd.Process.Kill()
	<-t.copied
	t.cmd.Wait()
	t.cmd = nil
	return true
}

// logged returns how many lines its log has.
func (t *tunroute) logged() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.lines)
}

// await waits until n lines of the log behind the first skip have all of some texts in
// them, and returns these lines.
func (t *tunroute) await(skip, n int, texts ...string) (found []string, err error) {
	late := time.AfterFunc(patience, t.more.Broadcast)
	defer late.Stop()
	end := time.Now().Add(patience)
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		found = found[:0]
	lines:
		for _, line := range t.lines[skip:] {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			found = append(found, line)
		}
		if len(found) >= n {
			return found, nil
		}
		if t.ended || time.Now().After(end) {
			return found, fmt.Errorf("%s has logged %q %d times, want %d", t.Name, texts, len(found), n)
		}
		t.more.Wait()
	}
}
