// Package route sends the traffic of a host into a TUN device, and back to where
// it was.
//
// Start at [New], which makes a [Plan] of [Options] and of what [ReadHost] says
// of the host; [Apply] carries a Plan out, and [Applied.Undo] takes it back.
// [Clean] removes what a run has left that was killed. [Via] asks the kernel
// where a packet would go, [Forwarding] what keeps a host from being a gateway.
//
// # Theory of operation
//
// The kernel asks the policy rules in the order of their priority; the first
// rule whose table has a route decides (ip-rule(8)). The plan puts these before
// the rule "32766: lookup main" that every host has; T is [Options.Table],
// and P goes with it:
//
//	P    from all fwmark M/K lookup main              our own sockets: no loop
//	P    from all fwmark M/K unreachable
//	P+1  from all iif TUN lookup main                 what the TUN answers
//	P+1  from all iif TUN unreachable
//	P+1  from A lookup main                           for each address A of the host
//	P+2  from all dport 53 lookup T                   UDP and TCP, if asked for
//	P+3  from all lookup main suppress_prefixlength 0 all of main but default routes
//	P+4  from all lookup T                            default dev TUN
//
// Rule P+1 "from A" keeps connections alive that came to the host from outside:
// an ssh session, a readiness probe. Their answers have a source address
// already, that of the interface they came in by. What the host opens itself
// has none yet when its route is looked up, and goes on. (IPv6 asks again with a
// source address where there was no route, so there the rule is for the source
// ports of services only: a TUN that is gone is not passed by.) A program that binds
// to an address of the host passes the TUN by this rule; [Options.Strict] leaves
// the rule out.
//
// Rule P+1 "iif TUN" is for a gateway whose clients are reached by the default
// route: an answer that came out of the TUN must not go back in.
//
// Neither may while main has no route, after a cable was pulled for example: our
// own connection would be a new flow, which opens a connection, and so on. So
// there is an end to the search behind both.
//
// Rule P+2, of [Options.CaptureDNS], is for a resolver in a connected network,
// which rule P+3 would leave where it is, and every name with it.
//
// Rule P+3 leaves connected networks, and whatever else main has a route for,
// where they are. If [Options.Routes] names such a network explicitly it means
// it, and the longest prefix of both tables must win, ours where they are
// equal: a host with 10.0.0.0/8 in main and a connected 10.1.2.0/24 that routes
// 10.1.0.0/16 into the TUN keeps its neighbours in 10.1.2.0/24. (Were ours asked
// first, the answers of a gateway to its own LAN would go back into the TUN.)
// Two tables cannot be searched at once; but "lookup main suppress_prefixlength
// L" is the routes of main that are longer than L. So there are two rules for
// each length L among the routes, the longest first, and a table for each:
//
//	P+3  from all lookup main suppress_prefixlength 16
//	P+4  from all lookup T+16                         10.1.0.0/16 dev TUN
//	P+5  from all lookup main suppress_prefixlength 0
//	P+6  from all lookup T                            default dev TUN
//
// Behind every route into the TUN is another for the same prefix, unreachable,
// with a higher metric. The kernel removes the first kind together with the
// device, when the process ends however it ends; what is left fails closed until
// the next start cleans up. (That is why there is a table for each length: an
// unreachable route ends the search, suppressed or not, so one for the default
// route must not be met before main has been asked.)
//
// Networks to exclude are "throw" routes: as if the table had no route at all,
// the search goes on and ends in main.
//
// # Limits
//
// All rules and routes carry the protocol number [Protocol]; nothing without it
// is ever touched. The plan knows the addresses that the host had when it was
// made and does not follow changes. Answers of a container whose port is
// published by NAT have the address of the container when they are routed: its
// network must be excluded, or they go into the TUN. systemd-networkd removes the
// rules of others when it starts, unless networkd.conf says
// ManageForeignRoutingPolicyRules=no.
package route
