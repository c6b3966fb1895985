// Package krb5 is Kerberos 5 as a mechanism of GSS-API (RFC 4121), for package gssapi:
// contexts with mutual authentication, and what they wrap.
//
// Start at [NewClient] for the end that begins and at [NewServer] for the one that
// accepts. The messages, the cryptography and the files are those of
// github.com/jcmturner/gokrb5; what is here is what it lacks: the contexts, the
// encrypted tokens, and the conversation with the KDC over connections that the caller
// opens.
//
// It speaks the four encryption types with AES, reads credential caches and keytabs that
// are files, asks KDCs over TCP, and follows referrals to the realm of a server. It does
// not delegate credentials, know SPNEGO, take passwords, PKINIT or FAST, or tell the
// numbers of Windows groups.
//
// # Theory of operation
//
//	Client.Initiate                                         Server.Accept
//	  ticket: memory, cache, KDC
//	  AP-REQ  authenticator, subkey, sequence number   ─►   key of the keytab, time,
//	                                                        replay
//	  check the time in it                             ◄─   AP-REP  subkey, sequence number
//	  wrap and unwrap under the acceptor's subkey      ◄─►
//
// A client keeps the tickets of its servers until they expire or the file that they came
// from has changed, so that kinit and kdestroy are felt by the next flow. One goroutine
// at a time asks KDCs for the ticket of a server; others that want it wait, each as long
// as its own flow may take, and a failure is theirs as well, for a few seconds. A KDC that
// is dead holds up no flow to another server.
//
// A server looks at its keytab anew when the file has changed. Replayed requests are of no
// use to who replays them, because what follows is under a subkey that he cannot know; the
// replay cache, which has a limit, is for those whom NEC's variant lets say nothing that
// is wrapped.
package krb5
