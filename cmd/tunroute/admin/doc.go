// Package admin is how a running daemon is asked and told things: a server on a unix
// socket, the client of the commands, and the metrics.
//
// Start at [Listen] and [NewHandler] for the daemon's side, at [Dial] for a
// command's. What the daemon can be asked is [Daemon], which run implements.
//
// The protocol is HTTP with JSON, so that curl --unix-socket speaks it too:
//
//	GET    /v1/status               what is open and what came of the rest
//	GET    /v1/flows                the flows that are open
//	GET    /v1/dns?name=&type=      what clients are told about a name, and why
//	GET    /v1/leases               the names that have fake addresses
//	GET    /v1/leases?of=           the one of a name or of a fake address
//	DELETE /v1/leases?of=           drop it
//	POST   /v1/reload               read the config again
//	GET    /metrics                 the counters, in the text format of Prometheus
//
// An error is a status of 400 or more with {"error": TEXT}.
//
// Who may connect is decided by the file system: the socket has the mode 0600, so
// that it is for the user that the daemon runs as, and for root. There is no other
// authentication, and no TCP port but for the metrics, which change nothing and name
// nobody.
//
// It keeps nothing, and knows none of the rooms but by their counters.
package admin
