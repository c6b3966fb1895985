// Command bench measures routers: run as a program it is the rig, which puts
// tunroute and any other router between clients and servers of its own, on hosts
// made of network namespaces, and tells how fast each is and what it costs.
// README.md tells how to use it.
//
//	main_linux.go   the command line
//	rig             what is measured, and in which order
//	netlab          hosts, wires, and programs that leave nothing behind
//	load            clients and servers; pattern: the bytes that they compare
//	socksd          the SOCKS5 server behind the routers
//	mmsg            many datagrams by one system call
//	proc            what routers use
//	report          medians; tables, JSON, Markdown and a chart
//
// Its tests have benchmarks besides, which measure the whole path of a flow in
// memory: a client machine with a netstack of its own, tunroute's stack, engine
// and router, and servers behind real sockets on the loopback interface. No
// privilege is needed for them, and no packet leaves the process but on the
// loopback interface.
//
//	client machine ── packets ── stack ─ router ── sockets ── server
//
// What single rooms cost is measured in the rooms: BenchmarkRelay (router/relay),
// BenchmarkMatch (router/rule), BenchmarkSend (router/udpnat),
// BenchmarkAssociation (router/outbound), BenchmarkAnswerLeased (dnsfake).
//
// The benchmarks do not measure the kernel's TUN, which takes packets in
// super-segments that the client machine there does not make; the rig does. The
// rig needs Linux, the benchmarks run everywhere.
package main
