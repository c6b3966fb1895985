package stack_test

import (
	"errors"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"

	"tunroute/stack"
)

func TestErrors(t *testing.T) {
	for _, row := range []struct {
		err  tcpip.Error
		want error
	}{
		{nil, nil},
		{&tcpip.ErrAborted{}, syscall.ECONNABORTED},
		{&tcpip.ErrConnectionAborted{}, syscall.ECONNABORTED},
		{&tcpip.ErrAddressFamilyNotSupported{}, syscall.EAFNOSUPPORT},
		{&tcpip.ErrAlreadyConnected{}, syscall.EISCONN},
		{&tcpip.ErrClosedForSend{}, syscall.EPIPE},
		{&tcpip.ErrConnectionRefused{}, syscall.ECONNREFUSED},
		{&tcpip.ErrConnectionReset{}, syscall.ECONNRESET},
		{&tcpip.ErrHostDown{}, syscall.EHOSTUNREACH},
		{&tcpip.ErrHostUnreachable{}, syscall.EHOSTUNREACH},
		{&tcpip.ErrNetworkUnreachable{}, syscall.ENETUNREACH},
		{&tcpip.ErrBadAddress{}, syscall.EINVAL},
		{&tcpip.ErrInvalidEndpointState{}, syscall.EINVAL},
		{&tcpip.ErrMessageTooLong{}, syscall.EMSGSIZE},
		{&tcpip.ErrNoBufferSpace{}, syscall.ENOBUFS},
		{&tcpip.ErrNotConnected{}, syscall.ENOTCONN},
		{&tcpip.ErrTimeout{}, syscall.ETIMEDOUT},
	} {
		if err := stack.ToError(row.err); !errors.Is(err, row.want) {
			t.Errorf("%v: %v, want %v", row.err, err, row.want)
		}
	}
	// What has no errno keeps its words.
	if err := stack.ToError(&tcpip.ErrDuplicateNICID{}); err == nil || err.Error() != (&tcpip.ErrDuplicateNICID{}).String() {
		t.Errorf("ErrDuplicateNICID: %v", err)
	}
}
