//go:build !race

package binary

// Race tells whether tests and binary have the race detector.
const Race = false
