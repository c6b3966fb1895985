// Package outbound is where flows go out: directly, through SOCKS servers
// and HTTP proxies, through chains of them, or nowhere.
//
// Start at [Dialer]; [Direct], [Socks], [HTTP], [Reject] and [Drop] are the
// outbounds. A chain needs no type of its own: a [Socks] or [HTTP] speaks to its
// server through another [Dialer]. A server on a unix socket is reached through a [Unix].
//
// The package does not choose among outbounds (packages rule and group do) and copies no
// payload (package relay does). What every outbound must do is written down as
// tests in package outboundtest.
//
// # Theory of operation
//
// A TCP dial through a chain of two goes one step at a time, and the connection
// that comes back is the one that was made first:
//
//	Socks b.DialTCP(target)
//	    Socks a.DialTCP(server of b)
//	        Direct.DialTCP(server of a)    connect      Connect
//	        TLS, if a has it               handshake    Negotiate
//	        greeting, user and password    negotiate    Negotiate
//	        request for the server of b    request      Request
//	    greeting, user and password        negotiate    Negotiate
//	    request for the target             request      Request
//
// What comes back is the first hop's own socket, which is relayed without a
// goroutine, unless a hop has TLS: then each byte has to be decrypted here.
//
// Each step has its own limit, and the end of the dial's context ends any of
// them by closing the connection. A step that fails is a [HopError] with the
// hop that it belongs to: what a answers to the request for b is about the way to
// b, so that it is an error of hop 2, "connect". Only what the last hop answers to
// the request for the target is about the target; [Errno] tells them apart.
//
// Which flow a dial is for comes in its context ([FlowOf]), for those that want to know
// more than the target.
//
// A name goes as a name to the hop that is to resolve it and to no other: the
// target's to the last server, a server's to the hop before it. Where a name is
// resolved here and has several addresses, [Direct] races them (RFC 8305) and
// [Socks] asks its server for one after the other.
//
// UDP through a SOCKS5 server is an association: a connection, over which nothing
// comes any more, and a UDP conversation with the server's relay. In a chain that
// conversation goes through the association with the hop before, so that a
// datagram carries one header for each hop and every hop has to have UDP. A
// conversation that waits owns one goroutine for each hop, which watches its
// connection, and on Linux no buffer ([BatchReader]).
//
// The far end can be connected to ([Binder]): Direct listens at the address that it shows
// to the peer, a SOCKS server is asked for BIND, which is a connection with two
// replies: where to connect, and who has connected. In a chain the last server does
// it; an HTTP proxy cannot.
//
// On Linux datagrams go out and come in many at a time: those that were queued
// ([Queuer]) by one sendmmsg, and those of them that go to one address, as all of
// an association do, as one that the kernel cuts (UDP_SEGMENT); those that are
// there by one recvmmsg, joined as far as the kernel has joined them (UDP_GRO).
// At 65,000 datagrams of 64 bytes a second through a SOCKS server it costs 5 µs
// each, one by one 17.
package outbound
