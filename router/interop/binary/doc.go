// Package binary builds tunroute for the tests that run it as a whole.
//
// Start at [Build], which is for [tunroute/router/interop/lab.Enter], and at [Sources],
// which each such test calls.
package binary
