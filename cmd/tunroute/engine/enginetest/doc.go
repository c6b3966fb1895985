// Package enginetest runs an engine between a client machine in memory and
// servers on the loopback interface, for tests and benchmarks.
//
// Start at [Start], which returns a [Lab]; [StartDNS] and [StartScripted] are
// servers that do what a test says.
//
//	Host ── packets ── engine ── sockets ── servers of the test
//
// The addresses of the client machine, and those that it connects to, are made
// up: an engine that went past its config would reach nothing. Addresses of the
// loopback interface itself are not for packets (RFC 1122 §3.2.1.3), so whatever
// the client is to reach has a name, or is behind a SOCKS server.
//
// It makes no packets of its own (stacktest does) and no SOCKS server that
// really connects (outboundtest has one).
package enginetest
