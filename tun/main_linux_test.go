package tun

import (
	"testing"

	"go.uber.org/goleak"

	"tunroute/tun/nstest"
)

func TestMain(m *testing.M) {
	nstest.Enter()
	goleak.VerifyTestMain(m)
}
