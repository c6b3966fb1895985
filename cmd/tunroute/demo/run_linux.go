package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tunroute/tun/netns/hosts"
)

// Run runs the demo, prints what it has seen on standard output, and returns the exit
// status: 0 if all is as it should be, or that of the shell. When it returns, or when
// this process ends in whatever way, nothing of the demo is left.
//
// What forbids namespaces on this machine is a [tunroute/tun.Obstacle].
func Run(t Task) (status int, err error) {
	text, err := json.Marshal(t)
	if err != nil {
		return 0, err
	}
	// What the terminal sends reaches all: D ends by itself, and a shell has its
	// own mind about ^C.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	w, err := hosts.Start([]string{StageCompany, string(text)})
	if err != nil {
		return 0, err
	}
	ended := make(chan int)
	go func() { ended <- w.Wait() }()
	for {
		select {
		case status := <-ended:
			if t.Shell {
				takeTerminal()
			}
			return status, nil
		case sig := <-signals:
			if t.Shell && (sig == syscall.SIGINT || sig == syscall.SIGQUIT) {
				continue
			}
			w.Kill()
			<-ended
			fmt.Fprintln(os.Stderr, "tunroute: demo: ended by a signal, and nothing is left:", sig)
			return 128 + int(sig.(syscall.Signal)), nil
		}
	}
}

// takeTerminal makes our process group the one in the foreground again, which that of the
// shell was.
func takeTerminal() {
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return
	}
	signal.Ignore(syscall.SIGTTOU)
	defer signal.Reset(syscall.SIGTTOU)
	_ = unix.IoctlSetPointerInt(fd, unix.TIOCSPGRP, unix.Getpgrp())
}
