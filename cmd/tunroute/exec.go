package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
)

// exitFailed is the exit status of exec when tunroute itself fails, as env(1)
// and others have it.
const exitFailed exitStatus = 125

// spec is what exec was asked for, as its router process is told.
type spec struct {
	Config   string   // the file; "" where there is none
	Proxies  []string // where there is no file
	Verbose  int
	Terminal bool // whether the log is read on one
}

func newExec() *cobra.Command {
	var s spec
	c := &cobra.Command{
		Use:   "exec [-c FILE] [--proxy URL]... [--] CMD [ARG...]",
		Short: "Run a program whose connections go where a config says",
		Long: `Exec runs a program, of any kind and without its knowing, in a network
namespace in which there is nothing but a TUN interface to tunroute. No privilege
is needed, and nothing of the host is changed.

Where its connections go is said by a config file; or by --proxy, which given
several times makes a chain, the nearest first; or by the environment (all_proxy,
ALL_PROXY, SOCKS5_SERVER, SOCKS_SERVER, SOCKS4_SERVER). If nothing says it they go
directly, from this host.

The exit status is that of the program; 125 if tunroute fails, 126 if the program
cannot be executed and 127 if it is not found. What the program leaves running
goes on being served until it ends.

Flows that fail are logged on standard error; -v logs all of them.`,
		Example: `  tunroute exec -- curl -s http://example.org/
  tunroute exec --proxy socks5h://10.0.4.1 -- bash
  ALL_PROXY=socks5h://user:password@proxy.example:1080 tunroute exec -- git fetch`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				fmt.Fprintf(os.Stderr, "tunroute: exec: no program to run; try `tunroute exec -- curl -s http://example.org/`\n")
				return exitFailed
			}
			if s.Config == "" && len(s.Proxies) == 0 {
				if p := config.ProxyFromEnv(os.Getenv); p != "" {
					s.Proxies = []string{p}
				}
			}
			cfg, err := s.load()
			if err != nil {
				var place config.Errors
				if errors.As(err, &place) {
					fmt.Fprintf(os.Stderr, "%v\n", err) // begins with its own place
				} else {
					fmt.Fprintf(os.Stderr, "tunroute: exec: %v\n", err)
				}
				return exitFailed
			}
			for _, w := range cfg.Warnings {
				fmt.Fprintf(os.Stderr, "%v\n", w)
			}
			return runExec(s, cfg, args)
		},
	}
	// What follows the program is the program's.
	c.Flags().SetInterspersed(false)
	configFlag(c, &s.Config, "")
	c.Flags().StringArrayVar(&s.Proxies, "proxy", nil, "the `URL` of a SOCKS server; several make a chain")
	c.Flags().CountVarP(&s.Verbose, "verbose", "v", "log all flows; twice for what is behind them")
	c.MarkFlagsMutuallyExclusive("config", "proxy")
	return c
}

// load returns the config of a spec.
func (s spec) load() (*config.Config, error) {
	if s.Config != "" {
		return config.Load(s.Config)
	}
	return config.FromProxies(s.Proxies)
}

// logLevel returns the level of the log, and whether flows that went well are
// left out. A config that asks for more is heard.
func (s spec) logLevel(cfg *config.Config) (level slog.Level, quiet bool) {
	level = slog.LevelInfo
	if s.Config != "" {
		level = slog.Level(cfg.Log.Level)
	}
	if s.Verbose > 1 {
		level = slog.LevelDebug
	}
	return level, s.Verbose == 0 && level == slog.LevelInfo
}
