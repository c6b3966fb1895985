// Package inbound is the server: it takes the connections of SOCKS4, SOCKS4a, SOCKS5
// and HTTP CONNECT clients, all of them on one port, finds out who a client is and
// what it wants, and hands that on.
//
// Start at [New] and [Server.Run]. Whoever serves what a client asks for is given in
// [Options]; it refuses with the error that it has met, and the client hears of it in
// the words of its protocol (reply.go), so that a chain of such servers tells the
// truth end to end.
//
// The package decides no flow, opens no connection to a target and relays nothing.
//
// # Theory of operation
//
// Each client has a goroutine until it is connected. Its first byte says what it
// speaks: 4 and 5 are SOCKS, a capital letter is HTTP. What it sends is read by way of
// one small buffer from a pool; what stands there behind the request is the target's,
// and is handed on with the connection ([Call.Accept]).
//
// A client that is refused is told so, and then read from until it closes, for a
// moment: a connection that is closed with something unread is reset, and its client
// might never read the reply.
//
// A client of UDP ASSOCIATE has a socket of its own, whose datagrams go to an
// [Association], for as long as its connection lives.
//
// # Limits and timeouts
//
//   - [Options.Negotiate] from accept to request, however slowly it comes
//   - [Options.MaxClients] that have not asked yet: the one that has taken longest
//     makes room
//   - [Options.MaxAssociations], which have no buffer while they are idle: the one that
//     has been silent for longest makes room
//   - 16 KiB of an HTTP head, 262 bytes of a SOCKS request
package inbound
