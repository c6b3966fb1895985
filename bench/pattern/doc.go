// Package pattern is the bytes that the rig sends, and the check that they
// arrived: unpredictable, different for each stream and each place in it, and so
// cheap that neither end is slowed down.
//
// Start at [New], which makes the same [Source] in every process that knows the
// seed; [Source.Stream] is one stream of bytes, for whoever sends it and for
// whoever checks it.
//
// It does not keep secrets, and it does not find what no network does: bytes
// that were changed so as to be found right.
package pattern
