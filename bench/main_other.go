//go:build !linux

package main

import (
	"fmt"
	"os"
)

func run([]string) (status int) {
	fmt.Fprintln(os.Stderr, "bench: the rig needs Linux; go test -bench . ./bench runs everywhere")
	return 2
}
