// Package outboundtest is what every outbound must do, as tests.
//
// Start at [Run]: give it a function that makes the outbound, and it drives it
// over sockets of the loopback interface, against targets of its own. [Server]
// is a small SOCKS4, 4a and 5 server and HTTP proxy for the outbounds that need one,
// over TCP, TLS or a unix socket; it records
// what it was asked for. [Serve], [ServeUDP], [ClosedPort], [FullPort] and [Names]
// are the parts that tests of single outbounds are made of.
//
// The package does not test what a real server makes of our requests: that is
// for the servers of package interop/servers, which the same suite runs
// through.
package outboundtest
