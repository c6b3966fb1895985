// Package demo is the company of docs/company.md in namespaces that last as long as it
// takes to look at it: `tunroute demo`. Its gateways and the machine of its user are
// tunroutes with the configs of examples, started as anybody starts them; its web sites
// and name servers are here.
//
// Start at [Run], which the command calls, and at [Company], which the process inside
// calls. requirements_linux.go asks the six things of it that the paper asks, a function
// each: what is claimed is what sites, name servers, kernels and logs of the gateways
// have seen, and nothing that the tunroute under test says of itself.
//
// The package knows tunroute as a program only, by its commands and its configs. It
// works on Linux only.
//
// # Theory of operation
//
//	P ── Run: waits, and ends the rest on ^C
//	└── D ── Company: web sites and name servers, on their hosts; says what was seen
//	    ├── tunroute run -c int1.yaml, int2.yaml, d1.yaml, p1.yaml, on theirs
//	    ├── tunroute run -c tunroute.yaml, on the client
//	    └── client ── Client: the program that knows nothing of tunroute; or a shell
//
// Package hosts draws P and D, and sees to it that nothing is left of them.
package demo
