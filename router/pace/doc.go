// Package pace shares a bandwidth among flows.
//
// Start at [New] and [Bucket.Join]. It moves no bytes: who does asks how many may be moved
// now ([Share.Take], [Share.Allow]).
//
// # Theory of operation
//
// A bucket fills with bytes at its rate, up to a tenth of a second's worth. While there are
// enough, whoever asks is given what he asks for, up to a quantum. As soon as somebody has
// to wait, all others have to as well, in the order in which they came, and each is given a
// quantum at a time: so the bandwidth is shared evenly among those who want more than their
// part, whatever the size of what they send, and who wants less than his part gets it. One
// timer wakes whose turn it is; while nobody waits there is none.
//
// A datagram does not wait. One that finds the bucket empty is lost, and its flow takes its
// place in the line: when its turn comes, what it is given is kept for the datagrams that
// follow.
package pace
