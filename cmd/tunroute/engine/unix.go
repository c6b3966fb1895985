package engine

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrInUse says that another daemon answers at a path.
var ErrInUse = errors.New("another daemon answers there")

// ListenUnix makes a socket at path whose mode has never been another one. A socket that
// nobody answers at is one that was left behind, and is replaced; what is no socket is left
// alone. Closing the listener removes it, unless another has taken its place.
func ListenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Made where nobody else can come in the moment before its mode is right.
	private, err := os.MkdirTemp(filepath.Dir(path), ".t") // short: a path may have 107 bytes (unix(7))
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(made, mode)
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	at, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &unixSocket{UnixListener: l, path: path, made: at}, nil
}

// removeStale removes the socket of a daemon that is gone.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return errors.New("there is a file that is no socket")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return ErrInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// unixSocket removes its own file, and not that of another daemon that has taken its
// place.
type unixSocket struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

func (s *unixSocket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.made) {
		os.Remove(s.path)
	}
	return s.UnixListener.Close()
}
