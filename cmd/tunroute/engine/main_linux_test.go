package engine_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"tunroute/tun/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	if err := nstest.Loopback(); err != nil { // where the servers of tests listen
		fmt.Fprintln(os.Stderr, "loopback interface:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
