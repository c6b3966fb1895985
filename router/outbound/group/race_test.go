//go:build race

package group

// raceDetector: sync.Pool loses things on purpose under it, so allocations say
// nothing.
const raceDetector = true
