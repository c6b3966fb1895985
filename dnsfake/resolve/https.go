package resolve

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// The type of a DNS message (RFC 8484 §6).
const messageType = "application/dns-message"

// httpsConns is how many connections there may be to a server that speaks HTTP/1.1
// only, where each question has one for itself. HTTP/2 needs one.
const httpsConns = 4

// https asks a server by HTTPS (RFC 8484).
type https struct {
	url       string
	transport *http.Transport
	patient   time.Duration
	stop      context.CancelFunc

	mu     sync.Mutex // guards what follows
	conns  map[*trackedConn]struct{}
	closed bool
}

// trackedConn is a connection that is known until it is closed.
type trackedConn struct {
	net.Conn
	of    *https
	heard atomic.Int64 // when something came last, in nanoseconds; or when it was opened
}

func (c *trackedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *trackedConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func newHTTPS(s *Server, patient time.Duration) *https {
	h := &https{url: s.URL, patient: patient, conns: make(map[*trackedConn]struct{})}
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	h.transport = &http.Transport{
		// Whatever the URL says, it is at these addresses; and nothing of the
		// environment sends us another way.
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			// Not with the context of a question: the connection is for all.
			ctx, cancel := context.WithTimeoutCause(ctx, patient, errTimeout)
			defer cancel()
			conn, err := s.dial(ctx, "tcp")
			if err != nil {
				return nil, err
			}
			return h.track(conn)
		},
		TLSClientConfig:        s.tlsConfig("h2", "http/1.1"),
		TLSHandshakeTimeout:    patient,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // what is small stays small, whatever claims to be
		MaxConnsPerHost:        httpsConns,
		MaxIdleConnsPerHost:    httpsConns,
		IdleConnTimeout:        streamIdle,
		MaxResponseHeaderBytes: 16 << 10,
		HTTP2: &http.HTTP2Config{
			// A connection that is dead without a word is found out.
			SendPingTimeout: streamIdle / 2,
			PingTimeout:     patient,
		},
	}
	return h
}

func (h *https) track(conn net.Conn) (net.Conn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		conn.Close()
		return nil, ErrClosed
	}
	c := &trackedConn{Conn: conn, of: h}
	c.heard.Store(time.Now().UnixNano())
	h.conns[c] = struct{}{}
	return c, nil
}

// end ends the connections on which nothing has come after a time.
func (h *https) end(since time.Time) {
	h.mu.Lock()
	conns := slices.Collect(maps.Keys(h.conns))
	h.mu.Unlock()
	for _, c := range conns {
		if c.heard.Load() <= since.UnixNano() {
			c.Close()
		}
	}
}

// connected tells whether there is a connection.
func (h *https) connected() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns) > 0
}

// close ends all connections.
func (h *https) close() {
	h.stop()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.end(time.Now().Add(time.Hour))
	h.transport.CloseIdleConnections()
}

// exchange asks, and again where a connection proves to be dead, as those do that end
// while nobody uses them, or where nothing comes of one that there was.
func (h *https) exchange(ctx context.Context, q *query, edns bool) ([]byte, error) {
	first, cancel := ctx, context.CancelFunc(func() {})
	if h.connected() {
		first, cancel = context.WithTimeoutCause(ctx, h.patient/2, errTimeout)
	}
	defer cancel()
	answer, err := h.once(first, q, edns)
	if err != nil && ctx.Err() == nil && first.Err() != nil {
		answer, err = h.once(ctx, q, edns)
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return h.once(ctx, q, edns)
	}
	return answer, err
}

func (h *https) once(ctx context.Context, q *query, edns bool) ([]byte, error) {
	// The id is 0, by which proxies on the way know equal questions (RFC 8484
	// §4.1); whose answer it is HTTP says.
	msg := q.message(0, edns, true)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(msg))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", messageType)
	req.Header.Set("Accept", messageType)
	req.Header.Set("User-Agent", "") // none
	defer func() {
		if timedOut(ctx) {
			// Where nothing came lately a new connection may do better. The half
			// is for those that were opened for this question.
			h.end(time.Now().Add(-h.patient / 2))
		}
	}()
	res, err := h.transport.RoundTrip(req) // which follows no redirect
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the server says %s", httpStatus(res))
	case !strings.EqualFold(mediaType(res), messageType):
		return nil, fmt.Errorf("the server sends no dns message but %q", mediaType(res))
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxMessage+1))
	switch {
	case err != nil:
		return nil, err
	case len(answer) > maxMessage:
		return nil, fmt.Errorf("the answer is longer than %d octets", maxMessage)
	case !isAnswer(answer, 0, q.wire):
		return nil, errOtherQuestion
	}
	if age, err := strconv.ParseUint(res.Header.Get("Age"), 10, 31); err == nil {
		takeAge(answer, uint32(age))
	}
	return answer, nil
}

// takeAge takes from all times in a message what has passed of them in a cache of HTTP
// (RFC 8484 §5.1).
func takeAge(msg []byte, age uint32) {
	ttls, err := ttlsOf(msg)
	if err != nil {
		return // which is for who reads it
	}
	for _, off := range ttls {
		if binary.BigEndian.Uint16(msg[off-4:]) != dns.TypeOPT { // whose is none
			ttl := binary.BigEndian.Uint32(msg[off:])
			binary.BigEndian.PutUint32(msg[off:], ttl-min(ttl, age))
		}
	}
}

// httpStatus is the status code with its own name: what the server calls it may be
// anything.
func httpStatus(res *http.Response) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", res.StatusCode, http.StatusText(res.StatusCode)))
}

// mediaType is the first of the content type, cut to a length fit for messages.
func mediaType(res *http.Response) string {
	t, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	t = strings.TrimSpace(t)
	return t[:min(len(t), 64)]
}
