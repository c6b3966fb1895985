package main

import (
	"os"
	"os/signal"
	"syscall"
)

// outliveReaders has a write to standard output or error fail when nobody reads it any
// more, instead of ending this process: one that has changed the host, or has a program
// to wait for, is not done then. Unlike [signal.Ignore] it is not inherited.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
