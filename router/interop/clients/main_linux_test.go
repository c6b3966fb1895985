package clients

import (
	"sync"
	"testing"

	"go.uber.org/goleak"

	"tunroute/router/interop/binary"
	"tunroute/router/interop/lab"
)

func TestMain(m *testing.M) {
	lab.Enter(binary.Build)
	goleak.VerifyTestMain(m)
}

var lookAtSources = sync.OnceValue(func() error { return binary.Sources("../../..") })
