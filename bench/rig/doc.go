// Package rig measures routers, each in the same way: it builds hosts
// ([tunroute/bench/netlab]), starts servers and clients on them
// ([tunroute/bench/load]) and the router between them, and takes down what comes
// of it ([tunroute/bench/report]).
//
// Start at [Run]. A [Router] is a program that is given by a template of its
// command; the rig knows none by name but those of this project and of the
// kernel. A [Cell] is what is measured; README.md of bench tells how each one is.
//
//	run, for each round, cell and router:
//	    hosts, wires, servers and clients      lab_linux.go
//	    the router, until a probe gets through router_linux.go
//	    the cell                               cell_*_linux.go
//	    everything ends
//
// Nothing is kept from one to the next: a router that has left something behind,
// or has come to a halt, has no influence on the others.
//
// It needs root. It works on Linux only and is empty elsewhere.
package rig
