package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tunroute/tun"
)

const (
	resolvConf = "/etc/resolv.conf"
	nsswitch   = "/etc/nsswitch.conf"
	// staging is a directory that exists, since the TUN was opened there, and
	// that is covered for a moment while the files are made.
	staging = "/dev/net"
)

// What is in the Op of a PathError when a mount fails.
const (
	opMount     = "mount"
	opOpenTree  = "open_tree"
	opMoveMount = "move_mount"
)

// hidden are directories with sockets by which programs ask for names past the
// network.
var hidden = []string{
	"/run/nscd", "/var/run/nscd", // glibc asks nscd before it reads nsswitch.conf
	"/run/systemd/resolve", // nss-resolve speaks varlink to systemd-resolved
}

// CoverNames has programs ask for names at some servers and nowhere else, as those of
// [Setup] do. It is for a process with a mount namespace of its own, whose mounts are
// seen nowhere else.
//
// What forbids it is a [*tun.Obstacle], see [Diagnose].
func CoverNames(servers ...netip.Addr) error {
	if err := shadow(Config{Nameservers: servers}); err != nil {
		return Diagnose(fmt.Errorf("cover the files about names: %w", err))
	}
	return nil
}

// shadow covers what programs ask for names by our own.
func shadow(c Config) error {
	covers := map[string][]byte{resolvConf: resolvContent(c)}
	switch b, err := os.ReadFile(nsswitch); {
	case err == nil:
		covers[nsswitch] = nsswitchContent(b)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		// Without the file glibc asks files and dns, and musl never reads it.
	}
	if err := cover(covers); err != nil {
		return err
	}

	done := make(map[string]bool)
	for _, dir := range hidden {
		// /var/run is /run nearly everywhere.
		dir, err := filepath.EvalSymlinks(dir)
		if err != nil || done[dir] {
			continue // not there, or not for this user
		}
		done[dir] = true
		if err := mountTmpfs(dir); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

// cover mounts a file with the given content over each path. The path itself is
// covered, and not what it links to: it may link to nowhere, or to a file that
// the host replaces.
func cover(files map[string][]byte) (err error) {
	for path := range files {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return &tun.Obstacle{
				What:   path + " does not exist, so that no other can be mounted over it",
				Remedy: "create an empty one with `touch " + path + "` as root",
				Err:    err,
			}
		}
	}
	if err := mountTmpfs(staging); err != nil {
		return err
	}
	// The files stay mounted where they are needed.
	defer func() {
		if uerr := unix.Unmount(staging, unix.MNT_DETACH); err == nil && uerr != nil {
			err = fmt.Errorf("unmount %s: %w", staging, uerr)
		}
	}()
	for path, content := range files {
		copied := filepath.Join(staging, filepath.Base(path))
		if err := os.WriteFile(copied, content, 0o444); err != nil {
			return err
		}
		if err := bindOver(copied, path); err != nil {
			return fmt.Errorf("cover %s: %w", path, err)
		}
	}
	return nil
}

// bindOver mounts a file over another without following the link that the other
// may be, which mount(2) cannot do.
func bindOver(from, to string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &fs.PathError{Op: opOpenTree, Path: from, Err: err}
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: opMoveMount, Path: to, Err: err}
	}
	return nil
}

// mountTmpfs mounts an empty file system, in memory, over a directory.
func mountTmpfs(dir string) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("tunroute", dir, "tmpfs", flags, "mode=755,size=1m"); err != nil {
		return &fs.PathError{Op: opMount, Path: dir, Err: err}
	}
	return nil
}
