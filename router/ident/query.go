package ident

import (
	"errors"
	"strconv"
	"strings"
)

// maxLine bounds a query: RFC 1413 §4 wants 1000 characters to be read.
const maxLine = 1000

// errQuery says that a line is no query at all, so that there is no answer either.
var errQuery = errors.New("not an ident query")

// query is a question: the ports of a connection, here and at who asks.
type query struct {
	here, there string // decimal digits, as they were sent
}

// parseQuery parses a line without its end: <port-here> , <port-there>, with blanks and
// tabs anywhere between (RFC 1413 §3). The numbers may be those of no port.
func parseQuery(line string) (query, error) {
	const blanks = " \t"
	here, there, ok := strings.Cut(line, ",")
	q := query{strings.Trim(here, blanks), strings.Trim(there, blanks)}
	if !ok || !isNumber(q.here) || !isNumber(q.there) {
		return query{}, errQuery
	}
	return q, nil
}

// isNumber bounds the length too: a port has 5 digits (RFC 1413 §6), and what is sent
// back is no longer than that.
func isNumber(s string) bool {
	return 1 <= len(s) && len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}

// ports returns the numbers, unless one is that of no port.
func (q query) ports() (here, there uint16, ok bool) {
	h, err1 := strconv.ParseUint(q.here, 10, 16)
	t, err2 := strconv.ParseUint(q.there, 10, 16)
	return uint16(h), uint16(t), err1 == nil && err2 == nil && h != 0 && t != 0
}

// The errors of RFC 1413 §4.
const (
	noUser      = "NO-USER"
	invalidPort = "INVALID-PORT"
)

// failure is the reply that says why there is no user.
func (q query) failure(reason string) string {
	return q.here + " , " + q.there + " : ERROR : " + reason + "\r\n"
}

// success is the reply that names a user. What a user cannot have in it (RFC 1413 §4:
// NUL, CR and LF), and what a log should not, is left out, and so is what is longer
// than 512.
func (q query) success(user string) string {
	user = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, user)
	return q.here + " , " + q.there + " : USERID : UNIX : " + user[:min(len(user), 512)] + "\r\n"
}
