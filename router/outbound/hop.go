package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"tunroute/router/flow"
)

// hop is a server on the way of flows, and how it is reached: what all outbounds
// through a server have in common.
type hop struct {
	name   string
	hops   []string // of the whole chain, ours last
	server flow.Target
	via    Dialer
	tls    *tls.Config // nil for none

	connect, negotiate, request time.Duration
}

// init checks and fills in what h has been given.
func (h *hop) init() error {
	switch {
	case h.via == nil:
		return fmt.Errorf("%s: no way to the server: Via is nil", h.name)
	case h.overUnix() && h.server != flow.Target{}:
		return fmt.Errorf("%s: a server on a unix socket has no address", h.name)
	case h.overUnix():
	case h.server.Name == "" && !h.server.Addr.IsValid(), h.server.Port == 0:
		return fmt.Errorf("%s: server without a host or port", h.name)
	}
	h.server = unname(h.server)
	if h.tls != nil {
		h.tls = clientTLS(h.tls, h.server.Host())
	}
	setDefault(&h.connect, DefaultConnect)
	setDefault(&h.negotiate, DefaultNegotiate)
	setDefault(&h.request, DefaultRequest)
	if c, ok := h.via.(Chain); ok {
		h.hops = c.Hops()
	}
	h.hops = append(h.hops, h.name)
	return nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Hops returns the names of the servers, that nearest to us first.
func (h *hop) Hops() []string { return slices.Clone(h.hops) }

// reach connects to the server.
func (h *hop) reach(ctx context.Context) (Conn, error) {
	conn, err := h.dial(ctx)
	if err == nil {
		if h.tls == nil {
			return conn, nil
		}
		return h.encrypt(ctx, conn)
	}
	// The last hop before us was asked for our server. What it answers is
	// about the way to us; all else that goes wrong is a hop's own.
	var hop *HopError
	if errors.As(err, &hop) && hop.Hop == hop.Hops && hop.Op == opRequest {
		return nil, h.hopError(opConnect, hop.Err)
	}
	return nil, h.viaError(err)
}

func (h *hop) dial(ctx context.Context) (Conn, error) {
	if len(h.hops) == 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.connect)
		defer cancel()
	}
	return h.via.DialTCP(ctx, h.server)
}

// hopError says that our own hop failed.
func (h *hop) hopError(op string, err error) error {
	return &HopError{Hop: len(h.hops), Hops: len(h.hops), Upstream: h.name, Op: op, Err: err}
}

// viaError passes on an error of via, seen from a chain that is longer. If it is
// no hop's it is of our connect.
func (h *hop) viaError(err error) error {
	var hop *HopError
	if !errors.As(err, &hop) {
		return h.hopError(opConnect, err)
	}
	longer := *hop
	longer.Hops = len(h.hops)
	return &longer
}

// speak runs talk, which speaks with the server over a new connection and returns
// the step that an error belongs to. It closes the connection if ctx ends before
// talk does, or if anything else goes wrong.
func (h *hop) speak(ctx context.Context, conn Conn, talk func() (op string, err error)) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	op, err := talk()
	if !stop() { // ctx has ended, and conn is closed or is about to be
		err = context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return h.hopError(op, err)
	}
	return nil
}

// noAnswer puts into words that the server did not answer within limit, or hung
// up instead.
func noAnswer(err error, limit time.Duration) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer within %v: %w", limit, os.ErrDeadlineExceeded)
	case HungUp(err):
		return fmt.Errorf("the server closed the connection instead of answering: %w", err)
	}
	return err
}
