//go:build race

package relay

// raceDetector: its own allocations are counted as well.
const raceDetector = true
