//go:build !unix

package inbound

import "net"

// await does not wait: here an association has a buffer as long as it lives.
func await(*net.UDPConn) error { return nil }
