//go:build !linux

package outbound

import (
	"errors"
	"fmt"
	"syscall"
)

func checkSocketOptions(o DirectOptions) error {
	switch {
	case o.Mark != 0:
		return fmt.Errorf("mark: %w", errors.ErrUnsupported)
	case o.Interface != "":
		return fmt.Errorf("interface: %w", errors.ErrUnsupported)
	}
	return nil
}

// Control does nothing: there is nothing to set.
func (d *Direct) Control(string, string, syscall.RawConn) error { return nil }
