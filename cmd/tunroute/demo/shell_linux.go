package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/term"
)

// shell runs a shell on the client, in the directory of the company, and returns its
// exit status.
func (c *company) shell() (status int, err error) {
	fmt.Printf(toTry, c.dir, clientAddr, c.client.config, c.user, c.password)
	cmd := exec.Command(userShell())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "HISTFILE=", runtimeDir) // without a file for its history
	if fd := int(os.Stdin.Fd()); term.IsTerminal(fd) {
		// In the foreground, as a group of its own: that of this process is of
		// another process namespace, and no shell could give it the terminal back.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: fd}
	}
	if err := c.client.Start(cmd); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// toTry is what is said before the shell: of the directory, the client, its config, user
// and password.
const toTry = `
This is %[2]v, whose programs know nothing of tunroute, nor of the servers. Try

  curl http://lan.corp.example/            1  it sees 10.0.0.10, who you are
  curl http://www.example.com/             3  it sees 203.0.113.1 or .2, as it comes
  curl http://www.example.com:8080/        2  not allowed: no route to host, at once
  curl http://192.168.100.10/              5  it sees D1, 192.168.100.1
  curl http://192.168.100.10:9/            5  connection refused, as D1 was told
  curl http://t1.private-net.org/          6  it sees P1, 172.31.0.1
  dig t1.private-net.org                   6  a fake address, and nobody was asked

and as a program that speaks SOCKS itself, and knows one server only:

  curl -x socks5h://10.0.4.1 http://t2.private-net.org/     D1 goes on to P1
  curl -x socks5h://%[4]s:%[5]s@10.0.3.1 http://www.example.com/

In %[1]s are the configs, %[3]s is that of this machine, and the logs: tail -f d1.log
To end it all: exit
`

// userShell is the shell of the user.
func userShell() string {
	for _, sh := range []string{os.Getenv("SHELL"), "bash"} {
		if path, err := exec.LookPath(sh); err == nil {
			return path
		}
	}
	return "/bin/sh"
}

// runtimeDir says where a daemon's socket is for who is not root: each host has a /run
// of its own.
const runtimeDir = "XDG_RUNTIME_DIR=/run"
