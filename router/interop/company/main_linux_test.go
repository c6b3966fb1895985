package company

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tunroute/router/interop/binary"
	"tunroute/router/interop/lab"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role := roles[os.Args[1]]; role != nil {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	lab.Enter(binary.Build)
	goleak.VerifyTestMain(m)
}

var lookAtSources = sync.OnceValue(func() error { return binary.Sources("../../..") })
