//go:build !linux

package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// Namespaces are Linux only.

func unsupported() error {
	return fmt.Errorf("a namespace for a command: not supported on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Conn is a socket to another of our processes.
type Conn struct{}

// Pair returns the two ends of a socket.
func Pair() (a, b *os.File, err error) { return nil, nil, unsupported() }

// NewConn returns the Conn of one end of a [Pair].
func NewConn(f *os.File) (*Conn, error) { return nil, unsupported() }

// SendFD sends the open TUN and its MTU to the other end.
func (c *Conn) SendFD(tun *os.File, mtu int) error { return unsupported() }

// RecvFD receives what SendFD sent.
func (c *Conn) RecvFD() (fd, mtu int, err error) { return -1, 0, unsupported() }

// SendReady tells the other end that the TUN is being read.
func (c *Conn) SendReady(err error) error { return unsupported() }

// AwaitReady blocks until the other end has called SendReady.
func (c *Conn) AwaitReady() error { return unsupported() }

// Done blocks until the other end has gone.
func (c *Conn) Done() {}

// Close ends the connection.
func (c *Conn) Close() error { return unsupported() }

// Inside is the child process, as its parent sees it.
type Inside struct{}

// Start runs this executable again, in namespaces of its own.
func Start(args []string, router *os.File) (*Inside, error) { return nil, unsupported() }

// Signal passes a signal on to the command.
func (i *Inside) Signal(sig syscall.Signal) error { return unsupported() }

// Wait blocks until the command has ended.
func (i *Inside) Wait() (Status, error) { return Status{Code: exitFailed}, unsupported() }

// Kill ends the child process.
func (i *Inside) Kill() {}

// Child is the process in the namespace.
type Child struct{ Router *Conn }

// Enter returns the Child in a process that [Start] has started.
func Enter() (*Child, error) { return nil, unsupported() }

// Fail tells the parent why there will be no command.
func (c *Child) Fail(err error) {}

// Run starts a command and returns when no process of it is left.
func (c *Child) Run(args []string) error { return unsupported() }

// Setup makes the namespaces of the calling process what they are for.
func Setup(c Config) (device *os.File, warnings []string, err error) { return nil, nil, unsupported() }

// CloseInherited closes the files that this process was started with.
func CloseInherited() error { return unsupported() }

// Diagnose says what forbids namespaces.
func Diagnose(err error) error { return err }

// Exit ends this process as the command ended.
func (s Status) Exit() { os.Exit(s.Code) }
