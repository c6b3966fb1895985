package httpconnect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxHead bounds what is read of a reply: status line and headers, with those of
// interim replies before it. squid's are 500 bytes; 16 KiB is where most servers
// stop reading too.
const maxHead = 16 << 10

// ErrProtocol says that the other end does not speak HTTP/1. It is wrapped with
// what was wrong.
var ErrProtocol = errors.New("not the HTTP protocol")

// StatusError is a reply that is no success.
type StatusError struct {
	Code int // 100 to 999, but not 2xx
	// Cause is why, where the server says so in a form that is made to be
	// read: the error type of a Proxy-Status (RFC 9209 §2.3), as in
	// "connection_refused", or what squid has in its X-Squid-Error, as in
	// "ERR_CONNECT_FAIL 111"; "" where it does not. It is made of letters,
	// digits, "_", "-" and blanks, at most 64.
	Cause string
}

// Error returns, for example, "service unavailable (status 503,
// ERR_CONNECT_FAIL 111)". It has nothing of the server's own words in it but Cause.
func (e *StatusError) Error() string {
	if e.Cause != "" {
		return fmt.Sprintf("%s (status %d, %s)", e.text(), e.Code, e.Cause)
	}
	return fmt.Sprintf("%s (status %d)", e.text(), e.Code)
}

func (e *StatusError) text() string {
	switch e.Code {
	case 400:
		return "bad request"
	case 401, 407:
		return "user or password refused"
	case 403:
		return "forbidden"
	case 404:
		return "not found"
	case 405:
		return "CONNECT not allowed"
	case 429:
		return "too many requests"
	case 500:
		return "internal server error"
	case 501:
		return "CONNECT not supported"
	case 502:
		return "bad gateway"
	case 503:
		return "service unavailable"
	case 504:
		return "gateway timeout"
	}
	return "no connection"
}

// ReadReply reads the reply to a CONNECT. For a success it returns what it has read
// behind the head, which is the target's already, and which the caller owns: any
// Content-Length or Transfer-Encoding is to be ignored (RFC 9110 §9.3.6). A refusal
// is a [*StatusError], whose body is not read. An EOF before the first byte is
// io.EOF, one within the head io.ErrUnexpectedEOF.
//
// It reads as much as there is rather than byte by byte. A server waits for the
// client, or for its target, so that there is nearly never anything behind the head.
func ReadReply(r io.Reader) (rest []byte, err error) {
	// A reply is one segment, and most are shorter than this.
	b := make([]byte, 0, 1024)
	start, searched := 0, 0 // of the reply, and of what may have its end
	for {
		code, head, err := status(b[start:])
		if err != nil {
			return nil, err
		}
		if end := bytes.Index(b[searched:], []byte("\r\n\r\n")); end >= 0 {
			end += searched + len("\r\n\r\n")
			cause, err := headers(b[start+head : end])
			switch {
			case err != nil:
				return nil, err
			case code == 101:
				return nil, fmt.Errorf("%w: the server switches protocols, which nobody asked for", ErrProtocol)
			case code < 200: // interim: another follows (RFC 9110 §15.2)
				start, searched = end, end
				continue
			case code < 300:
				return b[end:], nil
			}
			return nil, &StatusError{code, cause}
		}
		searched = max(start, len(b)-len("\r\n\r")) // the end may have begun
		if cap(b) == len(b) {
			if len(b) >= maxHead {
				return nil, fmt.Errorf("%w: the head of the reply is longer than %d bytes", ErrProtocol, maxHead)
			}
			b = append(make([]byte, 0, min(2*len(b), maxHead)), b...)
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if n > 0 || err == nil {
			continue // an error comes again
		}
		if code, _, err := status(b[start:]); err == nil && code >= 300 {
			return nil, &StatusError{Code: code} // whatever is missing behind it
		}
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
}

// status parses the status line that b begins with (RFC 9112 §4) and returns where
// the headers begin. While the line is not there yet, code is 0; what cannot become
// one is an error at once, because a server of another protocol may wait for more
// than we have to say.
func status(b []byte) (code, head int, err error) {
	const version = "HTTP/1.x "
	for i := range min(len(b), len(version)) {
		if b[i] != version[i] && (i != len(version)-2 || b[i] != '0' && b[i] != '1') {
			return 0, 0, fmt.Errorf("%w: the reply begins with %q", ErrProtocol, b[:i+1])
		}
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return 0, 0, nil
	}
	line, ok := bytes.CutSuffix(b[:end], []byte("\r"))
	if !ok || len(line) < len(version)+3 || !clean(line) {
		return 0, 0, fmt.Errorf("%w: the status line of the reply is broken", ErrProtocol)
	}
	for _, c := range line[len(version) : len(version)+3] {
		if c < '0' || c > '9' {
			return 0, 0, fmt.Errorf("%w: the status of the reply is not a number", ErrProtocol)
		}
		code = 10*code + int(c-'0')
	}
	// The blank behind the number is there even if no reason follows, says the
	// RFC; some servers leave both out.
	if reason := line[len(version)+3:]; code < 100 || len(reason) > 0 && reason[0] != ' ' {
		return 0, 0, fmt.Errorf("%w: the status of the reply is not one of HTTP's", ErrProtocol)
	}
	return code, end + 1, nil
}

// headers checks the headers of a reply (RFC 9112 §5), up to the blank line, and
// returns the Cause of a StatusError.
func headers(b []byte) (cause string, err error) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\r\n"))
		b = rest
		if len(line) == 0 {
			continue // the blank line, which is the last
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isToken(name) || !clean(value) {
			return "", fmt.Errorf("%w: a header of the reply is broken", ErrProtocol)
		}
		switch {
		case bytes.EqualFold(name, []byte("Proxy-Status")):
			cause = plain(proxyError(string(value)))
		case bytes.EqualFold(name, []byte("X-Squid-Error")) && cause == "":
			cause = plain(strings.TrimSpace(string(value)))
		}
	}
	return cause, nil
}

// proxyError returns the error type of the last member of a Proxy-Status: that of
// the proxy nearest to us (RFC 9209 §2). What stands in quotes is no parameter.
func proxyError(value string) string {
	found, quoted := "", false
	fields := strings.FieldsFunc(value, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ';' || r == ',')
	})
	for _, f := range fields {
		if text, ok := strings.CutPrefix(strings.TrimSpace(f), "error="); ok {
			found = text
		}
	}
	return found
}

// plain returns s if it is fit to be shown in an error, else "".
func plain(s string) string {
	if len(s) > 64 {
		return ""
	}
	for i := range len(s) {
		if c := s[i]; c != ' ' && c != '_' && c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return ""
		}
	}
	return s
}

// clean tells whether a line has no control character but tabs.
func clean(line []byte) bool {
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isToken tells whether a header has a name: RFC 9110 §5.6.2. That there is no
// blank before the colon and that no line continues the one before is in it.
func isToken(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return len(name) > 0
}
