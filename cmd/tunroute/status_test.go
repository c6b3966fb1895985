package main

import (
	"net/netip"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"tunroute/cmd/tunroute/admin"
)

// TestFlowsHaveUsers: there is a column for them where somebody has one.
func TestFlowsHaveUsers(t *testing.T) {
	flow := admin.Flow{
		Network: "tcp", Source: netip.MustParseAddrPort("10.0.0.1:5"), Target: "example.org:443", Rule: 2, Out: "p1",
		Start: time.Now(), Up: 1500, Down: 20,
	}
	alices := flow
	alices.User = "alice"
	for _, c := range []struct {
		flows []admin.Flow
		want  string
	}{
		{[]admin.Flow{flow}, `
NET  SOURCE      TARGET           RULE  OUT  UP      DOWN  AGE
tcp  10.0.0.1:5  example.org:443  2     p1   1.5 kB  20 B  0s
`},
		{[]admin.Flow{flow, alices}, `
NET  SOURCE      USER   TARGET           RULE  OUT  UP      DOWN  AGE
tcp  10.0.0.1:5  -      example.org:443  2     p1   1.5 kB  20 B  0s
tcp  10.0.0.1:5  alice  example.org:443  2     p1   1.5 kB  20 B  0s
`},
	} {
		var b strings.Builder
		table := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		writeFlows(table, c.flows)
		table.Flush()
		if got := "\n" + b.String(); got != c.want {
			t.Errorf("got%s\nwant%s", got, c.want)
		}
	}
}

// TestStatusOfLeases: it says where they are not kept.
func TestStatusOfLeases(t *testing.T) {
	for notKept, want := range map[bool]string{
		false: "leases\t3 of 7\n",
		true:  "leases\t3 of 7; not kept: the file cannot be written, see the log\n",
	} {
		var out strings.Builder
		writeStatus(&out, admin.Status{Leases: 3, Capacity: 7, NotKept: notKept})
		if got := out.String(); !strings.HasSuffix(got, want) {
			t.Errorf("got %q, want %q at its end", got, want)
		}
	}
}
