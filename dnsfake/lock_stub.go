//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package dnsfake

import (
	"errors"
	"os"
)

// lockFile has nothing to lock with.
func lockFile(*os.File) error { return errors.ErrUnsupported }
