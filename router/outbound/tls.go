package outbound

import (
	"context"
	"crypto/tls"
	"time"
)

// sessions is how many TLS sessions a server may have given us that we keep. One
// is used once (RFC 8446 §C.4), and a server gives two for each connection or so:
// it is enough for as many flows to begin at once. A session is about 2 KB.
const sessions = 64

// clientTLS returns the config of connections to host, after that of the options.
func clientTLS(c *tls.Config, host string) *tls.Config {
	c = c.Clone()
	if c.ServerName == "" {
		c.ServerName = host
	}
	if c.ClientSessionCache == nil {
		// With a session a handshake has no signature to make and none to
		// verify, which is most of what it costs.
		c.ClientSessionCache = tls.NewLRUClientSessionCache(sessions)
	}
	return c
}

// encrypt makes the TLS handshake with the server over a new connection. CloseWrite of
// what it returns sends a close_notify, which is the FIN of TLS, and the connection below
// stays open. In the other direction a FIN below without a close_notify is an end as
// well, if it is between two records: RFC 8446 §6.1 would have it an error, but servers
// do it (crypto/tls has the same to say in readRecordOrCCS), and a RST would cost their
// clients the last bytes.
func (h *hop) encrypt(ctx context.Context, conn Conn) (Conn, error) {
	c := tls.Client(conn, h.tls)
	err := h.speak(ctx, conn, func() (string, error) {
		conn.SetDeadline(time.Now().Add(h.negotiate)) // if it fails, so does the handshake
		return opTLS, noAnswer(c.Handshake(), h.negotiate)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}
