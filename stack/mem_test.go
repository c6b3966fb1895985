package stack_test

import "runtime"

// liveHeap returns the bytes of the objects that are in use.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC() // what pools hold is free after the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
