package main

import (
	"strings"
	"testing"

	"tunroute/cmd/tunroute/admin"
)

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
