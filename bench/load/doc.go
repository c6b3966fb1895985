// Package load is the two ends between which routers are measured: servers that
// take, give and repeat bytes, and clients that open connections to them and
// count. Every byte is checked where it arrives ([tunroute/bench/pattern]).
//
// Start at [Serve], which is a process on one of the rig's hosts: it does what
// [Role] asks for on its standard input, a JSON object a line. [Server] answers
// at the ports below; what clients can do are the methods of [Client].
//
// It measures rates and times. What routers use meanwhile is the matter of
// [tunroute/bench/rig]. It works on Linux only and is empty elsewhere.
package load
