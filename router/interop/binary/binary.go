package binary

import (
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds the binary in a directory, with the race detector if the tests have
// it.
func Build(dir string) error {
	args := []string{"build", "-o", filepath.Join(dir, "tunroute")}
	if Race {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "tunroute/cmd/tunroute")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Sources makes go test notice a binary that has changed: it takes results from its
// cache unless there is a change in what the tests themselves have opened or listed.
// The folder is that of go.mod, seen from the test's.
func Sources(top string) error {
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != top && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		return err
	})
}
