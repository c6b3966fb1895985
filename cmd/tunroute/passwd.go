package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"tunroute/router/inbound/users"
)

// maxPassword is the longest that SOCKS5 can carry (RFC 1929 §2).
const maxPassword = 255

func newPasswd() *cobra.Command {
	var groups []string
	var remove bool
	c := &cobra.Command{
		Use:   "passwd [--groups G,G] [--delete] FILE USER",
		Short: "Set the password of a user of listen",
		Long: `Passwd puts a user and an argon2id hash of the password into a file, for the
users of a listener. It asks for the password on a terminal, and otherwise reads
one line from standard input. The file is made if it is not there; a daemon that
has it open sees the change within a second.

A user that is in the file already keeps its groups unless --groups is given.`,
		Example: `  tunroute passwd users alice
  tunroute passwd --groups staff,admin users bob <secret
  tunroute passwd --delete users alice`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("passwd takes a file and a user, as in `tunroute passwd users alice`")
			}
			file, user := args[0], args[1]
			if remove {
				if err := users.Delete(file, user); err != nil {
					return fmt.Errorf("%s: %w", user, err)
				}
				return nil
			}
			if err := users.CheckUser(user); err != nil {
				return err
			}
			password, err := readPassword(c.InOrStdin(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			if !c.Flags().Changed("groups") {
				groups = nil
			} else if groups == nil {
				groups = []string{}
			}
			return users.Set(file, user, users.Hash(password), groups)
		},
	}
	c.Flags().StringSliceVar(&groups, "groups", nil, "the `groups` that the user is in")
	c.Flags().BoolVar(&remove, "delete", false, "take the user out of the file")
	c.MarkFlagsMutuallyExclusive("groups", "delete")
	return c
}

// readPassword asks for a password, twice, if in is a terminal.
func readPassword(in io.Reader, prompt io.Writer) (string, error) {
	var password string
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		var typed [2]string
		for i, text := range []string{"Password: ", "Again: "} {
			fmt.Fprint(prompt, text)
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(prompt)
			if err != nil {
				return "", err
			}
			typed[i] = string(b)
		}
		if typed[0] != typed[1] {
			return "", errors.New("the two are not the same")
		}
		password = typed[0]
	} else {
		line, err := bufio.NewReader(io.LimitReader(in, maxPassword+3)).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", err
		}
		password = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	}
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("a password has 1 to %d bytes", maxPassword)
	}
	return password, nil
}
