package httpconnect

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Request is what a client asks a proxy for.
type Request struct {
	Method string // [MethodConnect], or what a proxy answers with 405
	Target string // the request target: HOST:PORT of a CONNECT, not yet looked at

	// User and Password are those of Basic credentials, where HasUser says that
	// there are any. Others are as good as none: who asks for Basic ones says so.
	User, Password string
	HasUser        bool
}

// MethodConnect is the method of a Request that asks for a connection.
const MethodConnect = "CONNECT"

// ReadRequest reads the head of a request, to its last byte and not one further. An
// EOF before the first byte is io.EOF, one within the head io.ErrUnexpectedEOF; what
// is no request of HTTP/1 is [ErrProtocol].
//
// It looks at the header that it knows and lets all others pass: they are for an
// origin that there is none of (RFC 9110 §9.3.6).
func ReadRequest(r *bufio.Reader) (Request, error) {
	left := maxHead
	line, err := readLine(r, &left)
	if err != nil {
		return Request{}, err
	}
	method, rest, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !isToken([]byte(method)) || target == "" || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return Request{}, fmt.Errorf("%w: the request line is broken", ErrProtocol)
	}
	q := Request{Method: method, Target: target}
	for {
		line, err := readLine(r, &left)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil || line == "" {
			return q, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken([]byte(name)) {
			return Request{}, fmt.Errorf("%w: a header of the request is broken", ErrProtocol)
		}
		if strings.EqualFold(name, "Proxy-Authorization") {
			q.User, q.Password, q.HasUser = parseBasic(strings.Trim(value, " \t"))
		}
	}
}

// readLine returns a line without its end, and takes its length off left.
func readLine(r *bufio.Reader, left *int) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if *left -= len(part); *left < 0 {
			return "", fmt.Errorf("%w: the head of the request is longer than %d bytes", ErrProtocol, maxHead)
		}
		line = append(line, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
		break
	}
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || !clean(line) {
		return "", fmt.Errorf("%w: a line of the request is broken", ErrProtocol)
	}
	return string(line), nil
}

// parseBasic parses what Basic returns.
func parseBasic(value string) (user, password string, ok bool) {
	scheme, text, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", false
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimLeft(text, " "))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// AppendConnected appends the reply that a connection is there: what follows is the
// target's.
func AppendConnected(b []byte) []byte {
	return append(b, "HTTP/1.1 200 Connection established\r\n\r\n"...)
}

// AppendRefusal appends the reply of a proxy of that name that there will be none,
// after which it closes the connection. A status of 407 asks for Basic credentials.
// Cause is the error type of a Proxy-Status (RFC 9209 §2.3), "" for none, and text
// is for people; it has no line end in it.
func AppendRefusal(b []byte, proxy string, status int, cause, text string) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, (&StatusError{Code: status}).text()...)
	switch status {
	case 405:
		b = append(b, "\r\nAllow: CONNECT"...)
	case 407:
		b = append(b, "\r\nProxy-Authenticate: Basic realm=\""+proxy+"\", charset=\"UTF-8\""...)
	}
	if cause != "" {
		b = append(b, "\r\nProxy-Status: "+proxy+"; error="+cause...)
	}
	b = append(b, "\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(text)+1), 10)
	return append(append(b, "\r\n\r\n"...), text+"\n"...)
}
