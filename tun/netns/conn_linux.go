package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Pair returns the two ends of a socket for [NewConn], each to be given to
// another process. Neither is inherited unless it is named to the child.
func Pair() (a, b *os.File, err error) {
	// Datagrams that arrive whole and in order, and an end of file when the
	// other end is gone (unix(7), SOCK_SEQPACKET).
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "netns"), os.NewFile(uintptr(fds[1]), "netns"), nil
}

// Conn is a socket to another of our processes. One goroutine may send while
// another receives. It ends when the process at the other end has, however it
// ended.
type Conn struct {
	c *net.UnixConn
}

// NewConn returns the Conn of one end of a [Pair]. It takes f over.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close() // net.FileConn has a copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", f.Name(), err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("socket %s: is not a unix socket", f.Name())
	}
	return &Conn{u}, nil
}

// Close ends the connection; the other end sees it.
func (c *Conn) Close() error { return c.c.Close() }

// The messages. The first byte is the kind.
const (
	kindTUN    = 't' // the TUN goes along; 4 bytes, big-endian: its MTU. C to R
	kindReady  = 'r' // text: why not, or empty. R to C
	kindSignal = 's' // 1 byte: the number of a signal for CMD. P to C
	kindExit   = 'x' // 1 byte: 1 if CMD has left something, else 0; 4 bytes, big-endian: the status of CMD as wait(2) has it. C to P
	kindFail   = 'f' // 1 byte: exit status; text: why there will be no CMD. C to P
)

// maxMessage is enough for a line of text. A longer one is cut.
const maxMessage = 4096

// SendFD sends the open TUN and its MTU to the other end, which gets an open
// file of its own.
func (c *Conn) SendFD(tun *os.File, mtu int) error {
	sc, err := tun.SyscallConn()
	if err != nil {
		return fmt.Errorf("send the tun: %w", err)
	}
	m := binary.BigEndian.AppendUint32([]byte{kindTUN}, uint32(mtu))
	// Not tun.Fd, which may make the file blocking, and that is shared.
	if cerr := sc.Control(func(fd uintptr) {
		_, _, err = c.c.WriteMsgUnix(m, unix.UnixRights(int(fd)), nil)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("send the tun: %w", err)
	}
	return nil
}

// RecvFD receives what [Conn.SendFD] sent. The caller owns fd, which is closed
// on exec. It blocks until there is one; io.EOF means that the other end has
// gone.
func (c *Conn) RecvFD() (fd, mtu int, err error) {
	m, fds, err := c.receive()
	if err == nil && (len(m) != 5 || m[0] != kindTUN || len(fds) != 1) {
		err = fmt.Errorf("not a tun but a message of %d bytes and %d files", len(m), len(fds))
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return -1, 0, fmt.Errorf("receive the tun: %w", err)
	}
	return fds[0], int(binary.BigEndian.Uint32(m[1:])), nil
}

// SendReady tells the other end that the TUN is being read, or why it will not
// be.
func (c *Conn) SendReady(err error) error {
	m := []byte{kindReady}
	if err != nil {
		m = append(m, err.Error()...)
	}
	return c.send(m)
}

// AwaitReady blocks until the other end has called [Conn.SendReady] and returns
// what it said. If the other end has gone, the error Is io.EOF.
func (c *Conn) AwaitReady() error {
	m, err := c.receiveMessage()
	switch {
	case err != nil:
		return fmt.Errorf("wait for the router: %w", err)
	case m[0] != kindReady:
		return fmt.Errorf("wait for the router: unexpected message %q", m[0])
	case len(m) > 1:
		return errors.New(string(m[1:]))
	}
	return nil
}

// Done blocks until the other end has gone, or until Close.
func (c *Conn) Done() {
	for {
		if _, err := c.receiveMessage(); err != nil {
			return
		}
	}
}

func (c *Conn) send(m []byte) error {
	_, err := c.c.Write(m[:min(len(m), maxMessage)])
	return err
}

// receiveMessage returns a message of at least one byte.
func (c *Conn) receiveMessage() ([]byte, error) {
	m, fds, err := c.receive()
	for _, fd := range fds {
		unix.Close(fd)
	}
	return m, err
}

func (c *Conn) receive() (m []byte, fds []int, err error) {
	m = make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*8)) // more than ever comes, so that all can be closed
	n, oobn, _, _, err := c.c.ReadMsgUnix(m, oob)
	if errors.Is(err, unix.ECONNRESET) {
		// The other end has closed without reading all that we sent. The
		// kernel says so once, before what it sent us.
		n, oobn, _, _, err = c.c.ReadMsgUnix(m, oob)
	}
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	control, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	for _, cm := range control {
		if got, err := unix.ParseUnixRights(&cm); err == nil {
			fds = append(fds, got...)
		}
	}
	return m[:n], fds, nil
}
