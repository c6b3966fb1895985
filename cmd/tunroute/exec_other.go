//go:build !linux

package main

import (
	"errors"
	"fmt"
	"runtime"

	"tunroute/cmd/tunroute/config"
)

func runExec(spec, *config.Config, []string) error {
	return fmt.Errorf("not supported on this system (%s): %w", runtime.GOOS, errors.ErrUnsupported)
}

// runStage runs this process as a part of exec, where it has been started as
// one.
func runStage([]string) (status int, ok bool) { return 0, false }
