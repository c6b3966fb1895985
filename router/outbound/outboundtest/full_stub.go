//go:build !unix

package outboundtest

import (
	"net/netip"
	"testing"
)

func FullPort(t testing.TB) (netip.AddrPort, func()) {
	t.Helper()
	t.Skip("no way to make a full listener on this system")
	panic("unreachable")
}
