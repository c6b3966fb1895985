// Package flow is the vocabulary of the router: what a flow is, where it wants
// to go, and how names and addresses are written.
//
// Start at [Flow] and [Target]. The package is a leaf: it imports the standard
// library only, holds no state and does no I/O.
package flow
