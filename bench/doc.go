// Package bench says how fast tunroute is.
//
// The benchmarks here take the whole path in memory: the netstack of a client
// machine, tunroute's own, the rules, an outbound, and an echo server or a sink
// on the loopback interface. "direct" beside each is the same load between the
// same sockets without tunroute. They need no privilege:
//
//	go test -run '^$' -bench . ./bench
//
// Of the parts there are benchmarks in their rooms: relay (BenchmarkRelay), rule
// (BenchmarkMatch), udpnat (BenchmarkSend), dnsfake (BenchmarkAnswerLeased,
// BenchmarkPoolAcquire), socks and stack.
//
// They run against each other's load on two cores: the client's netstack costs as
// much as ours. For figures to compare with other routers a kernel must be the
// client; README.md has those of iperf3.
package bench
