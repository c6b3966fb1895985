//go:build race

package outbound_test

// raceDetector: sync.Pool loses things on purpose under it, so allocations say
// nothing.
const raceDetector = true
