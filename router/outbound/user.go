package outbound

import (
	"context"

	"tunroute/router/flow"
)

// userOf returns the user of the flow that ctx is for: what the template makes of it,
// or fixed where there is none.
func userOf(ctx context.Context, users *flow.Template, fixed string) string {
	if users == nil {
		return fixed
	}
	f := FlowOf(ctx)
	if f == nil {
		return users.Text(nil, 0)
	}
	return users.Text(&f.Flow, f.Rule+1)
}
