// Package ident answers the question whose a TCP connection is (RFC 1413), as SOCKS
// servers ask it back that go by rfc931: NEC's, danted's, those of SOCKS4; and asks it,
// as such a server.
//
// Start at [New]. Whoever opens connections tells of each by [Server.Opening]; a
// query is answered for a connection that is open, and only to the other end of it.
// Everybody else, and every other port, is told that there is no such user.
//
// What it says proves nothing, says RFC 1413 §6 itself: it is a text that somebody has
// configured, and never the user that a program runs as.
//
// [Ask] is the other side. The package opens no listener. It is a leaf: it imports the
// standard library only.
//
// # Theory of operation
//
// A server asks as soon as it has accepted, which is before our own connect has told us
// our port. A query for a connection that is being opened therefore waits, until that
// has ended or the query's own time has.
package ident
