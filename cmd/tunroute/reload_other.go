//go:build !unix

package main

import "os"

// notifyReload: there is no SIGHUP here.
func notifyReload(chan<- os.Signal) {}
