// Package dnsfake turns names into addresses and back: it answers DNS questions
// with fake addresses, so that a flow to such an address can be carried by name
// to the far end of the last hop, and so that rules can match names.
//
// Start at [NewPool], which leases the addresses, and [New], which makes the
// [Server] that answers questions from them. Package resolve asks upstream
// servers for what the Server does not answer itself. No other room may import
// github.com/miekg/dns: messages cross the border as octets.
//
// It does not do: DNSSEC (fake answers cannot be signed, AD is never set by
// us), zone transfers, dynamic updates, caching, nor blocking of names.
//
// # Theory of operation
//
// A [Pool] owns one IPv4 and one IPv6 range. A lease is a name and a place in
// both ranges: the offset is the same, so an address leads to its lease by
// arithmetic and the two families of a name never part. The place is chosen by a
// keyed hash of the name, which makes two runs and two gateways agree on nearly
// every name, and is looked for onwards from there when it is taken. A
// lease stays until its range is full and another name needs the place; then the
// one unused for longest goes, but never while it is pinned (a flow uses it) nor
// within the quarantine after its last use (a client may still hold the
// address). When none may go the question fails with SERVFAIL: a failed look-up
// is better than a connection to somebody else's host.
//
// Where [Pool.Open] was given a file a lease is in there before the answer that
// tells of it leaves, unless the disk is slower than 200 ms: write(2) has returned,
// so that it outlives the process. 5 s later at most the disk has it. The file is a
// journal (journal.go says why) that one goroutine writes (store.go).
//
// A fake address without a lease is an orphan: [Pool.Owns] but not
// [Pool.Acquire]. Whoever sees one refuses the flow and sends nothing on.
//
// The [Server] takes whole messages. [Server.AnswerNow] answers whatever needs
// no upstream and never blocks; [Server.Answer] answers everything. In order:
//
//  1. What is not a question is ignored; what is malformed, of another opcode,
//     class or EDNS version is refused as its RFC says.
//  2. Names of their own kind: localhost and below it is loopback (RFC 6761
//     §6.3), resolver.arpa is empty (RFC 9462 §4: no upgrade to an encrypted
//     resolver past us), use-application-dns.net does not exist (the canary by
//     which browsers leave their own encrypted DNS off). Reverse names of the
//     fake ranges are answered from the leases.
//  3. By the [Policy] of the name. Denied: there is no such name. Local: sent to
//     the name's resolver, but that IPv6 addresses which lead nowhere are none.
//     Remote: A and AAAA are leases, HTTPS and SVCB what the name's resolver says
//     without what leads past the fake address, or empty (services.go), ANY is RFC
//     8482's HINFO; other types are sent to the resolver, and are refused where there
//     is none. LocalThenRemote: A and AAAA are the resolver's if it knows an address
//     of either family, else leases; so the two families of a name never go
//     different ways. Other types as Remote.
//
// A name that no SOCKS request can carry honestly is never leased but answered
// empty: one with a dot, space or control character inside a label, and one
// that a far end would read as an address ("10.0.0.20", "127.1", "0x7f.1",
// "::1"), for that would pass by the rules about addresses.
//
// Answers are small (our own fit in 512 octets), keep the letter case of the
// question (0x20), and live for one second. Answers of the resolver are passed
// on as they came but for the message id, the case of the question and the OPT
// record, and for names that are not Local without addresses beside what was asked
// for; one that contains an address of our own ranges is not passed on. What is not
// answered for a reason of ours says so (RFC 8914).
//
// Our own half-dozen record types are written and read by hand (wire.go), for
// this is the hot path of every new connection: the address of a name that has a lease
// costs no allocation ([Server.AnswerInto]), and on Linux a socket's questions and
// answers pass by many at a time (batch_linux.go).
// Package dns does the rest, and checks every answer in the tests.
//
// # Limits and timeouts
//
// Leases: [PoolOptions.Max], some 90 octets each and the name. Questions at resolvers at
// once: [Options.MaxForwards], 192 of them of one client ([WithClient]), beyond it
// SERVFAIL, but for those whose answer an Exchanger knows ([Recaller]). TCP: 32 unanswered
// questions per connection, 30 s of silence, 10 s for a client to take an answer, 1024
// connections, 128 of them of one client ([Server.AdmitTCP]). UDP answers: what the
// client's EDNS offers, at most 1232 octets, 512 without EDNS; longer ones are cut and
// marked TC. UDP questions: 4096 octets on Linux, what is longer is cut.
package dnsfake
