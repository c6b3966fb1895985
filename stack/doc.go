// Package stack turns packets into flows: it runs gVisor's netstack on a packet
// device and hands each connection attempt, datagram and echo request to a
// [Handler].
//
// Start at [New] and [Handler]. It is the only package that imports gVisor, and
// gVisor's types do not leave it: errors are errnos, addresses are
// [net/netip]'s.
//
// It does not decide, dial or resolve anything, and it keeps no state of a UDP
// conversation.
//
// # Theory of operation
//
// One goroutine reads the device in batches and delivers each packet to
// netstack (link.go); where the device has several queues ([QueueDevice]), one
// goroutine for each, and whichever ends first ends all. Addresses are not
// configured anywhere: the interface is promiscuous (every destination is ours)
// and spoofing (every source may be ours).
//
// What is not from one host to one host (multicast, broadcast, unspecified or
// IPv4-mapped addresses) is dropped before any handler sees it.
//
// TCP (tcp.go). A SYN that no endpoint claims becomes a [TCPRequest] in a
// goroutine of its own. Nothing is answered until the handler calls Accept,
// which does the handshake, or Refuse, which sends the RST or the ICMP error
// that makes the client's connect(2) return the errno asked for. Retransmitted
// SYNs meanwhile are absorbed. Attempts that wait, for their answer or for the
// end of their handshake, are limited, in all and per source; beyond the limit
// the SYN is dropped and the client's retransmission tries again.
//
// Connections are opened towards clients as well (dial.go), from whatever address the
// client is to see: [Stack.DialTCP]. They count as attempts of nobody.
//
// A SYN for the four-tuple of a connection in TIME-WAIT ends the old connection
// and starts a new one (RFC 6191 §2, RFC 1122 §4.2.2.13). netstack alone would
// look for a listening socket, find none and drop it; clients that reuse their
// ports would hang.
//
// A reset by the client is ECONNRESET to every Read and Write of a [Conn] from
// then on (behind the client's FIN it is EPIPE to Write, as on Linux), and
// [Conn.Reset] is one to the client.
//
// UDP (udpread.go, udpwrite.go, udp.go). Datagrams go from the device to the
// handler, past netstack; netstack has the fragments, which it puts together, and
// whatever is not plain. A handler that sends on several at a time is told when
// nothing follows at once ([UDPFlusher]): when the device has nothing to read, or
// something else, or after 64. [Stack.WriteUDP] sends from any address to any
// address. A datagram that the handler does not take is answered by ICMP port
// unreachable.
//
// Where the device passes rows of datagrams as one ([DatagramDevice]), those that a
// client sends as one (UDP_SEGMENT, as QUIC does) are read by one call, and those
// of [Stack.WriteUDPs] are written by one, as far as they are of one length.
//
// ICMP (icmp.go). Echo requests go to the handler; all other ICMP is netstack's.
//
// # Limits and timeouts
//
//   - half-open attempts: [Options.HalfOpen], [Options.HalfOpenPerSource]
//   - handshake: 10 s from Accept to the client's ACK, or from DialTCP to its
//     SYN-ACK (handshakeTimeout)
//   - keepalive: a peer that is gone is noticed after 60 s + 8 × 15 s
//   - after Close: 60 s for a client that takes no more data (closeTimeout), 60 s
//     for one that does not close its own direction
//   - TIME-WAIT: 2 s (timeWait)
//   - end of Run: 1 s for a device that takes no more packets (goodbye)
//   - buffers: up to 8 MiB received and 12 MiB to be sent per connection, grown
//     on demand
//   - fragments that wait for the rest of their packet: 4 MiB for each IP
//     version, 30 s over IPv4 and 60 s over IPv6
package stack
