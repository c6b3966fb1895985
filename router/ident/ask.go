package ident

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Errors of [Ask].
var (
	// ErrNoAnswer says that there is nobody to ask.
	ErrNoAnswer = errors.New("nobody answers for the user there")
	// ErrNoUser says that whoever was asked does not say whose it is.
	ErrNoUser = errors.New("the user is not told")
)

// identPort is where to ask (RFC 1413 §1).
const identPort = 113

// Ask asks the machine at the other end of a TCP connection whose that is, by a
// connection of d; here and there are its two ends. It blocks until ctx ends at most.
// What it returns proves nothing: there may be anybody there.
func Ask(ctx context.Context, d net.Dialer, here, there netip.AddrPort) (user string, err error) {
	return askAt(ctx, d, here, there, identPort)
}

func askAt(ctx context.Context, d net.Dialer, here, there netip.AddrPort, port uint16) (string, error) {
	// From the address that the connection is to, or nobody knows of it there.
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(here.Addr(), 0))
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(there.Addr(), port).String())
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(conn, "%d , %d\r\n", there.Port(), here.Port()); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxLine)).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return parseReply(line, there.Port(), here.Port())
}

// parseReply parses the reply to a question (RFC 1413 §4):
// PORT , PORT : USERID : SYSTEM : USER.
func parseReply(line string, port, other uint16) (string, error) {
	line = strings.TrimRight(line, "\r\n")
	parts := strings.SplitN(line, ":", 4)
	q, err := parseQuery(parts[0])
	if err != nil {
		return "", fmt.Errorf("%w: not an ident reply", ErrNoUser)
	}
	if a, b, ok := q.ports(); !ok || a != port || b != other {
		return "", fmt.Errorf("%w: the reply is about another connection", ErrNoUser)
	}
	if len(parts) < 4 || strings.TrimSpace(parts[1]) != "USERID" {
		return "", ErrNoUser
	}
	user := strings.TrimLeft(parts[3], " ")
	if user == "" || len(user) > 255 || strings.ContainsFunc(user, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", fmt.Errorf("%w: the name %s is none", ErrNoUser, strconv.QuoteToASCII(user[:min(len(user), 32)]))
	}
	return user, nil
}
