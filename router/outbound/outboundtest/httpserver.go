package outboundtest

import (
	"bufio"
	"io"
	"net/http"
	"strconv"

	"tunroute/router/flow"
	"tunroute/router/socks"
)

// serveHTTP speaks with one client of a server that is an HTTP proxy. Only CONNECT
// it has, and of the statuses those that squid uses.
func (s *Server) serveHTTP(conn halves) {
	r := bufio.NewReader(conn)
	q, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	answer := func(line string) { io.WriteString(conn, "HTTP/1.1 "+line+"\r\nContent-Length: 0\r\n\r\n") }
	if s.opts.User != "" || s.opts.Password != "" {
		q.Header.Set("Authorization", q.Header.Get("Proxy-Authorization")) // where BasicAuth looks
		user, password, ok := q.BasicAuth()
		if !ok || user != s.opts.User || password != s.opts.Password {
			answer("407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test\"")
			return
		}
	}
	port, err := strconv.ParseUint(q.URL.Port(), 10, 16)
	if q.Method != http.MethodConnect || err != nil {
		answer("400 Bad Request")
		return
	}
	target, err := flow.NewTarget(q.URL.Hostname(), uint16(port))
	if err != nil {
		answer("400 Bad Request")
		return
	}
	req := socks.Request{Command: socks.Connect, Addr: socks.Addr{Name: target.Name, IP: target.Addr, Port: target.Port}}
	s.record(req)
	s.connect(conn, r, req, func(code socks.ReplyError, _ socks.Addr) []byte {
		switch code {
		case socks.ReplySucceeded:
			return []byte("HTTP/1.1 200 Connection established\r\n\r\n")
		case socks.ReplyRefused:
			return []byte("HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n")
		}
		return []byte("HTTP/1.1 503 Service Unavailable\r\n\r\n")
	})
}
