package dnsfake

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// mountTmpfs mounts a file system of so many octets.
func mountTmpfs(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("mount: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// A full disk, and one that becomes read-only, keeps nobody from having an address,
// and when it can be written again it has them all.
func TestDiskIsFullOrReadOnly(t *testing.T) {
	for _, tt := range []struct {
		name        string
		spoil, mend func(dir string) error
		told        string
	}{
		{"full",
			func(dir string) error {
				f, err := os.Create(filepath.Join(dir, "big"))
				for err == nil {
					_, err = f.Write(make([]byte, 4096))
				}
				f.Close()
				return nil
			},
			func(dir string) error { return os.Remove(filepath.Join(dir, "big")) },
			"no space left"},
		{"read-only",
			func(dir string) error {
				return syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
			},
			func(dir string) error { return syscall.Mount("", dir, "", syscall.MS_REMOUNT, "") },
			"read-only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := mountTmpfs(t, 1<<20)
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				logger := slog.New(slog.NewTextHandler(&log, nil))
				path := filepath.Join(dir, "leases")
				p := openPool(t, path, PoolOptions{Logger: logger})
				stop := runPool(t, p)
				n := 0
				lease := func(more int) {
					for range more {
						n++
						mustLease(t, p, fmt.Sprintf("n%d.example", n), false)
					}
				}
				lease(100)
				if tt.name == "read-only" {
					// A file system with a file that is open for writing cannot be.
					stop()
					if err := tt.spoil(dir); err != nil {
						t.Fatal(err)
					}
					p = openPool(t, path, PoolOptions{Logger: logger})
					stop = runPool(t, p)
				} else if err := tt.spoil(dir); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				lease(1000)
				if took := time.Since(start); took > 0 {
					t.Errorf("a thousand names took %v", took)
				}
				if s := p.Stats(); !s.Failing || s.Leases != n {
					t.Errorf("stats %+v", s)
				}
				time.Sleep(3*retryDelay + 1)
				if got := log.String(); strings.Count(got, "level=ERROR") == 0 || !strings.Contains(got, tt.told) {
					t.Errorf("log: %s", got)
				}
				if err := tt.mend(dir); err != nil {
					t.Fatal(err)
				}
				lease(10)
				time.Sleep(retryDelay)
				synctest.Wait()
				lease(10)
				if s := p.Stats(); s.Failing || s.Leases != n {
					t.Errorf("stats %+v: %s", s, log.String())
				}
				want := leasesOf(p)
				copyFile(t, path, filepath.Join(dir, "copy"))
				stop()
				sameLeases(t, leasesOf(openPool(t, filepath.Join(dir, "copy"), PoolOptions{})), want)
				sameLeases(t, leasesOf(openPool(t, path, PoolOptions{})), want)
			})
		})
	}
}

// A directory that cannot be synced does not spoil the file in it.
func TestDirectoryCannotBeSynced(t *testing.T) {
	if err := syncDir("/proc/self/leases"); err != nil { // no fsync there
		t.Error(err)
	}
	if err := syncDir(filepath.Join(t.TempDir(), "not", "there")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
