// Package limit holds flows to limits: how many there may be at once, how many new ones in
// a time, and how fast their bytes go, in all, of one source or of one user.
//
// Start at [New] and [Limiter.Take], and at [NewBandwidth]. How a bandwidth is shared,
// package pace says. It decides nothing but that: which flows a limit is
// for, and what they are told, is for package router.
//
// # Theory of operation
//
// Each source or user has an entry while it has a flow, and afterwards until its rate has
// recovered, which [Limiter.Expire] looks after. New flows are counted by the generic cell
// rate algorithm, one time for each entry: N at once, and then one each time an Nth of the
// period has passed.
//
// # Limits
//
//   - 65,536 entries; who comes when there are so many shares one with others who do
package limit
