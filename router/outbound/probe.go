package outbound

import (
	"context"
	"errors"
	"fmt"
	"os"
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

var _ Prober = (*Socks)(nil)

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
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(s.opts.Negotiate)) // if it fails, so does the write after it
	op, err := s.authenticate(conn)
	if !stop() {
		err = context.Cause(ctx)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, socks.ErrNoMethod):
		op = opAuthenticate
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("no answer within %v: %w", s.opts.Negotiate, os.ErrDeadlineExceeded)
	case isEOF(err):
		err = fmt.Errorf("the server closed the connection instead of answering: %w", err)
	}
	return s.hopError(op, err)
}
