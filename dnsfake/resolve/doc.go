// Package resolve asks upstream DNS servers: it forwards raw questions for
// package dnsfake, and looks up names for outbounds that send addresses.
//
// Start at [New]; [SystemServers] says which servers this machine uses. A [Cache]
// keeps what look-ups have found; forwarded questions go to the servers each time.
//
// A question goes to one server after the other, twice round, over UDP with a
// fresh port and a random id each time. What does not come from the server, has
// another id or answers another question is not taken for an answer but waited
// past: a forger has to guess port and id (RFC 5452). A truncated answer is asked
// for again by TCP where it has to be whole, and so is everything where
// the way to the server carries no UDP, as some SOCKS servers do not.
//
// It does not do: search domains, hosts files, encrypted DNS, nor
// validation of DNSSEC (the DO, AD and CD bits of forwarded questions and answers
// pass).
package resolve
