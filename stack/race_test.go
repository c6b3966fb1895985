//go:build race

package stack_test

// raced says that the race detector runs: everything takes ten times as long, and
// allocates.
const raced = true
