// Package socks is the SOCKS wire format, both ends: SOCKS4, SOCKS4a, SOCKS5
// (RFC 1928), user and password (RFC 1929) and the UDP header.
//
// Start at [AppendRequest] and [ReadReply] for a client, at [ReadVersion] for a
// server. What a client or a server sends is made by an Append function, whole,
// so that it can leave in one Write; what it gets is taken by a Read function
// that reads to the last byte of the message and not one further, so that the
// payload behind it stays in the connection.
//
// The package opens no connection, sets no deadline and decides nothing: which
// methods are offered, what is retried and which error ends what is its
// caller's. It is a leaf: it imports the standard library only.
//
// # Theory of operation
//
// SOCKS5, client left, server right; the part in brackets only if the server
// chose [MethodUserPass]:
//
//	AppendMethods    05 N METHOD...          ─►  ReadVersion, ReadMethods
//	ReadMethod                               ◄─  05 METHOD             AppendMethod
//	[AppendUserPass  01 L USER L PASSWORD    ─►  ReadUserPass]
//	[ReadAuthStatus                          ◄─  01 STATUS             AppendAuthStatus]
//	AppendRequest    05 CMD 00 ADDRESS       ─►  ReadRequest
//	ReadReply                                ◄─  05 REP 00 ADDRESS     AppendReply
//
//	ADDRESS          01 IPV4(4) PORT(2) | 03 L NAME(L) PORT(2) | 04 IPV6(16) PORT(2)
//	UDP header       00 00 FRAG ADDRESS, then the payload
//
// SOCKS4 and, with the part in brackets, 4a:
//
//	AppendRequest4   04 CMD PORT(2) IPV4(4) USER 00 [NAME 00]  ─►  ReadVersion, ReadRequest4
//	ReadReply4                                                 ◄─  00 CD PORT(2) IPV4(4)   AppendReply4
//
// What servers really send has shaped the readers. A reply is as long as its
// own address type says: danted gives failures the address of the request back,
// 262 bytes for a long name. A refusal may be 4 bytes and then EOF: the code in
// the second byte is enough, the rest of a refusal is never waited for. What is
// written is strict, because servers written in C cut a name at a NUL and then
// connect to what is left of it.
package socks
