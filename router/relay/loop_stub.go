//go:build !linux || portable

package relay

import (
	"context"
	"errors"
	"net"
)

// Loop relays without goroutines for flows that are idle; on Linux only. The build
// tag portable leaves it out there too, for tests of what other systems have.
type Loop struct{}

// NewLoop returns errors.ErrUnsupported.
func NewLoop() (*Loop, error) { return nil, errors.ErrUnsupported }

// Flows is not reached.
func (*Loop) Flows() int { return 0 }

// Run is not reached.
func (*Loop) Run(context.Context) {}

// Relay is not reached.
func (*Loop) Relay(Stream, *net.TCPConn, *Counters, Owner) (*Flow, error) {
	return nil, errors.ErrUnsupported
}

// RelaySockets is not reached.
func (*Loop) RelaySockets(client, upstream *net.TCPConn, _ *Counters, _ Owner) (*Flow, error) {
	return nil, errors.ErrUnsupported
}

// Flow is a flow of a Loop.
type Flow struct{}

// Cancel is not reached.
func (*Flow) Cancel(error) {}
