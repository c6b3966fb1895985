package dnsfake

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		fmt.Fprintln(os.Stderr, leaseForever(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}
