//go:build race

package interop

// raceDetector: everything takes ten times as long under it.
const raceDetector = true
