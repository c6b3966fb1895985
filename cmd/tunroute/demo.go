package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/demo"
)

// companyFiles are the configs of the company, of its client and its gateways.
//
//go:embed examples/company*.yaml
var companyFiles embed.FS

// companyConfigs returns them by the names of their files.
func companyConfigs() (map[string]string, error) {
	names, err := fs.Glob(companyFiles, "examples/*")
	configs := make(map[string]string)
	for _, name := range names {
		text, rerr := companyFiles.ReadFile(name)
		err = errors.Join(err, rerr)
		configs[path.Base(name)] = string(text)
	}
	return configs, err
}

func newDemo() *cobra.Command {
	var t demo.Task
	c := &cobra.Command{
		Use:   "demo [--shell]",
		Short: "See a company of tunroutes, in namespaces that last as long as it takes",
		Long: `Demo makes the network of a company in namespaces of its own: two gateways to the
Internet that want a password, a subsidiary behind a third one and a private network
behind that, web sites and name servers. Then a program that knows nothing of it all
asks for what the company wants, six things, and what is told is what the others have
seen of it. It takes seconds, needs no privilege, no network and no other program, and
leaves nothing behind.

With --shell you are left in a shell on the machine that the program was on, and
everything ends with it.

The exit status is 0 if all six pass; with --shell it is that of the shell.`,
		Example: `  tunroute demo
  tunroute demo --shell
  tunroute demo --without int2
  tunroute demo -c my-company.yaml`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, name := range t.Without {
				if !slices.Contains(demo.Gateways, name) {
					return fmt.Errorf("--without %s: the gateways are %s", name, strings.Join(demo.Gateways, ", "))
				}
			}
			takeProxies() // none of ours, and in another network
			status, err := demo.Run(t)
			if err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			if status != 0 {
				return exitStatus(status)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&t.Shell, "shell", false, "leave me in a shell in the company")
	c.Flags().StringSliceVar(&t.Without, "without", nil, "do not start this `gateway`, to see that it is missed")
	c.Flags().StringVarP(&t.Config, "config", "c", "", "a config `file` for the client instead of the company's")
	_ = c.MarkFlagFilename("config", "yaml", "yml")
	return c
}
