// Package probe finds out what a SOCKS server does, by asking it: also what a correct
// client never asks for, as a command that does not exist, a request in single bytes,
// or a name with a NUL in it.
//
// Start at [Run]. It needs a way to connect to the server, and returns a [Report]: a
// [Row] for each probe, with what was sent, what came back and what to think of it, and
// an [Advice] which settings suit the server. What the rows are is in rows.go, in the
// order in which they are reported.
//
// The package decides nothing for flows, which never wait for it, and judges servers by
// what it sees only: what it could not see is [Unknown], with what would help.
//
// # Theory of operation
//
// Each row has connections of its own, several rows at a time. There are three steps,
// since what can be asked later depends on it:
//
//	the methods                 is it SOCKS5 at all, and does it take us?
//	CONNECT over IPv4 and IPv6  can the server reach us?
//	all others
//
// Nothing is sent to anybody but the server, not even where it says that its relay or
// its port of BIND is at another address. Whether a connection through it works is
// seen at its other end, where we are as well: we listen at the address that our
// connection to the server comes from, at a port for each row, for as long as the row
// runs. That is how a reply of success is told from a success, and an answer that was
// lost from one that was not given. A server that does not reach us (it is behind a
// NAT, or a firewall is before us) is asked for the target that the user names, or else
// only for what has an answer without one: whether a request in single bytes is answered
// like the same request in one piece can be seen of a refusal too.
//
// Some rows make the server try an address that is nobody's: a port at which we do not
// listen, a multicast address, to which no system opens a TCP connection, an address
// that is reserved for documentation (RFC 5737), a name below .invalid (RFC 6761).
//
// # Limits
//
// Each wait for the server ends after [Options.Limit]; silence is an answer. A row has a
// few of them at most, one after the other. At most 8 rows run at a time, each with two
// connections and three sockets of UDP at most; what a server sends is read up to the end
// of the message that belongs there, and 262 bytes of it at most. Whoever else connects to
// a port of ours gets back what he sends, up to 4 KiB of it.
package probe
