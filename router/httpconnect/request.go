package httpconnect

import (
	"encoding/base64"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Reasons for which nothing can be sent.
var (
	ErrHost        = errors.New("a host that is neither a name nor an address cannot stand in an HTTP request")
	ErrCredentials = errors.New("a user or password with a control character, or a user with a colon, cannot be sent as HTTP's Basic credentials")
)

// AppendRequest appends the request for a connection to a host, a name or an
// address, and a port. authorization is what [Basic] returns, or "" for none. On an
// error, which is [ErrHost], there is nothing to send.
//
// It says the least that the RFC allows. An agent's name would tell the proxy who
// we are, and "Proxy-Connection: keep-alive" is of no use to a connection that
// becomes the flow's.
func AppendRequest(b []byte, host string, port uint16, authorization string) ([]byte, error) {
	if !sendable(host) {
		return b, ErrHost
	}
	target := net.JoinHostPort(host, strconv.Itoa(int(port)))
	b = append(b, "CONNECT "...)
	b = append(b, target...)
	// RFC 9112 §3.2: every request has a Host, also where it says the same.
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, target...)
	if authorization != "" {
		b = append(b, "\r\nProxy-Authorization: "...)
		b = append(b, authorization...)
	}
	return append(b, "\r\n\r\n"...), nil
}

// sendable tells whether a host can stand in a request and be nothing but the host
// there. It is stricter than RFC 3986, whose names may hold almost anything: DNS
// has no others than these.
func sendable(host string) bool {
	if strings.Contains(host, ":") {
		a, err := netip.ParseAddr(host)
		return err == nil && a.Zone() == ""
	}
	if host == "" || len(host) > 255 {
		return false
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// Basic returns user and password as the value of a header (RFC 7617 §2). Either
// may be empty; the error is [ErrCredentials].
func Basic(user, password string) (string, error) {
	if strings.Contains(user, ":") || hasControl(user) || hasControl(password) {
		return "", ErrCredentials
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
