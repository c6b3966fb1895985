// Package clients tests programs that speak SOCKS with tunroute as their server: curl
// with the cases of its own tests, Dante's socksify, proxychains, OpenSSH behind nc, a
// browser, and UDP.
//
// The server is on srv of the lab, the programs are on host, and what they ask for is a
// name that only srv knows. It has nothing but tests; start at clients_linux_test.go.
package clients
