// Package ftp helps FTP clients that want to be connected to (active mode, RFC 959
// §3.3, RFC 2428) where their address means nothing to the server.
//
// Start at [New]: a [Control] stands in for the client's end of a control connection. It
// reads the client's commands and writes, instead of the address in PORT and EPRT, one
// that [Options.Open] has opened for the server.
//
// It knows nothing of how an address is opened and what becomes of whoever connects to
// it, and it does not touch passive mode: PASV and EPSV, and all replies, pass
// unchanged.
//
// # Theory of operation
//
// Only the first few bytes of a command are held back, until they can be neither PORT
// nor EPRT; of these two the whole line is, up to maxLine bytes. So a client that sends
// byte by byte, or many commands in one segment, is served as any other, and a command
// that waits for Open holds up those behind it, which are for the server to answer in
// their order.
//
// A PORT that cannot be served goes on without its address, so that the server itself
// refuses it, in its place among the other replies: "500 Illegal PORT command." or the
// like. That is so where nothing can be opened for the server, and where the address is
// not the client's own or its port is a privileged one: whoever asked for that would
// have the server, or us, connect to somebody else (RFC 2577 §3).
//
// The form of the command follows the address that the server gets: EPRT for IPv6, and
// PORT for IPv4, unless the client itself has written an EPRT of IPv4.
//
// After a 234 (RFC 4217: TLS) what comes is read no more: from the first byte that
// begins a TLS record on, everything passes.
package ftp
