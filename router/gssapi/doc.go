// Package gssapi is GSS-API for SOCKS5 (RFC 1961), both ends: how a client and a server
// authenticate each other by method 1, and how all that comes after is protected.
//
// Start at [Initiate] for a client and at [Accept] for a server; [NewConn] and
// [Datagrams] protect what follows. The mechanism behind it is a [Context]: package
// krb5 below has Kerberos, and there is no other.
//
// The package opens no connection and sets no deadline. It imports no library.
//
// # Theory of operation
//
// A message is VER=1, MTYP, LEN(2), TOKEN, client left, server right:
//
//	Initiate   01 01 LEN TOKEN    ─►            until the mechanism has its context
//	           ◄─    01 01 LEN TOKEN  Accept
//	           01 02 LEN [LEVEL]  ─►            which protection the client wants
//	           ◄─    01 02 LEN [LEVEL]          and which one it is
//	Conn       01 03 LEN [BYTES]  ◄─►           SOCKS request, reply and payload
//	Datagrams  01 03 LEN [DATAGRAM] ◄─►         each datagram, the header of SOCKS within
//
// What stands in brackets is wrapped by the context: LEVEL without encryption, the rest
// as the level has it. With level 0, which is not the RFC's but Dante's and curl's,
// nothing is wrapped behind LEVEL. A server that refuses sends 01 FF.
//
// NEC's implementation, the first there was, sends LEVEL as it is, one byte, and curl and
// Dante have an option for that. Whoever stands in between can change the byte then; what
// either end does not want it still refuses.
//
// The end of a stream is the end of the TCP connection and nothing that is wrapped: who
// stands in between can cut a stream behind any message, as with HTTP without a length.
// An end within a message is an error, and so is a message that is missing, comes twice
// or in another order. Datagrams may be lost and overtake one another; one that comes twice
// is dropped.
package gssapi
