// Package gssapitest has a mechanism of GSS-API for tests: one that needs no third party,
// protects nothing, and notices everything that a real one would.
//
// Start at [Pair].
package gssapitest
