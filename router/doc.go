// Package router brings flows to their outbounds: it matches each flow against
// the rules, dials, and only then accepts, relays and tells of its end.
//
// Start at [New], [Router.ServeTCP] and [Router.ServeUDP]; [Snapshot] is what a
// config becomes. The packages below it each do one part: flow (vocabulary), rule
// (who goes where), outbound (going there, by one of a group or by a chain), relay
// (copying), udpnat (UDP conversations), socks and httpconnect (the wire).
//
// It reads no packets and no config, resolves no names and knows nothing of TUN
// devices: what it needs of others it declares ([Request], [Names], and
// [udpnat.Writer]), in types of the standard library.
package router
