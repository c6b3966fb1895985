package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
)

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tunroute",
		Short: "Route programs and networks through SOCKS servers, without their knowing",
		Long: `Tunroute takes the packets of programs, or of a whole network, from a TUN
interface and sends each connection where a rule table says: direct, through a
SOCKS4 or SOCKS5 server, through a chain of them, or nowhere. Names are resolved
at the far end.`,
		Example: `  tunroute exec --proxy socks5h://10.0.4.1 -- curl http://intranet.example/
  tunroute exec --proxy socks5h://d1 --proxy socks5h://p1 -- ssh host
  tunroute check -c tunroute.yaml
  tunroute explain -c tunroute.yaml www.example.org:443
  tunroute probe socks5://10.0.4.1
  sudo tunroute run -c tunroute.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.Version = version()
	root.SetHelpCommand(newHelp())
	root.AddCommand(newExec(), newRun(), newCheck(), newExplain(), newProbe(),
		newStatus(), newFlows(), newDNS(), newLeases(), newReload(), newPasswd(), newVersion(),
		newDemo())
	return root
}

// newHelp is cobra's, except that a command that there is not is an error.
func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Tell about a command",
		RunE: func(c *cobra.Command, args []string) error {
			of, _, err := c.Root().Find(args)
			if err != nil {
				return err
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// defaultConfig is the file that commands read where -c names none.
const defaultConfig = "tunroute.yaml"

// configFlag adds -c to a command. The default is told, not set, where a command
// can do without a file.
func configFlag(c *cobra.Command, file *string, value string) {
	c.Flags().StringVarP(file, "config", "c", value, "the config `file`")
	_ = c.MarkFlagFilename("config", "yaml", "yml")
}

// noFile is [cobra.NoArgs] for a command that takes its config by -c.
func noFile(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		if ext := filepath.Ext(args[0]); ext == ".yaml" || ext == ".yml" {
			return fmt.Errorf("%s takes no file by itself: did you mean -c %s?", c.Name(), args[0])
		}
	}
	return cobra.NoArgs(c, args)
}

// load reads a config and prints its warnings.
func load(file string) (*config.Config, error) {
	cfg, err := config.Load(file)
	if err != nil {
		return nil, told(err)
	}
	warn(cfg.Warnings)
	return cfg, nil
}

// warn prints what is allowed but probably not meant, each with its place.
func warn(ws config.Errors) {
	for _, w := range ws {
		fmt.Fprintf(os.Stderr, "warning: %v\n", w)
	}
}

// told prints the errors of a config, which begin with their own place, and
// returns the exit status of a failure.
func told(err error) error {
	fmt.Fprintf(os.Stderr, "%v\n", err)
	return exitStatus(1)
}

// version returns the version of this build.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of tunroute and of what it is made of",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			revision := ""
			var parts []string
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = " " + s.Value
					}
				}
				for _, m := range info.Deps {
					switch m.Path {
					case "gvisor.dev/gvisor", "golang.zx2c4.com/wireguard", "github.com/miekg/dns":
						parts = append(parts, "  "+m.Path+" "+m.Version)
					}
				}
			}
			out := c.OutOrStdout()
			fmt.Fprintf(out, "tunroute %s%s %s/%s %s\n", version(), revision, runtime.GOOS, runtime.GOARCH, runtime.Version())
			for _, p := range parts {
				fmt.Fprintln(out, p)
			}
			return nil
		},
	}
}
