//go:build unix

package users

import (
	"os"
	"syscall"
)

// keepOwner gives a new file the owner of the one that it replaces, as far as we may.
func keepOwner(newFile, old string) {
	if info, err := os.Stat(old); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			_ = os.Chown(newFile, int(s.Uid), int(s.Gid))
		}
	}
}
