// Package socksd is the SOCKS5 server that routers under test send their flows
// to: CONNECT and UDP ASSOCIATE without authentication (RFC 1928), made to be as
// little of a bottleneck as a server can be. Streams are moved by splice, with
// two files for each connection that waits; datagrams by recvmmsg and sendmmsg.
//
// Start at [Server.Run]. Targets are addresses: there are no names in the rig.
// It is no server for others: it has no limits. It works on Linux only and is
// empty elsewhere.
package socksd
