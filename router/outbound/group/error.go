package group

import (
	"errors"
	"fmt"
	"strings"

	"tunroute/router/outbound"
)

// Try is a member that was tried, and what came of it.
type Try struct {
	Member string
	Err    error
}

// Error is why no member opened a flow.
type Error struct {
	Group string
	Tries []Try // in the order in which they ended
	told  error // what says most
}

// maxTold is how many tries are in the text of an Error.
const maxTold = 5

// Error names each member and what came of it: "internet: int1: connect: i/o
// timeout; int2: request: host unreachable (reply 4)".
func (e *Error) Error() string { return e.Group + ": " + e.text() }

func (e *Error) text() string {
	if len(e.Tries) == 0 {
		return e.told.Error()
	}
	var b strings.Builder
	for i, t := range e.Tries {
		if i > 0 {
			b.WriteString("; ")
		}
		if i == maxTold {
			fmt.Fprintf(&b, "and %d more", len(e.Tries)-maxTold)
			break
		}
		text := t.Err.Error()
		if !strings.HasPrefix(text, t.Member+": ") { // as that of a single server has it already
			b.WriteString(t.Member + ": ")
		}
		b.WriteString(text)
	}
	return b.String()
}

// Unwrap returns the error that says most about the target; [outbound.Errno] is
// about that one.
func (e *Error) Unwrap() error { return e.told }

// As gives an [*outbound.HopError] of the group as a whole: in a chain it is one
// hop, whatever its member goes through.
func (e *Error) As(target any) bool {
	hop, ok := target.(**outbound.HopError)
	if !ok {
		return false
	}
	h := &outbound.HopError{Hop: 1, Hops: 1, Upstream: e.Group, Op: "request"}
	cause := e.told
	var of *outbound.HopError
	if errors.As(e.told, &of) {
		cause = of.Err
		if h.Op = of.Op; of.Hop != of.Hops {
			h.Op = "connect" // a hop within the member
		}
	}
	h.Err = &reason{e.text(), cause}
	*hop = h
	return true
}

// reason is an error with another text.
type reason struct {
	text string
	err  error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.err }
