package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
)

// TestOnlyCanceled: a SIGTERM while run starts is an end in order, unless something is
// left that it could not take back.
func TestOnlyCanceled(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, dial := new(net.Dialer).DialContext(gone, "tcp", "127.0.0.1:1")
	left := errors.New("undo rule 7400: busy")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{gone.Err(), true},
		{fmt.Errorf("route: %w", gone.Err()), true},
		{errors.Join(fmt.Errorf("route: %w", gone.Err()), nil), true},
		{dial, true},
		{errors.Join(fmt.Errorf("route: %w", gone.Err()), left), false},
		{left, false},
		{fmt.Errorf("listen: %w", errors.Join(dial, left)), false},
	} {
		if got := onlyCanceled(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// TestLowPort: what to do about a port that is not for everybody is said, and of nothing
// else.
func TestLowPort(t *testing.T) {
	for network, want := range map[string]bool{"tcp": true, "udp": true, "unix": false} {
		err := withRemedy(fmt.Errorf("listen: %w", &net.OpError{Op: "listen", Net: network, Err: syscall.EACCES}))
		if got := strings.HasSuffix(err.Error(), "CAP_NET_BIND_SERVICE"); got != want {
			t.Errorf("%s: %v", network, err)
		}
	}
	if err := withRemedy(nil); err != nil {
		t.Error(err)
	}
}
