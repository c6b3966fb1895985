// Package resolve asks upstream servers: it answers raw questions for package
// dnsfake, and looks up names for outbounds that send addresses.
//
// Start at [New], which makes a [Resolver] of [Server] values, and [NewCache], which
// puts what Resolvers say, hosts files and a search list together. [System] is how this
// machine resolves names.
//
// It does not do: validation of DNSSEC (the DO, AD and CD bits of questions and answers
// pass), recursion, DNS over QUIC.
//
// # Theory of operation
//
// A [Resolver] asks a list of servers, one after the other twice round, or all at once
// ([Race]). A server that failed twice in a row comes last for ten seconds; then it is
// tried behind the back of a question that others answer, so that no asker pays for
// finding out. Whatever happens, a question ends after [Options.Deadline].
//
// By UDP each question has a port and an id of its own, both random: a forger has to
// guess both (RFC 5452). What does not come from the server, has another id or answers
// another question is waited past, and after 32 such the question goes by TCP. So does
// one whose answer is truncated, and everything where the way to the server carries no
// UDP, as through some SOCKS servers.
//
// By TCP and TLS (RFC 7858) questions share one connection, until nobody has used it
// for fifteen seconds. Where it fails a question it gets a connection of its own: a
// server that chokes on one question then takes no others with it. HTTPS (RFC 8484) is
// left to net/http. Over TLS questions are padded, so that their length says little
// (RFC 8467). Nobody is asked for the address of a server: it is given, and a name only
// serves to check the certificate.
// A connection that had answers before, and on which nothing comes for two seconds, is
// given up for a new one within the same try: it may have died without a word.
//
// Of an answer is left what answers the question (clean.go): the chain of aliases from
// the name, the records of the type at its end, with signatures and proofs for who asks
// for them, and the SOA record where there is nothing. A server that adds what it was
// not asked for has not been heard. Addresses of private networks are taken out of
// answers about names of the public tree, lest a page reach this network by way of a
// name of its own (rebinding), unless [Options.Private] says otherwise. The servers of a
// [System] are believed as the machine itself believes them: many a network has its
// own machines under names of the public tree.
//
// A [Cache] keeps answers as messages and tells them with the time that is left. Its
// doc comment says for how long, and what stands in for what cannot be had.
//
// # Limits and timeouts
//
// A try: 2 s by UDP, 4 s where a connection may have to be opened. A question: 10 s.
// Questions of clients that wait for one Resolver by way of a Cache: 256 ([ErrBusy]).
// Aliases: 16. UDP answers: 4096 octets. One connection: 256 questions; beside it 8 of
// their own (64 with [Server.Alone]), or 4 where a server has HTTP/1.1 only. Cache: 4 MiB, answers of 16 KB at
// most; a day, five minutes where there is nothing, a second where it failed, and a day more where nobody answers.
// Files: 32 MiB, looked at every 5 s.
package resolve
