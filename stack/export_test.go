package stack

import "gvisor.dev/gvisor/pkg/tcpip"

// What the tests may see of the inside.

const (
	Goodbye          = goodbye
	HandshakeTimeout = handshakeTimeout
	CloseTimeout     = closeTimeout
	TimeWait         = timeWait
)

// ToError is toError.
func ToError(err tcpip.Error) error { return toError(err) }

// SetClock replaces netstack's clock; before Run.
func (s *Stack) SetClock(c tcpip.Clock) { s.clock = c }

// Endpoints returns how many connections netstack knows, in whatever state.
func (s *Stack) Endpoints() int {
	n := s.net.Load()
	if n == nil {
		return 0
	}
	return len(n.RegisteredEndpoints()) + len(n.CleanupEndpoints())
}

// BeforeDeliver sees a packet as the read loop does.
func (s *Stack) BeforeDeliver(p []byte) { s.beforeDeliver(p) }

// Running says whether Run serves.
func (s *Stack) Running() bool { return s.net.Load() != nil }
