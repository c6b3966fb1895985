// Package interop tests tunroute against programs that this project did not
// write: danted, microsocks, ssh -D and ss-local as servers; curl, dig, nc, ping, iperf3
// and sha256sum as clients. It has nothing but tests.
//
// Start at [tunroute/router/interop/lab], which has the drawing of where they
// run; [tunroute/router/interop/servers] runs the SOCKS servers. Package
// [tunroute/router/interop/company] has one network of its own. The tests build
// the binary and know of it what its manual says and no more, so that they find
// out what unit tests cannot: whether all of it together does what it should
// with what is really out there.
//
// What is measured is in the log of the tests (go test -v). With -short or -race
// the amounts are small, and what is only about amounts is left out.
package interop
