package route

import "errors"

// Errors that callers branch on.
var (
	// ErrConflict says that somebody else uses a table, a priority or a mark
	// of the plan.
	ErrConflict = errors.New("routing conflict")
	// ErrLeftover says that an earlier run was killed and has left a route or
	// a rule. [Clean] removes them.
	ErrLeftover = errors.New("left by an earlier run")
)

// Warning is something about the host that is not as a gateway needs it.
type Warning struct {
	What   string // what is so and what comes of it
	Remedy string // the command that changes it
}

// String returns both in one line.
func (w Warning) String() string { return w.What + ": " + w.Remedy }
