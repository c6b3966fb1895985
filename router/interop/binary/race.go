//go:build race

package binary

// Race tells whether tests and binary have the race detector: everything takes ten
// times as long under it.
const Race = true
