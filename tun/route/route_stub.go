//go:build !linux

package route

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

// Routing of a host is Linux only: the other systems have no policy rules like
// these. All functions that touch the host return an error that Is
// errors.ErrUnsupported.

// Applied is a plan that has been carried out.
type Applied struct {
	Warnings []string
}

func unsupported() error {
	return fmt.Errorf("routing of this host: not supported on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// ReadHost reads what a plan must know of this host.
func ReadHost(device string) (Host, error) { return Host{}, unsupported() }

// Apply carries out a plan.
func Apply(ctx context.Context, p Plan) (*Applied, error) { return nil, unsupported() }

// Undo takes back what Apply has done.
func (a *Applied) Undo() error { return unsupported() }

// Clean removes what an earlier run has left.
func Clean(o Options) error { return unsupported() }

// Via asks the kernel by which interface a packet to dst would leave.
func Via(dst netip.Addr, mark uint32) (ifname string, src netip.Addr, local bool, err error) {
	return "", netip.Addr{}, false, unsupported()
}

// Forwarding reports what keeps this host from being a gateway.
func Forwarding() ([]Warning, error) { return nil, unsupported() }
