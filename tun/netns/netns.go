package netns

import (
	"net/netip"
	"syscall"
)

// exitFailed is the exit status when we ourselves cannot do our part, as with
// env(1) and timeout(1).
const exitFailed = 125

// Config is what [Setup] gives a new namespace.
type Config struct {
	// Device and MTU are the name of the TUN and its MTU.
	Device string
	MTU    int
	// Addresses of the TUN: a /32 and a /128, since nothing else is on the
	// link. IPv6 is left out where the kernel has none.
	Addresses []netip.Prefix
	// Nameservers is what resolv.conf names, at most three (resolv.conf(5)).
	Nameservers []netip.Addr
	// Search is the search list of resolv.conf; empty by default. That of
	// the host is not taken: where every name has an address, the first
	// that is tried exists, and "www.example.com" would become
	// "www.example.com.svc.cluster.local".
	Search []string
}

// Status is how a command ended.
type Status struct {
	// Code is the exit status: that of the command, 128 plus the number of
	// the signal that ended it, or 125, 126 or 127 where there was none.
	Code int
	// Signal is the signal that ended the command, or 0.
	Signal syscall.Signal
	// Alive says that the command has left something running, for which C
	// and R live on. If not, C has ended and been waited for, R is about to
	// end, and P can wait for it.
	Alive bool
}
