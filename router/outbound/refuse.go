package outbound

import (
	"context"

	"tunroute/router/flow"
)

var (
	_ PacketDialer = Reject{}
	_ PacketDialer = Drop{}
)

// Reject is the outbound that refuses every flow with [ErrRejected].
type Reject struct{}

// DialTCP returns ErrRejected.
func (Reject) DialTCP(context.Context, flow.Target) (Conn, error) { return nil, ErrRejected }

// OpenUDP returns ErrRejected.
func (Reject) OpenUDP(context.Context) (PacketConn, error) { return nil, ErrRejected }

// Drop is the outbound that ignores every flow: its error is [ErrDropped], and
// the client is told nothing.
type Drop struct{}

// DialTCP returns ErrDropped.
func (Drop) DialTCP(context.Context, flow.Target) (Conn, error) { return nil, ErrDropped }

// OpenUDP returns ErrDropped.
func (Drop) OpenUDP(context.Context) (PacketConn, error) { return nil, ErrDropped }
