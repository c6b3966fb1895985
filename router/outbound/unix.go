package outbound

import (
	"context"
	"errors"
	"net"
	"time"

	"tunroute/router/flow"
)

// Unix is the way to a server that listens on a unix socket of this machine, as
// tor does with SocksPort unix:PATH. It is for the Via of a [Socks].
//
// Who may speak to the server is then said by the modes of the socket and of its
// directory, and no other network namespace is in the way.
type Unix struct {
	path    string
	connect time.Duration
}

var _ Dialer = (*Unix)(nil)

// NewUnix returns the way to the socket at path, which on Linux begins with "@"
// if it is abstract. connect limits a dial; 0 is DefaultConnect. It opens nothing.
func NewUnix(path string, connect time.Duration) (*Unix, error) {
	if path == "" {
		return nil, errors.New("a unix socket without a path")
	}
	setDefault(&connect, DefaultConnect)
	return &Unix{path, connect}, nil
}

// DialTCP connects to the socket, whatever the target: who listens there is the
// only one that can be reached. The connection is a *net.UnixConn.
func (u *Unix) DialTCP(ctx context.Context, _ flow.Target) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, u.connect)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", u.path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func (h *hop) overUnix() bool {
	_, ok := h.via.(*Unix)
	return ok
}
