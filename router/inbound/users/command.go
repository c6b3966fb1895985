package users

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"tunroute/router/inbound"
)

// commandTime is how long a program may take.
const commandTime = 10 * time.Second

// Command asks a program who may come in. User and password are the two lines of its
// standard input; its exit status says 0 for yes and 1 for no. It sees nothing else of
// us but the environment.
type Command struct {
	Args []string // the program, by its path or name, and its arguments
}

// verify implements verifier.
func (c Command) verify(ctx context.Context, user, password string) (inbound.Identity, error) {
	if strings.ContainsAny(user+password, "\x00\r\n") {
		return inbound.Identity{}, inbound.ErrDenied // one line each
	}
	limited, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(limited, c.Args[0], c.Args[1:]...)
	cmd.Stdin = strings.NewReader(user + "\n" + password + "\n")
	cmd.WaitDelay = time.Second // for who has left a child behind
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return inbound.Identity{User: user}, nil
	case ctx.Err() != nil:
		return inbound.Identity{}, context.Cause(ctx)
	case limited.Err() != nil:
		return inbound.Identity{}, fmt.Errorf("authenticate: %s: no answer within %v", c.Args[0], commandTime)
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return inbound.Identity{}, inbound.ErrDenied
	}
	return inbound.Identity{}, fmt.Errorf("authenticate: %s: %w", c.Args[0], err)
}

// maxPrograms run at a time. They wait for others, as LDAP servers, more than they compute.
const maxPrograms = 32

// atATime implements verifier.
func (Command) atATime() int { return maxPrograms }

// version implements verifier: nobody tells of a change.
func (Command) version(string) string { return "" }
