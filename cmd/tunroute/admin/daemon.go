package admin

import (
	"context"
	"net/netip"
	"time"

	"tunroute/cmd/tunroute/engine"
)

// Daemon is what can be asked. Its methods are safe for concurrent use.
type Daemon interface {
	// Status is a copy of what is open and what has been counted.
	Status() Status
	// Flows are the flows that are open, in no order.
	Flows() []Flow
	// Reload reads the config again; after an error nothing has changed.
	Reload() error
	// Ask answers a question as clients get it, and says why. It may block until
	// a resolver has answered.
	Ask(ctx context.Context, name, qtype string) (Answer, error)
	// Leases are all leases, in no order.
	Leases() []Lease
	// FindLease returns the lease of a name or of a fake address.
	FindLease(of string) (Lease, error)
	// DropLease makes the addresses of a name, or of the name behind a fake
	// address, lead nowhere until it is asked for again, and returns what the
	// lease was.
	DropLease(of string) (Lease, error)
	// Stats are the counters of the rooms.
	Stats() engine.Stats
}

// Status is what `tunroute status` shows.
type Status struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Config   string    `json:"config"` // the file
	Started  time.Time `json:"started"`
	Reloaded time.Time `json:"reloaded,omitzero"` // the last time that it succeeded
	Device   string    `json:"device,omitempty"`

	Flows    int    `json:"flows"`        // TCP, open
	Sessions int    `json:"udp_sessions"` // open
	TCP      uint64 `json:"tcp_ended"`
	UDP      uint64 `json:"udp_ended"`
	Failed   uint64 `json:"failed"` // of those that have ended
	Rejected uint64 `json:"rejected"`
	Orphans  uint64 `json:"orphans"`
	Limited  uint64 `json:"limited"`           // flows that a limit has refused
	Dropped  uint64 `json:"datagrams_limited"` // faster than their bandwidth
	Up       int64  `json:"up_bytes"`          // of those that have ended
	Down     int64  `json:"down_bytes"`
	Leases   int    `json:"leases"`
	Capacity int    `json:"leases_max"`
	NotKept  bool   `json:"leases_not_kept,omitempty"` // their file cannot be written

	Groups []Group `json:"groups,omitempty"`
}

// Group is a choice among upstreams.
type Group struct {
	Name    string   `json:"name"`
	Members []Member `json:"members"`
}

// Member is an upstream of a group, for one network.
type Member struct {
	Name    string        `json:"name"`
	Network string        `json:"net"`
	Bad     bool          `json:"bad"`
	Cause   string        `json:"cause,omitempty"` // of Bad
	Err     string        `json:"err,omitempty"`   // of Bad
	Since   time.Time     `json:"since,omitzero"`  // when it became bad
	Took    time.Duration `json:"probe_ns,omitempty"`
}

// Flow is a flow that is open. A UDP flow is what one socket of a client says to one
// target.
type Flow struct {
	Network string         `json:"net"`
	Source  netip.AddrPort `json:"src"`
	Target  string         `json:"dst"`
	User    string         `json:"user,omitempty"`
	Inbound string         `json:"in"`
	Rule    int            `json:"rule"` // its number; 0 where none matched
	Line    int            `json:"line,omitempty"`
	Out     string         `json:"out"`
	Start   time.Time      `json:"start"`
	Up      int64          `json:"up"`
	Down    int64          `json:"down"`
}

// Answer is what clients are told about a name.
type Answer struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Rcode   string   `json:"rcode"`
	Records []string `json:"records,omitempty"`
	Reason  string   `json:"reason,omitempty"` // what the answer says besides
	Mode    string   `json:"mode"`
	Source  string   `json:"source"` // of the answer: a lease, the resolver, ourselves
	Rules   []Rule   `json:"rules"`  // that flows to the name may match, in their order
}

// Rule is a verdict on flows.
type Rule struct {
	Rule int    `json:"rule"` // its number; 0 where none matches
	Line int    `json:"line,omitempty"`
	Via  string `json:"via"`
}

// Lease is a name and its fake addresses.
type Lease struct {
	Name    string        `json:"name"`
	V4      netip.Addr    `json:"ipv4"`
	V6      netip.Addr    `json:"ipv6"`
	Unused  time.Duration `json:"unused_ns"` // since the last answer or flow; 0 while there is a flow
	Flows   int           `json:"flows"`
	Dropped bool          `json:"dropped,omitempty"`
}
