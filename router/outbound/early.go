package outbound

import (
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"tunroute/router/relay"
)

// errEarly is read where a connection has ended without a byte through a server that
// says success before it knows.
var errEarly = fmt.Errorf("the server had said success, and then nothing came but the end: %w", syscall.ECONNRESET)

// early is a connection through a server that says success before it knows. If the
// target could not be reached, it is closed and nothing has come over it: the client,
// whose connect has succeeded, is then to see that it broke.
//
// That cannot be guessed for any server. A target that takes what it is sent and says
// nothing, one that closes because it has too many clients, one that is asked whether
// it listens, ends in the same way, and its FIN is the truth. Nor does waiting for
// bytes before the client is answered help, for servers that speak first may take
// their time. So it is said of a server, by who knows it.
type early struct {
	Conn
	heard bool        // something has come; the reader's
	ended atomic.Bool // our direction
}

func (e *early) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	e.heard = e.heard || n > 0
	if err == io.EOF && !e.heard && !e.ended.Load() {
		err = errEarly
	}
	return n, err
}

// CloseWrite ends our direction, after which an end of the other is in order.
func (e *early) CloseWrite() error {
	e.ended.Store(true)
	return e.Conn.CloseWrite()
}

// Reset ends the connection by a RST.
func (e *early) Reset() { relay.Reset(e.Conn) }
