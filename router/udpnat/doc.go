// Package udpnat is the table of UDP conversations: it gives each client source
// one session per way out and brings the replies back.
//
// Start at [Table]. It does not match rules ([Options.Decide] does), nor speak
// SOCKS (package outbound does).
//
// # Theory of operation
//
// A session is keyed by the client's source and the way out, which is an outbound
// as it is configured, and not its name: after a reload that changes the server,
// what is new goes to the new one. A session is one socket, or
// one SOCKS5 association, for all targets of that source (endpoint-independent
// mapping, RFC 4787 REQ-1), and whoever writes to it reaches the client
// (endpoint-independent filtering, REQ-8). A path is a session and one
// destination as the client wrote it: it holds the target that the rules gave
// for it, and its counters.
//
// The first datagram of a path is decided at once, which does not block. Where
// the session has to be opened first, or the name resolved, datagrams wait in a
// short queue; what overflows is lost, as UDP may be. If the session cannot be
// opened, whatever waits is refused, and so is what follows within cooldown; a
// way out that says that it carries no UDP is believed for a minute, or for some
// seconds where all it said was to hang up.
//
// What is sent on an open path waits for [Table.Flush], at most as long as the
// packets that were read in one go take. Several readers may send and flush beside
// each other: a flush sends what there is, whoever brought it. The replies that
// come in one go are written in rows ([RowWriter]).
//
// A datagram notes the time in its path and session and sets no timer. A wheel
// (wheel.go) holds each of them where it expires at the earliest, and puts it off
// when it has been used meanwhile: once in [Options.Idle], not once a datagram.
//
// # Which address a reply comes from
//
// A client that sent to a fake address expects the reply from it. Where the
// name was resolved here, the real address is known. Where the far end resolved
// it, the first reply tells: a sender not seen before, with the port of a path
// whose name has had no answer, is that name. If several such names wait, it is
// the one that has waited longest. A sender that has answered for a name, but once,
// is also a second name's that has asked since and waits: the two share an address,
// unless another sender answers for the second next. The replies of a shared address
// go to the name that has a question open, or to the last that sent. Every other
// sender is passed on as it is.
//
// # Limits and timeouts
//
//   - a path or session without a datagram either way for [Options.Idle] ends
//   - [Options.MaxSessions] in all: one of the longest idle makes room
//   - [Options.MaxPaths] of one session: a datagram to one more is dropped
//   - 16 datagrams and 64 KiB wait in a path's queue, and [Options.QueueBytes] in those
//     of all paths; what is beyond is dropped
package udpnat
