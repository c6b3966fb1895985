//go:build !linux

package engine

import "syscall"

// sharePort is nil: elsewhere all questions would go to one of the sockets.
var sharePort func(network, address string, c syscall.RawConn) error
