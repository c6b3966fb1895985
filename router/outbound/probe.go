package outbound

import (
	"context"
	"errors"
	"time"

	"tunroute/router/socks"
)

// Prober is what a [Dialer] also implements if it can find out whether the servers
// that it goes through work without being given a target.
type Prober interface {
	// Probe connects to the last server and, if negotiate is true, speaks
	// with it up to where a request would come. It blocks until then or
	// until ctx ends; errors are as DialTCP's.
	Probe(ctx context.Context, negotiate bool) error
}

var (
	_ Prober = (*Socks)(nil)
	_ Prober = (*HTTP)(nil)
)

// Probe implements [Prober]. SOCKS4 has nothing before the request, so that it ends
// with the connect there.
func (s *Socks) Probe(ctx context.Context, negotiate bool) error {
	conn, err := s.reach(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !negotiate || s.opts.Version != socks.Version5 {
		return nil
	}
	return s.speak(ctx, conn, func() (string, error) {
		conn.SetDeadline(time.Now().Add(s.negotiate)) // if it fails, so does the write after it
		_, _, op, err := s.authenticate(ctx, conn, nil)
		if errors.Is(err, socks.ErrNoMethod) {
			op = opAuthenticate
		}
		return op, noAnswer(err, s.negotiate)
	})
}

// Probe implements [Prober]. HTTP has nothing before the request, so that it ends with
// the connect, and the TLS handshake of https.
func (h *HTTP) Probe(ctx context.Context, _ bool) error {
	conn, err := h.reach(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}
