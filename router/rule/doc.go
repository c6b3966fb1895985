// Package rule decides where a flow goes: a list of rules, of which the first
// that matches gives the verdict.
//
// Start at [Rule] and [Compile]; [ParseDest], [ParsePorts] and [ParseFrom] read
// the conditions as the config writes them. A [Table] is immutable:
// [Table.Match] runs at flow tempo on any number of goroutines, and a new
// config is a new Table.
//
// The package opens nothing and resolves nothing. It does not know what the
// outbounds are that its rules name (package outbound does), and not which name
// stands behind a fake address: the [flow.Flow] that it is given says so.
//
// # How a rule matches
//
// A rule has up to four conditions: From (who opened the flow), To (where it
// wants to go), Ports and Network. All conditions that are present must hold,
// and one of the entries of a condition is enough. A condition without entries
// holds always.
//
// A target is a name, an address or both. Names are compared with names and
// addresses with addresses, and nothing is looked up: a flow of which only the
// name is known passes every rule about addresses by, even if the name would
// resolve into one of them. An address literal is an address wherever it is
// written ([flow.NewTarget]), so that a rule about addresses cannot be passed by
// writing the address as a name.
//
// Names are compared in the form of [flow.CanonicalName]: without case, without
// the trailing dot. A name with letters beyond ASCII also matches its "xn--"
// form, which is the one that DNS has.
//
// # Limits
//
// Rules are tried in order, so that a decision costs time in proportion to the
// rules before it. The entries of one rule are indexed: a hundred thousand names
// or ten thousand prefixes in it cost about what one costs.
package rule
