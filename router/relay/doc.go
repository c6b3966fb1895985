// Package relay copies bytes between the two ends of a TCP flow.
//
// Start at [Relay]. This is the portable relay: it works with any two
// connections, at the price of two goroutines, and of a buffer for each
// direction that has something to do.
//
// It does not dial, log or time anything, and knows nothing of rules.
package relay
