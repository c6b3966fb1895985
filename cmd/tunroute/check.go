package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
)

func newCheck() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check [-c FILE]",
		Short: "Tell every error and warning of a config",
		Long: `Check reads a config and tells all that is wrong in it, each with its place,
the line and a hint, also with the files that it names. The exit status is 1 if there
is an error and 0 if there are warnings at most. No name is resolved, and nothing is
opened for others or changed.`,
		Args: noFile,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Check(file, engine.Check)
			if err != nil {
				return told(err)
			}
			warn(cfg.Warnings)
			fmt.Fprintf(c.OutOrStdout(), "%s: ok: %s, %s\n", file, count(len(cfg.Upstreams), "upstream"), count(len(cfg.Rules), "rule"))
			return nil
		},
	}
	configFlag(c, &file, defaultConfig)
	return c
}

// count says how many there are, as in "1 rule".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
