// Package relay copies bytes between the two ends of a TCP flow.
//
// There are two relays that do the same. [Loop] is for a client that is a
// [Stream], or a socket itself, and an upstream that is a socket: it copies nothing
// in user space, and a flow that is idle costs neither a goroutine nor a buffer. [Relay] works with
// any two connections, at the price of two goroutines and a buffer for each
// direction. One suite of tests runs against both.
//
// The end of one direction is passed on as a FIN while the other goes on; a
// connection that breaks is passed on as a RST; a side that does not read holds
// up the other.
//
// The package does not dial, log or time anything, and knows nothing of rules.
package relay
