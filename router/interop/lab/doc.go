// Package lab is a small internet in network namespaces, for tests of a whole
// tunroute: the host that it runs on, what it is to reach, and somebody behind
// it.
//
//	lan ─────────── host ─────────────── srv
//	client         tunroute             web, echo and other servers, SOCKS
//	                                    servers, the DNS that host asks,
//	                                    a DNS that only srv itself can ask
//
//	lan0 10.78.0.2 ─ 10.78.0.1 lan1      srv0 10.77.0.1, fd77::1
//	     fd78::2     fd78::1             lo   192.0.2.10, 2001:db8:2::10         SOCKS servers
//	                 up0 10.77.0.2 ────       203.0.113.1…8, 2001:db8:113::1…8   targets
//	                     fd77::2              203.0.113.53, 2001:db8:113::53     DNS of host
//
// The default routes lead from lan to host and from host to srv; srv has none.
// So whatever host or lan sends past tunroute arrives at srv, where [Lab.Watch]
// sees it.
//
// Start at [Enter], in TestMain, and at [New], in a test. [Node.Command] runs
// what a test wants to run, [Shell] keeps talking to it. Everything is in
// namespaces of the tests' own, processes included: nothing of it is left when
// the tests end, however they end. A test with another drawing makes it of
// [NewNode] and [NewSwitch].
//
// The package works on Linux only and is empty elsewhere. It knows nothing of
// tunroute.
package lab
