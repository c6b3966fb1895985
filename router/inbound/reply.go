package inbound

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// reply returns what a SOCKS5 client is told of an error; ok is false where it is
// told nothing.
//
// What the last server on the way has said of the target is passed on as it was. If a
// server in the middle says something, or one cannot be reached, that is about our
// way and not about the target: general failure.
func reply(err error) (code socks.ReplyError, ok bool) {
	var hop *outbound.HopError
	if errors.As(err, &hop) {
		if !hop.OfTarget() {
			return socks.ReplyGeneral, true
		}
		err = hop.Err
	}
	var status *httpconnect.StatusError
	if errors.As(err, &status) {
		err = outbound.Errno(err) // what there is of it
	}
	var said socks.ReplyError
	var dns *net.DNSError
	switch {
	case errors.Is(err, outbound.ErrDropped):
		return 0, false
	case errors.As(err, &said):
		return said, true
	case errors.Is(err, outbound.ErrRejected):
		return socks.ReplyRuleset, true
	case errors.Is(err, outbound.ErrNoBind), errors.Is(err, outbound.ErrNoUDP):
		return socks.ReplyCommand, true
	case errors.As(err, &dns), errors.Is(err, outbound.ErrNoName), errors.Is(err, outbound.ErrDenied):
		return socks.ReplyHostUnreachable, true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return socks.ReplyTTL, true // as danted has it
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return socks.ReplyAddressType, true
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES): // a packet filter's
		return socks.ReplyRuleset, true
	case errors.Is(err, syscall.ENETUNREACH):
		return socks.ReplyNetUnreachable, true
	case errors.Is(err, syscall.EHOSTUNREACH):
		return socks.ReplyHostUnreachable, true
	case errors.Is(err, syscall.ECONNREFUSED):
		return socks.ReplyRefused, true
	}
	return socks.ReplyGeneral, true
}
