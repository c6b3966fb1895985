// Tunroute takes whole IP packets from a TUN device, terminates their flows in
// a netstack of its own and sends each where a rule table says: direct, through
// SOCKS servers, through chains of them, or nowhere.
//
// Each command is in a file of its own; engine joins the rooms.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run runs a command and returns its exit status.
func run(args []string) int {
	if status, ok := runStage(args); ok {
		return status
	}
	root := newRoot()
	root.SetArgs(args)
	c, err := root.ExecuteC()
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case c.Name() == "exec":
		// Its other statuses are those of programs.
		fmt.Fprintf(os.Stderr, "tunroute: exec: %v\n", err)
		return int(exitFailed)
	}
	fmt.Fprintf(os.Stderr, "tunroute: %v\n", err)
	return 1
}

// exitStatus is an error that has been told already, or that needs no words.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }
