//go:build !linux

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"tunroute/cmd/tunroute/config"
)

func runExec(spec, *config.Config, []string) error {
	fmt.Fprintf(os.Stderr, "tunroute: exec: not supported on this system (%s): %v\n", runtime.GOOS, errors.ErrUnsupported)
	return exitFailed
}

// runStage runs this process as a part of exec, where it has been started as
// one.
func runStage([]string) (status int, ok bool) { return 0, false }
