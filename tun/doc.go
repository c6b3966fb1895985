// Package tun moves IP packets in and out of the kernel.
//
// Start at [Device], at [Open], which makes a TUN interface, and at [FromFD],
// which takes one that somebody else has made. [Pipe] is a pair of devices in
// memory, for tests and benchmarks. What stands in the way on a machine is
// reported as an [*Obstacle] with its remedy.
//
// The rooms behind: package route sends the traffic of a host into a device,
// package netns makes a namespace that has nothing else, package hosts (below it) a
// network of several, and package nstest runs tests where all of that can be done.
//
// The package opens and names a device and moves packets; it does not give it
// addresses or set it up, and looks into packets only to tell their flow, where an
// interface has several queues. A [Device] hands out packets of at most the MTU. On
// Linux the kernel has larger ones (super-segments, with a virtio-net header): Read
// and Write split and join them, and a device that passes them on whole as well is
// an [OffloadDevice]. That can have several queues, each with a reader of its own
// ([Config]).
package tun
