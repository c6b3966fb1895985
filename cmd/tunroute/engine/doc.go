// Package engine is where the rooms meet: it makes a stack, a DNS server and a
// router of a config and a TUN device, and joins them.
//
// Start at [New] and [Engine.Run]. It is the only package that knows tun, stack,
// dnsfake and router; what they do not know of one another is in bridge.go.
//
// It parses no config and changes nothing on the host: the commands do.
package engine
