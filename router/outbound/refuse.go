package outbound

import (
	"context"
	"fmt"

	"tunroute/router/flow"
)

var (
	_ PacketDialer = Reject{}
	_ PacketDialer = Drop{}
)

// Reject is the outbound that refuses every flow with [ErrRejected].
type Reject struct {
	Why string // what the error says besides; may be ""
}

// DialTCP returns ErrRejected.
func (r Reject) DialTCP(context.Context, flow.Target) (Conn, error) { return nil, r.Err() }

// OpenUDP returns ErrRejected.
func (r Reject) OpenUDP(context.Context) (PacketConn, error) { return nil, r.Err() }

// Err returns ErrRejected, with the reason if there is one.
func (r Reject) Err() error {
	if r.Why == "" {
		return ErrRejected
	}
	return fmt.Errorf("%w: %s", ErrRejected, r.Why)
}

// Drop is the outbound that ignores every flow: its error is [ErrDropped], and
// the client is told nothing.
type Drop struct{}

// DialTCP returns ErrDropped.
func (Drop) DialTCP(context.Context, flow.Target) (Conn, error) { return nil, ErrDropped }

// OpenUDP returns ErrDropped.
func (Drop) OpenUDP(context.Context) (PacketConn, error) { return nil, ErrDropped }
