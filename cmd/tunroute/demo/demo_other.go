//go:build !linux

package demo

import (
	"errors"
	"fmt"
	"runtime"
)

// Run runs the demo: not on this system.
func Run(Task) (status int, err error) {
	return 0, fmt.Errorf("not supported on this system (%s): %w", runtime.GOOS, errors.ErrUnsupported)
}
