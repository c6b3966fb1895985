// Package netlab makes hosts out of network namespaces, joins them by wires, and
// starts programs on them.
//
// Start at [NewHost]. A host has no name on the machine: it is gone when it is
// closed and its programs have ended, also when this process is killed. Programs
// are started by [Host.Start], in a process and mount namespace of their own
// where they ask for it ([Program].Guarded), so that nothing which they start
// outlives them.
//
// It needs root. It works on Linux only and is empty elsewhere.
package netlab
