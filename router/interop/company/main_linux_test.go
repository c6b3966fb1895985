package company

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
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
	// What nohup started has hangups ignored, and so would all that the tests
	// start; who catches them passes the default on.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	lab.Enter(binary.Build)
	goleak.VerifyTestMain(m)
}

var lookAtSources = sync.OnceValue(func() error { return binary.Sources("../../..") })
