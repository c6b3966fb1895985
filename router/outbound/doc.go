// Package outbound is where flows go out: directly, through SOCKS servers,
// through chains of them, or nowhere.
//
// Start at [Dialer]; [Direct], [Socks], [Reject] and [Drop] are the outbounds.
// A chain needs no type of its own: a [Socks] speaks to its server through
// another [Dialer].
//
// The package does not choose among outbounds (package rule does) and copies no
// payload (package relay does). What every outbound must do is written down as
// tests in package outboundtest.
package outbound
