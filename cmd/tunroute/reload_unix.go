//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// notifyReload sends to c when the config is to be read again.
func notifyReload(c chan<- os.Signal) { signal.Notify(c, syscall.SIGHUP) }
