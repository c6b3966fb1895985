package clients

import (
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
	// What nohup started has hangups ignored, and so would all that the tests
	// start; who catches them passes the default on.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	lab.Enter(binary.Build)
	goleak.VerifyTestMain(m)
}

var lookAtSources = sync.OnceValue(func() error { return binary.Sources("../../..") })
