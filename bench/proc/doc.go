// Package proc reads what processes, the machine and network namespaces have
// used so far: processor time, memory, TCP segments sent again.
//
// Start at [Tree], for a process and all that it has started, and [Machine]. All
// figures are totals of which the caller takes differences; processor time comes
// in ticks of 10 ms. The package works on Linux only and is empty elsewhere.
package proc
