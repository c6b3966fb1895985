// Package bench measures the whole path of a flow, in memory: a client machine
// with a netstack of its own, tunroute's stack, engine and router, and servers
// behind real sockets on the loopback interface. No privilege is needed, and no
// packet leaves the process but on the loopback interface.
//
//	client machine ── packets ── stack ─ router ── sockets ── server
//
// README.md tells how to run it and how to read its figures. What single rooms
// cost is measured in the rooms: BenchmarkRelay (router/relay), BenchmarkMatch
// (router/rule), BenchmarkSend (router/udpnat), BenchmarkAssociation
// (router/outbound), BenchmarkAnswerLeased (dnsfake).
//
// It has nothing but benchmarks. It does not measure the kernel's TUN, which
// takes packets in super-segments that the client machine here does not make.
package main
