// Package mmsg receives and sends UDP datagrams many at a time, by recvmmsg and
// sendmmsg, so that the ends of a measurement cost little beside what is
// measured.
//
// Start at [NewReader] and [NewWriter]; [Listen] and [Dial] open sockets with
// large buffers. It works on Linux only and is empty elsewhere.
package mmsg
