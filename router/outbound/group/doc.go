// Package group is the outbound that chooses among others: servers, chains, the direct
// way, and other groups.
//
// Start at [New] and [Options]; [Policy] says how a group chooses. judge.go is where
// it is decided what the error of a member means, and its test is the table.
//
// The package opens nothing itself, but through its members, and knows nothing of
// rules. It does not touch flows that are open.
//
// # Theory of operation
//
// A flow goes to the member that the policy chooses among those that are good. They
// are kept as an immutable picture (view, in policy.go) that changes only when the health of a
// member does, so that choosing takes no lock (but LeastFlows, whose counts change
// with every flow) and no scan.
//
// If that member fails, another one is tried, since the client has not been told
// anything yet: on a connect that fails or is not answered, on silence, on a connection
// that is closed, on a refused password, on "general failure", "unreachable" and "TTL
// expired". What the target or a server's rules refuse would be refused again, and goes
// to the client at once: replies 5, 2, 7 and 8. A member that is silent for
// [Options.Try] is not given up, but the next one is started beside it; the first that
// answers is kept. [Options.Deadline] bounds all of it, and three members that say that
// a target cannot be reached are believed.
//
// Failures that are surely the member's make it bad, after [Options.MaxFail] in a row:
// then it gets no flows, until a probe by [Group.Run] succeeds. Whoever says that a host
// cannot be reached has worked, and is not blamed. In between is what may be the one or
// the other ("general failure", and no answer or a closed connection instead of a
// reply): it counts only where another member then reaches the same target, and only
// three such targets in a row make a member bad. A member that was slow is probed, which
// decides.
//
// Where all members are bad, those are tried that are least so.
//
// TCP and UDP are told apart: a server may well serve one of them only. UDP is probed
// once somebody has asked for it.
package group
