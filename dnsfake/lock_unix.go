//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package dnsfake

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks f for this process until it is closed, and fails at once where
// somebody has it.
func lockFile(f *os.File) error {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrInUse
		case !errors.Is(err, syscall.EINTR):
			return os.NewSyscallError("flock", err)
		}
	}
}
